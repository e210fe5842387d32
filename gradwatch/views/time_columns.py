"""Put rows of a run into columns of equal spans of steps: pictures, curves and sparklines share one axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Floats

__all__ = ["largest_in_columns"]


def largest_in_columns(steps: NDArray[np.int64], values: Floats, most: int) -> Floats:
    """Return (C, …) the largest of each of C ≤ ``most`` columns, between the first and the last of ``steps``.

    A row says what happened since the row before, so a column without a row of its own has the next one. Inf is the
    largest, and NaN is nothing.

    Args:
        steps: (S,) at least one, strictly rising.
        values: (S, …).
        most: columns; fewer where there are not as many steps.
    """
    first, last = int(steps[0]), int(steps[-1])
    count = min(most, last - first + 1)
    edges = first + np.arange(count + 1) * (last + 1 - first) / count
    begins = np.searchsorted(steps, edges[:-1])
    ends = np.maximum(np.searchsorted(steps, edges[1:]), begins + 1)
    return np.stack(
        [np.fmax.reduce(values[begin:end]) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    )
