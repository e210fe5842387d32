"""Pool many rows into as many cells as there are pixels, the largest of each: a spike of one step shows at any zoom.

A row at a step holds what happened since the row before, so it stands for the steps from there up to its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cells", "cells", "count", "largest", "smallest"]


@dataclass(frozen=True)
class Cells:
    """C cells side by side, each a stretch of rows.

    Attributes:
        first, last: the rows of all cells: ``first`` ≤ row < ``last``.
        starts: (C,) the first row of each.
        edges: (C + 1,) steps; cell c stands for edges[c] ≤ step < edges[c + 1].
    """

    first: int
    last: int
    starts: NDArray[np.int64]
    edges: NDArray[np.int64]


def cells(steps: NDArray[np.int64], start: int, end: int, width: int) -> Cells:
    """Return at most ``width`` cells for the rows that stand for steps from ``start`` to ``end``, both included."""
    first = int(np.searchsorted(steps, start))
    last = min(int(np.searchsorted(steps, end)) + 1, len(steps))
    rows = np.arange(first, last)
    if len(rows) > width:
        bins = (steps[first:last] - steps[first]) * width // (int(steps[last - 1]) - int(steps[first]) + 1)
        rows = rows[np.flatnonzero(np.diff(bins, prepend=-1))]
    before = np.append(steps[:1] - 1, steps)  # the first row stands for its own step alone
    edges = before[np.append(rows, last)] + 1 if len(rows) else np.zeros(1, dtype=np.int64)
    return Cells(first, last, rows, edges)


def largest(values: NDArray[np.float32], into: Cells) -> NDArray[np.float32]:
    """Return the largest of each cell, (S, …) → (C, …); NaN only where all are."""
    return _reduced(np.fmax, values, into)


def smallest(values: NDArray[np.float32], into: Cells) -> NDArray[np.float32]:
    """Return the smallest of each cell, (S, …) → (C, …); NaN only where all are."""
    return _reduced(np.fmin, values, into)


def count(steps: NDArray[np.int64], counts: NDArray[np.floating], into: Cells) -> list[int]:
    """Return how many of ``counts``, taken at ``steps``, fall into each cell."""
    summed = np.append(0, np.cumsum(np.nan_to_num(counts, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 2**31)))
    return np.diff(summed[np.searchsorted(steps, into.edges)]).astype(np.int64).tolist()


def _reduced(function: np.ufunc, values: NDArray[np.float32], into: Cells) -> NDArray[np.float32]:
    if not len(into.starts):
        return values[:0]
    if len(into.starts) == into.last - into.first:
        return values[into.first : into.last]  # a cell a row: nothing to reduce
    pooled = np.empty((len(into.starts), *values.shape[1:]), values.dtype)
    ends = np.append(into.starts[1:], into.last)
    for cell, (start, end) in enumerate(zip(into.starts, ends, strict=True)):  # reduceat takes ten times as long
        function.reduce(values[start:end], axis=0, out=pooled[cell, ...])
    return pooled
