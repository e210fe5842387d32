"""Narrow down where a NaN or Inf came from by which gradients are finite: all that is known where no call was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Where

__all__ = ["InferredOrigin", "InferredPattern", "LeafModules", "Unseen", "infer_origin"]

InferredPattern = Literal[
    "forward",  # the loss is not finite: the forward pass or the loss made it
    "below the loss",  # no gradient is finite, from the loss down to the layer
    "one layer",  # the gradients on both sides of the layer are finite
    "one module",  # of two parameters of one module, one gradient is finite and one is not
    "between layers",  # gradients are finite down to one layer, and no longer at the next
]

_PART_OF_INFERRED_STEP: dict[InferredPattern, Where] = {
    "forward": "forward",
    "below the loss": "loss",
    "one layer": "backward",
    "one module": "input",
    "between layers": "backward",
}

Unseen = Literal[
    "parts are called",
    "compiled",
    "opaque",
    "not repeatable",
    "not traced",
    "not recorded",
    "distributed",
    "bare tensors",
]
"""Why no call of a module was seen: the loop calls parts of the model, whose calls are recorded from the second step
on; the model is compiled; the module is compiled, scripted or sharded; the step could not be run again as it was;
nobody asked for it; nobody can ask for it, under ``gradwatch run``; it may have been made on another rank; or there are
no modules."""

LeafModules = Sequence[tuple[str, bool]]
"""(name, whether it is one of ``torch.nn``) of the modules without children, in order of registration."""


@dataclass(frozen=True)
class InferredOrigin:
    """The likely origin of a NaN or Inf, as the gradients of the step show it.

    Attributes:
        pattern: what was seen.
        module: that holds ``layer``, or the suspect.
        layer: the parameter with a nonfinite gradient that is nearest to the output.
        finite_layer: the next parameter towards the output; its gradient is finite.
        suspect: the only module that can have made it; ``""`` is the model itself, None is unknown.
    """

    pattern: InferredPattern
    module: str = ""
    layer: str = ""
    finite_layer: str = ""
    suspect: str | None = None

    @property
    def where(self) -> Where:
        """The part of the step in which it was made."""
        return _PART_OF_INFERRED_STEP[self.pattern]


def infer_origin(
    layers: Layers, modules: LeafModules, loss: float | None, layers_at_fault: Sequence[str]
) -> InferredOrigin:
    """Return where a step's NaN or Inf may have come from.

    Args:
        layers: the table.
        modules: those without children.
        loss: of that step, if it was observed.
        layers_at_fault: names of the parameters whose gradients hold NaN or Inf.
    """
    is_finite = loss is None or math.isfinite(loss)
    if not layers_at_fault or not is_finite:
        return InferredOrigin("forward")
    return _origin_in_backward(layers, modules, layers_at_fault)


def _origin_in_backward(layers: Layers, modules: LeafModules, layers_at_fault: Sequence[str]) -> InferredOrigin:
    """Return where the backward pass of a finite loss may have made a NaN or Inf."""
    order = [layers.names[column] for column in np.argsort(layers.depth)]
    bad = sorted(order.index(name) for name in layers_at_fault)
    last = order[bad[-1]]
    owner = _module_of(last)
    if bad[-1] == len(order) - 1:
        return InferredOrigin("below the loss", owner, last, suspect=_suspect_from(modules, owner))
    if bad[0] > 0 and _module_of(order[0]) != owner:
        return InferredOrigin("one layer", owner, last)
    finite = order[bad[-1] + 1]
    if _module_of(finite) == owner:
        return InferredOrigin("one module", owner, last, finite)
    suspect = _suspect_between(modules, owner, _module_of(finite))
    return InferredOrigin("between layers", suspect or owner, last, finite, suspect)


def _suspect_between(modules: LeafModules, first: str, last: str) -> str | None:
    """Return the one module that can have made it between two others; None where several can, or none.

    The activation functions of torch have bounded slopes, so a module with a formula of its own comes before them.
    """
    names = [name for name, _ in modules]
    if first not in names or last not in names:
        return None
    between = modules[names.index(first) + 1 : names.index(last)]
    candidates = [name for name, is_builtin in between if not is_builtin] or [name for name, _ in between]
    if not candidates:
        return _suspect_of_neighbours(modules, first, last)
    return candidates[0] if len(candidates) == 1 else None


def _suspect_of_neighbours(modules: LeafModules, first: str, last: str) -> str | None:
    """Return the suspect where no module lies between the two."""
    if (last, False) in modules:  # the gradient of what it is given may be bad while its own weights get finite ones
        return last
    parent = _module_of(first)
    if parent and parent == _module_of(last):
        return parent  # the forward method around both
    return None


def _suspect_from(modules: LeafModules, first: str) -> str | None:
    """Return the one module from ``first`` on that is not torch's: its derivative may have no bound."""
    names = [name for name, _ in modules]
    later = modules[names.index(first) :] if first in names else []
    own = [name for name, is_builtin in later if not is_builtin]
    return own[0] if len(own) == 1 else None


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]
