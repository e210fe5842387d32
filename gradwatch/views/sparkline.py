"""Draw a curve in one line of a terminal."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from gradwatch.event_files.run import Floats, TimeSeries
from gradwatch.views.time_columns import largest_in_columns

__all__ = ["sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(series: TimeSeries, most: int, style: str = "cyan") -> Text:
    """Draw the largest of neighbours, by logarithm where all are positive; ✗ where one is not finite.

    Args:
        series: (S,) values; NaN is not finite.
        most: columns.
        style: of what is finite.
    """
    if not len(series.steps):
        return Text("")
    known = np.where(np.isfinite(series.values), series.values, np.inf).astype(float)
    highest = largest_in_columns(series.steps, known, most)
    levels = _levels(highest)
    return Text.assemble(
        *(("✗", "red") if not np.isfinite(level) else (_BLOCKS[int(level)], style) for level in levels)
    )


def _levels(highest: Floats) -> Floats:
    """Return the height of each as a whole number from 0 to 7; Inf for Inf."""
    finite = highest[np.isfinite(highest)]
    if not len(finite):
        return highest
    if finite.min() > 0:
        highest, finite = np.log10(highest), np.log10(finite)
    low, high = finite.min(), finite.max()
    levels: Floats = np.rint((highest - low) / max(high - low, 1e-9) * (len(_BLOCKS) - 1))
    return levels
