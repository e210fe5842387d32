"""Find the operation between a loss and the weights that passes no gradient at all.

It is asked only after an update whose gradients were exactly zero throughout, before the next backward pass frees what
the graph has saved. Then every way from the loss to the weights is shut, and the shut operation that is nearest the
loss says why: a product with 0, values that all lie beyond the limits of a clamp, a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwatch.findings import Clue
from gradwatch.hooks.graph import operation_of, saved_by, upstream_nodes

__all__ = ["FlatOperation", "flat_operation"]

FURTHEST = 64
"""Nodes that are looked at from the loss on."""


@dataclass(frozen=True)
class FlatOperation:
    """An operation whose derivative is 0 for every entry.

    Attributes:
        name: as torch's functions are called: ``"clamp"``.
        words: what makes it flat, to be put after its name.
        clue: that remedies depend on.
    """

    name: str
    words: str
    clue: Clue


def flat_operation(loss: Any) -> FlatOperation | None:
    """Return the flat operation nearest to a loss, by the loss's node; None where none is seen. Waits for the device.

    Examples:
        >>> flat_operation((3 * torch.ones(2, requires_grad=True)).clamp(0, 1).sum().grad_fn).name
        'clamp'
    """
    for node in reversed(upstream_nodes([loss], "", FURTHEST)):
        found = _KINDS.get(operation_of(node), _not_flat)(node)
        if found is not None:
            return found
    return None


def _not_flat(node: Any) -> FlatOperation | None:
    return None


def _product(node: Any) -> FlatOperation | None:
    """A product passes nothing to a factor whose other factors are all 0; a factor that needs no gradient is none."""
    edges = [edge for edge, _ in node.next_functions]
    others = (saved_by(node, "other"), saved_by(node, "self"))
    reached = [(other, edge) for other, edge in zip(others, edges, strict=False) if edge is not None]
    if not reached or not all(_is_zero(other) for other, _ in reached):
        return None
    return FlatOperation("mul", "its other factor is 0", "factor of 0")


def _limited(low: str, high: str) -> Callable[[Any], FlatOperation | None]:
    """Return the rule of an operation that passes what lies between two limits, under the names that nodes save."""

    def rule(node: Any) -> FlatOperation | None:
        given = saved_by(node, "self")
        if not isinstance(given, Tensor) or not given.numel():
            return None
        least, most = (_limit(saved_by(node, name)) if name else None for name in (low, high))
        below = torch.zeros_like(given, dtype=torch.bool) if least is None else given < least
        above = torch.zeros_like(given, dtype=torch.bool) if most is None else given > most
        if not bool((below | above).all()):
            return None
        limits = " and ".join(f"{each:.3g}" for each in (least, most) if isinstance(each, float))
        place = "lies beyond its limits" + (f" ({limits})" if limits else "")
        return FlatOperation(_spoken(node), f"all that it is given {place}", "flat operation")

    return rule


def _rectified(node: Any) -> FlatOperation | None:
    result = saved_by(node, "result")
    if not isinstance(result, Tensor) or not result.numel() or bool((result > 0).any()):
        return None
    return FlatOperation("relu", "all that it is given is 0 or less", "flat operation")


def _squashed(slope: Callable[[Tensor], Tensor]) -> Callable[[Any], FlatOperation | None]:
    def rule(node: Any) -> FlatOperation | None:
        result = saved_by(node, "result")
        if not isinstance(result, Tensor) or not result.numel() or bool((slope(result) != 0).any()):
            return None
        return FlatOperation(_spoken(node), "all that it is given lies so far out that it is flat", "flat operation")

    return rule


def _stepped(node: Any) -> FlatOperation | None:
    return FlatOperation(_spoken(node), "it is made of steps, whose slope is 0 everywhere", "flat operation")


def _picked(node: Any) -> FlatOperation | None:
    """A choice passes nothing where its condition picks the side that needs no gradient, for every entry."""
    condition = saved_by(node, "condition")
    edges = [edge for edge, _ in node.next_functions]
    if not isinstance(condition, Tensor) or len(edges) < 2 or (edges[-2] is None) == (edges[-1] is None):
        return None
    unpicked = ~condition if edges[-1] is None else condition
    return (
        FlatOperation("where", "it takes every entry from elsewhere", "factor of 0") if bool(unpicked.all()) else None
    )


def _masked(node: Any) -> FlatOperation | None:
    mask = saved_by(node, "mask")
    if not isinstance(mask, Tensor) or not bool(mask.all()):
        return None
    return FlatOperation("masked_fill", "its mask covers every entry", "factor of 0")


def _is_zero(other: Any) -> bool:
    if isinstance(other, Tensor):
        return other.numel() > 0 and not bool(other.any())
    return isinstance(other, int | float) and other == 0


def _limit(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value if isinstance(value, Tensor) else None


def _spoken(node: Any) -> str:
    """Return an operation as users write it."""
    name = operation_of(node)
    return {"clampmin": "clamp", "clampmax": "clamp"}.get(name, name)


_KINDS: Mapping[str, Callable[[Any], FlatOperation | None]] = {
    "mul": _product,
    "clamp": _limited("min", "max"),
    "clampmin": _limited("min", ""),
    "clampmax": _limited("", "max"),
    "hardtanh": _limited("min_val", "max_val"),
    "relu": _rectified,
    "sigmoid": _squashed(lambda y: y * (1 - y)),
    "tanh": _squashed(lambda y: 1 - y * y),
    "sign": _stepped,
    "round": _stepped,
    "floor": _stepped,
    "ceil": _stepped,
    "trunc": _stepped,
    "where": _picked,
    "maskedfill": _masked,
}
