"""Activation functions, as an autograd graph has saved them → where they are flat.

Enters: a node of a graph, before its backward pass. Leaves: whether it is an activation function, and at which entries
hardly any gradient passes. A function is seen whoever called it: a module, the forward of one, or the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gradwatch.graph import operation_of, saved_by
from gradwatch.slopes import SteepRange, steep_range

__all__ = ["Flat", "Functions"]

SILENT = 1e-3  # the slope of a unit that passes no gradient; a rectifier's is exactly 0
SATURATED = 0.05  # of its steepest slope: tanh beyond ±2.2, sigmoid beyond ±4.4

MASKING = ("maskedfill", "where", "add")  # what writes −Inf into logits

Rows = Callable[[Tensor], Tensor]
"""What a function has saved → (rows, units), the part of it that is looked at."""


@dataclass(frozen=True)
class Flat:
    """Where one call of an activation function passes hardly any gradient.

    Attributes:
        kind: a rectifier is silent by units, a squashing function is flat by entries, a softmax by rows.
        entries: bool, (rows, units), of a softmax (rows,). NaN is not flat.
    """

    kind: Literal["rectifier", "squashing", "softmax"]
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
    def look(self, node: Any, rows: Rows) -> Flat | None:
        """None where ``node`` is no activation function, or has nothing saved any more."""
        name = operation_of(node)
        if name in FUNCTIONS:
            return self._look_at_entries(node, name, rows)
        if name == "softmax":
            return _flat_softmax(saved_by(node, "result"), saved_by(node, "dim"), _is_masked(node))
        if name == "div" and _is_softsign(node) and (divisor := saved_by(node, "other")) is not None:
            return Flat("squashing", rows(divisor) >= SATURATED**-0.5)  # 1 + |x|, whose −2nd power is the slope
        return None

    def _look_at_entries(self, node: Any, name: str, rows: Rows) -> Flat | None:
        function = FUNCTIONS[name]
        saved = saved_by(node, function.saves)
        if saved is None or saved.layout is not torch.strided or saved.numel() == 0:
            return None
        settings = tuple(saved_by(node, setting) for setting in function.settings)
        is_rectifier = function.is_rectifier or (name == "hardtanh" and settings[0] == 0)
        if (name, settings) not in self._steep:
            self._steep[name, settings] = _range_of(function, settings, is_rectifier)
        flat = self._steep[name, settings].is_outside(rows(saved))
        return Flat("rectifier" if is_rectifier else "squashing", flat)


def _range_of(function: _Function, settings: tuple[Any, ...], is_rectifier: bool) -> SteepRange:
    """Of what a node saves: inputs, or results (every function that saves these rises)."""
    slope, share = (SILENT, None) if is_rectifier else (None, SATURATED)
    found = steep_range(function.call, settings, slope=slope, share=share)
    if function.saves == "self":
        return found
    low, high = function.call(torch.tensor([found.low, found.high], dtype=torch.float64), *settings).tolist()
    return SteepRange(low if math.isfinite(found.low) else -math.inf, high if math.isfinite(found.high) else math.inf)


def _flat_softmax(probabilities: Tensor | None, dim: Any, is_masked: bool) -> Flat | None:
    """Rows of which one entry takes nearly all; none that a mask has left a single entry."""
    if probabilities is None or probabilities.numel() == 0:
        return None
    last = probabilities.movedim(dim if dim < probabilities.ndim else dim - 2**64, -1)  # −1 is saved as 2⁶⁴ − 1
    largest = last.float().amax(-1).flatten()
    flat = (4 * largest * (1 - largest) < SATURATED) & (largest > 0.5)
    if is_masked:
        flat &= ((last > 0).sum(-1) > 1).flatten()
    return Flat("softmax", flat)


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
