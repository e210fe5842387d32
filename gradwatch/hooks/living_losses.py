"""Find losses that were computed and left out: no backward pass began at them, or at what they were added to.

A loop that forgets to add its second loss, or adds it as a number, still holds it when it updates. A loss is a single
number with a graph in which something measures an error: an operation of torch's own losses, or a sum or mean of
squares, distances or logarithms. A number that a model has returned (a value, a score) is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from gradwatch import _torch
from gradwatch.hooks.graph import LEAF, inputs_first, operation_of
from gradwatch.living_objects import living

__all__ = ["columns_of_living_losses"]

MOST_LOSSES = 64
"""Losses whose graphs are walked: a program that keeps all of them has none that is new."""

SUMS = frozenset(("sum", "mean", "norm", "linalgvectornorm", "dot"))
ERRORS = frozenset(("pow", "abs", "log", "logsoftmax", "logsigmoid", "logsumexp", "linalgvectornorm", "norm"))


def columns_of_living_losses(
    column_of: Callable[[Tensor], int | None], wanted: set[int], since: int
) -> tuple[set[int], int]:
    """Return those of the columns ``wanted`` that a new loss depends on. It takes some 50 ms: ask rarely.

    Args:
        column_of: returns the column of a parameter.
        wanted: columns of parameters without a gradient.
        since: what this returned at the look before; losses that were there already are not new.

    Returns:
        The columns, and the sequence number of the last number that was computed.
    """
    found: set[int] = set()
    roots = _newest(since)
    for root in roots:
        nodes = inputs_first(root)
        if nodes is not None:
            found |= _reached(nodes, column_of, wanted)
    return found, max([since, *map(_torch.sequence_number, roots)])


def _newest(since: int) -> Sequence[Any]:
    """Return the roots of the graphs of the last single numbers that were computed."""
    roots = {tensor.grad_fn for tensor in _living_numbers()}
    new = [root for root in roots if root is not None and _torch.sequence_number(root) > since]
    return sorted(new, key=_torch.sequence_number)[-MOST_LOSSES:]


def _living_numbers() -> Iterator[Tensor]:
    for tensor in living(Tensor):
        if type(tensor) is Tensor and tensor.ndim == 0 and tensor.is_floating_point():  # no subclasses
            yield tensor


def _reached(nodes: Sequence[Any], column_of: Callable[[Tensor], int | None], wanted: set[int]) -> set[int]:
    """Return the wanted columns that a graph leads to, if it is that of a loss of them."""
    leads_to: dict[Any, set[int]] = {}
    operations: set[str] = set()
    for node in nodes:
        own = column_of(node.variable) if node.name() == LEAF else None
        columns: set[int] = set() if own is None else {own} & wanted
        for following, _ in node.next_functions:
            columns |= leads_to.get(following, set())
        leads_to[node] = columns
        if columns:
            operations.add(operation_of(node))
    return leads_to[nodes[-1]] if _measure_an_error(operations) else set()


def _measure_an_error(operations: set[str]) -> bool:
    if any("loss" in name or "crossentropy" in name for name in operations):
        return True
    return bool(SUMS & operations) and bool(ERRORS & operations)
