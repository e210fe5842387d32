"""Say in one line what the latest row of a run holds."""

from __future__ import annotations

import numpy as np

from gradwatch.event_files.run import Run
from gradwatch.views.phrases import number
from gradwatch.views.terminal import curves_of

__all__ = ["row_line"]


def row_line(run: Run) -> str:
    """Return the step of the last row, and the latest figures of the whole run."""
    figures = [f"{title} {_figure(series.values[-1])}" for title, series in curves_of(run, with_flat_rates=True)]
    return f"step {run.steps[-1]}: {', '.join(figures)}"


def _figure(value: float) -> str:
    return number(value) if np.isfinite(value) else "NaN or Inf"
