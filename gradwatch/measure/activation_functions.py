"""Activation functions, as an autograd graph has saved them → where they are flat.

Enters: a node of a graph, before its backward pass. Leaves: whether it is an activation function, and at which entries
hardly any gradient passes. A function is seen whoever called it: a module, the forward of one, or the loop.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gradwatch.hooks.graph import operation_of, saved_by
from gradwatch.measure.slopes import SteepRange, steep_range

__all__ = ["FlatEntries", "Functions"]

SILENT = 1e-3  # the slope of a unit that passes no gradient; a rectifier's is exactly 0
SATURATED = 0.05  # of its steepest slope: tanh beyond ±2.2, sigmoid beyond ±4.4

MASKING = ("maskedfill", "where", "add")  # what writes −Inf into logits

TOGETHER = 2**20  # entries that are looked at in one call; a call for each function costs more than the look

Rows = Callable[[Tensor], Tensor]
"""What a function has saved → (rows, units), the part of it that is looked at."""


@dataclass(frozen=True)
class FlatEntries:
    """Where k calls of one kind of activation function pass hardly any gradient.

    Attributes:
        kind: a rectifier is silent by units, a squashing function is flat by entries, a softmax by rows.
        places: (k,) which of those asked about.
        entries: bool, (k, rows, units), of a softmax (k, rows). NaN is not flat.
    """

    kind: Literal["rectifier", "squashing", "softmax"]
    places: Sequence[int]
    entries: Tensor


@dataclass(frozen=True)
class _Function:
    """``call(x, *settings)``; its node saves the settings under their names, and ``x`` or the result."""

    call: Callable[..., Tensor]
    settings: tuple[str, ...] = ()
    saves: Literal["self", "result"] = "self"
    is_rectifier: bool = True


def _gelu(x: Tensor, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


FUNCTIONS: Mapping[str, _Function] = {
    "relu": _Function(torch.relu, saves="result"),
    "gelu": _Function(_gelu, ("approximate",)),
    "silu": _Function(F.silu),
    "mish": _Function(F.mish),
    "elu": _Function(torch.ops.aten.elu, ("alpha", "scale", "input_scale")),
    "celu": _Function(F.celu, ("alpha",)),
    "hardswish": _Function(F.hardswish),
    "softplus": _Function(F.softplus, ("beta", "threshold")),
    "leakyrelu": _Function(F.leaky_relu, ("negative_slope",)),
    "hardtanh": _Function(F.hardtanh, ("min_val", "max_val"), is_rectifier=False),
    "hardsigmoid": _Function(F.hardsigmoid, is_rectifier=False),
    "sigmoid": _Function(torch.sigmoid, saves="result", is_rectifier=False),
    "tanh": _Function(torch.tanh, saves="result", is_rectifier=False),
}
"""By the names of their nodes. SELU is an ELU; ReLU6 is a hardtanh from 0, and counts as a rectifier."""

SOFTSIGN = SteepRange(-math.inf, SATURATED**-0.5)  # of 1 + |x|, by which it divides: its −2nd power is the slope


class Functions:
    """Knows activation functions by their nodes; asks each for its slope once, not every entry."""

    def __init__(self) -> None:
        self._steep: dict[tuple[str, tuple[Any, ...]], SteepRange] = {}

    @staticmethod
    def may_be(node: Any) -> bool:
        """Whether it is worth a look."""
        name = operation_of(node)
        return name in FUNCTIONS or name in ("softmax", "div")

    @torch.no_grad()
    def look(self, asked: Sequence[tuple[Any, Rows]]) -> Iterator[FlatEntries]:
        """Those of ``asked``, nodes with what to look at of each, that are activation functions and still hold it.

        Functions with the same range and as many rows and units are looked at together.
        """
        alike: defaultdict[tuple[Any, ...], list[tuple[int, Tensor]]] = defaultdict(list)
        for place, (node, rows) in enumerate(asked):
            name = operation_of(node)
            if name == "softmax":
                yield from _flat_softmax(node, place)
            elif (found := self._saved(node, name)) is not None:
                kind, steep, saved = found
                part = rows(saved)
                alike[kind, steep, part.shape, part.dtype, part.device].append((place, part))
        for (kind, steep, *_), parts in alike.items():
            count = max(1, TOGETHER // parts[0][1].numel())
            for some in (parts[begin : begin + count] for begin in range(0, len(parts), count)):
                places, entries = zip(*some, strict=True)
                yield FlatEntries(kind, places, steep.is_outside(_stacked(entries)))

    def _saved(self, node: Any, name: str) -> tuple[Literal["rectifier", "squashing"], SteepRange, Tensor] | None:
        """(kind, where it is steep, what it has saved), None where nothing is to be told."""
        function = FUNCTIONS.get(name)
        if function is None:
            divisor = saved_by(node, "other") if name == "div" and _is_softsign(node) else None
            return None if divisor is None else ("squashing", SOFTSIGN, divisor)
        saved = saved_by(node, function.saves)
        if saved is None or saved.layout is not torch.strided or saved.numel() == 0:
            return None
        settings = tuple(saved_by(node, setting) for setting in function.settings)
        is_rectifier = function.is_rectifier or (name == "hardtanh" and settings[0] == 0)
        if (name, settings) not in self._steep:
            self._steep[name, settings] = _range_of(function, settings, is_rectifier)
        return "rectifier" if is_rectifier else "squashing", self._steep[name, settings], saved


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _range_of(function: _Function, settings: tuple[Any, ...], is_rectifier: bool) -> SteepRange:
    """Of what a node saves: inputs, or results (every function that saves these rises)."""
    slope, share = (SILENT, None) if is_rectifier else (None, SATURATED)
    found = steep_range(function.call, settings, slope=slope, share=share)
    if function.saves == "self":
        return found
    low, high = function.call(torch.tensor([found.low, found.high], dtype=torch.float64), *settings).tolist()
    return SteepRange(low if math.isfinite(found.low) else -math.inf, high if math.isfinite(found.high) else math.inf)


def _flat_softmax(node: Any, place: int) -> Iterator[FlatEntries]:
    """Rows of which one entry takes nearly all; none that a mask has left a single entry."""
    probabilities, dim = saved_by(node, "result"), saved_by(node, "dim")
    if probabilities is None or probabilities.numel() == 0:
        return
    last = probabilities.movedim(dim if dim < probabilities.ndim else dim - 2**64, -1)  # −1 is saved as 2⁶⁴ − 1
    largest = last.float().amax(-1).flatten()
    flat = (4 * largest * (1 - largest) < SATURATED) & (largest > 0.5)
    if _is_masked(node):
        flat &= ((last > 0).sum(-1) > 1).flatten()
    yield FlatEntries("softmax", [place], flat.unsqueeze(0))


def _is_masked(node: Any) -> bool:
    """Whether the logits of a softmax may hold −Inf for what is to be left out."""
    (logits, _) = node.next_functions[0]
    return logits is not None and operation_of(logits) in MASKING


def _is_softsign(node: Any) -> bool:
    """Whether ``node`` divides x by |x| + 1: torch has no node for it."""
    (x, _), *others = node.next_functions
    divisor = others[0][0] if others else None
    if divisor is None or operation_of(divisor) != "add":
        return False
    inner = divisor.next_functions[0][0]
    return inner is not None and operation_of(inner) == "abs" and inner.next_functions[0][0] is x
