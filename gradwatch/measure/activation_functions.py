"""Find the activation functions in an autograd graph, and the entries at which they are flat.

A function is seen whoever called it: a module, the forward of one, or the loop. Its node tells its settings, and holds
its inputs or its results until the backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradwatch.hooks.graph import operation_of, saved_axis, saved_by
from gradwatch.measure import slopes
from gradwatch.measure.slopes import SATURATED_SHARE, SteepRange
from gradwatch.ranks.shards import local_part

__all__ = ["FlatEntries", "flat_entries", "is_softmax_of_one", "may_be_activation", "may_shut_the_loss"]

MASKING = ("maskedfill", "where", "add")  # operations that write −Inf into logits

TOGETHER = 2**20
"""Entries that are examined in one call. With many small tensors the calls cost more than the comparisons."""

_LOGISTIC = ("logsigmoid", "binarycrossentropywithlogits")  # losses that are flat where a discriminator is sure

Rows = Callable[[Tensor], Tensor]
"""From what a function has saved to (rows, units), the part of it that is examined."""

FunctionKind = Literal["rectifier", "squashing"]


@dataclass(frozen=True)
class FlatEntries:
    """The entries at which k calls of one kind of activation function pass hardly any gradient.

    Attributes:
        kind: a rectifier is judged by units, a squashing function by entries, a softmax by rows.
        places: (k,) indices of the calls among those asked about.
        entries: bool, (k, rows, units), for a softmax (k, rows). NaN is not flat.
    """

    kind: Literal["rectifier", "squashing", "softmax"]
    places: Sequence[int]
    entries: Tensor


@dataclass(frozen=True)
class _ActivationFunction:
    """One function of torch: ``steep_range(*settings)`` is an interval of what its node saves.

    Attributes:
        steep_range: of ``gradwatch.measure.slopes``.
        settings: names under which the node saves the settings.
        saves: whether the node saves the input or the result.
        is_rectifier: else it is a squashing function.
    """

    steep_range: Callable[..., SteepRange]
    settings: tuple[str, ...] = ()
    saves: Literal["self", "result"] = "self"
    is_rectifier: bool = True


ACTIVATION_FUNCTIONS: Mapping[str, _ActivationFunction] = {
    "relu": _ActivationFunction(slopes.relu, saves="result"),
    "gelu": _ActivationFunction(slopes.gelu, ("approximate",)),
    "silu": _ActivationFunction(slopes.silu),
    "mish": _ActivationFunction(slopes.mish),
    "elu": _ActivationFunction(slopes.elu, ("alpha", "scale", "input_scale")),
    "celu": _ActivationFunction(slopes.celu, ("alpha",)),
    "hardswish": _ActivationFunction(slopes.hardswish),
    "softplus": _ActivationFunction(slopes.softplus, ("beta", "threshold")),
    "leakyrelu": _ActivationFunction(slopes.leaky_relu, ("negative_slope",)),
    "hardtanh": _ActivationFunction(slopes.hardtanh, ("min_val", "max_val"), is_rectifier=False),
    "hardsigmoid": _ActivationFunction(slopes.hardsigmoid, is_rectifier=False),
    "sigmoid": _ActivationFunction(slopes.sigmoid_results, saves="result", is_rectifier=False),
    "tanh": _ActivationFunction(slopes.tanh_results, saves="result", is_rectifier=False),
}
"""By the names of their nodes. SELU is an ELU. ReLU6 is a hardtanh that begins at 0, and counts as a rectifier."""


@dataclass(frozen=True)
class _SavedTensor:
    """The tensor that the node of an activation function has saved: ``tensor`` is steep inside ``steep``."""

    kind: FunctionKind
    steep: SteepRange
    tensor: Tensor


def may_be_activation(node: Any) -> bool:
    """Tell by its name alone whether ``node`` may be an activation function."""
    name = operation_of(node)
    return name in ACTIVATION_FUNCTIONS or name in ("softmax", "div")


def may_shut_the_loss(node: Any) -> bool:
    """Tell by its name alone whether ``node`` may be a function before the loss that passes no gradient."""
    return may_be_activation(node) or operation_of(node) in _LOGISTIC


@torch.no_grad()
def flat_entries(asked: Sequence[tuple[Any, Rows]]) -> Iterator[FlatEntries]:
    """Yield the flat entries of those nodes that are activation functions and still hold what they saved.

    Functions with the same steep range and as many rows and units are examined together.

    Args:
        asked: pairs of a node and what to examine of it.
    """
    alike: defaultdict[tuple[Any, ...], list[tuple[int, Tensor]]] = defaultdict(list)
    for place, (node, rows) in enumerate(asked):
        if operation_of(node) == "softmax":
            yield from _flat_softmax(node, place)
        elif (saved := _saved_by_function(node)) is not None:
            part = rows(saved.tensor)
            alike[saved.kind, saved.steep, part.shape, part.dtype, part.device].append((place, part))
    for (kind, steep, *_), parts in alike.items():
        for batch in _batches(parts):
            places, tensors = zip(*batch, strict=True)
            yield FlatEntries(kind, places, steep.is_outside(_stacked(tensors)))


def _saved_by_function(node: Any) -> _SavedTensor | None:
    """Return what the node of a rectifier or squashing function holds; None for other nodes, or where it was freed."""
    name = operation_of(node)
    if name in _SAVED_BY:
        return _SAVED_BY[name](node)
    function = ACTIVATION_FUNCTIONS.get(name)
    if function is None:
        return None
    saved = saved_by(node, function.saves)
    if saved is None or saved.layout is not torch.strided or saved.numel() == 0:
        return None
    settings = [saved_by(node, setting) for setting in function.settings]
    is_relu6 = name == "hardtanh" and settings[0] == 0
    kind: FunctionKind = "rectifier" if function.is_rectifier or is_relu6 else "squashing"
    return _SavedTensor(kind, function.steep_range(*settings), local_part(saved))


def _saved_by_logistic_loss(node: Any) -> _SavedTensor | None:
    """Return the absolute slopes of a logistic loss, at most 1: of log σ(x) 1 − σ(x), with a target t σ(x) − t."""
    logits, target = saved_by(node, "self"), saved_by(node, "target")
    if logits is None or logits.numel() == 0:
        return None
    slope = 1 - logits.sigmoid() if target is None else (logits.sigmoid() - target).abs()
    return _SavedTensor("squashing", SteepRange(low=SATURATED_SHARE), local_part(slope))


def _saved_by_division(node: Any) -> _SavedTensor | None:
    """Return what the node of a softsign holds; None for other divisions, or where it was freed."""
    divisor = saved_by(node, "other") if _is_softsign(node) else None
    return None if divisor is None else _SavedTensor("squashing", slopes.softsign_divisors(), divisor)


_SAVED_BY: Mapping[str, Callable[[Any], _SavedTensor | None]] = {
    "div": _saved_by_division,
    **dict.fromkeys(_LOGISTIC, _saved_by_logistic_loss),
}
"""By the names of nodes whose slope is not a function of one saved tensor alone."""


def _batches(parts: list[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield ``parts``, whose tensors have one shape, in lists of at most ``TOGETHER`` entries."""
    count = max(1, TOGETHER // parts[0][1].numel())
    for begin in range(0, len(parts), count):
        yield parts[begin : begin + count]


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _flat_softmax(node: Any, place: int) -> Iterator[FlatEntries]:
    """Yield the rows in which one entry takes nearly all, except rows with a single entry that is not masked."""
    probabilities = saved_by(node, "result")
    if probabilities is None or probabilities.numel() == 0:
        return
    axis = saved_axis(node, probabilities.ndim)
    if axis is None:
        return
    last = probabilities.movedim(axis, -1)
    if last.shape[-1] == 1:  # always 1: nothing lies far out
        return
    largest = last.float().amax(-1).flatten()
    flat = (4 * largest * (1 - largest) < SATURATED_SHARE) & (largest > 0.5)
    if _is_masked(node):
        flat &= ((last > 0).sum(-1) > 1).flatten()
    yield FlatEntries("softmax", [place], flat.unsqueeze(0))


def is_softmax_of_one(node: Any) -> bool:
    """Return True for a softmax over an axis of one entry, while another axis than the first has several.

    Its results are 1, and its slope is 0, whatever it is given. Rows of a matrix do not tell whether one expert, or one
    component, is meant.
    """
    if operation_of(node) != "softmax" or (probabilities := saved_by(node, "result")) is None:
        return False
    axis, shape = saved_axis(node, probabilities.ndim), probabilities.shape
    if axis is None or shape[axis] != 1:
        return False
    return any(length > 1 for place, length in enumerate(shape) if place not in (0, axis))


def _is_masked(node: Any) -> bool:
    """Tell whether the logits of a softmax may hold −Inf for entries that are masked."""
    (logits, _) = node.next_functions[0]
    return logits is not None and operation_of(logits) in MASKING


def _is_softsign(node: Any) -> bool:
    """Tell whether ``node`` divides x by 1 + |x|; torch has no node of its own for a softsign."""
    (x, _), *others = node.next_functions
    divisor = others[0][0] if others else None
    if divisor is None or operation_of(divisor) != "add":
        return False
    inner = divisor.next_functions[0][0]
    return inner is not None and operation_of(inner) == "abs" and inner.next_functions[0][0] is x
