"""Find what is unusual at a row: the layer whose norm leaps furthest from one row to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.format import NORMS
from gradwatch.event_files.run import Floats
from gradwatch.tensorboard_plugin.cached_run import CachedRun

__all__ = ["leaps_of"]

_ROWS_AT_ONCE = 512  # keeps what is computed on the way small: 2 MB for 1,000 layers


def leaps_of(run: CachedRun, steps: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (S,) the largest factor by which a layer's highest norm rises or falls since the row before, at ``steps``.

    It is Inf where a gradient is not finite, and NaN at rows without norms. Zeros and gaps are no leaps.
    """
    series = run.series("grad_norm")
    leaps = run.derived("leaps", lambda: _leaps(series.values[NORMS.index("highest")]))
    found = np.full(len(steps), np.nan, dtype=np.float32)
    _, here, there = np.intersect1d(steps, series.steps, assume_unique=True, return_indices=True)
    found[here] = leaps[there]
    return found


def _leaps(highest: Floats) -> NDArray[np.float32]:
    found = np.ones(len(highest), dtype=np.float32)
    for start in range(0, len(highest), _ROWS_AT_ONCE):
        rows = highest[max(0, start - 1) : start + _ROWS_AT_ONCE]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.where(np.isfinite(rows) & (rows > 0), rows, np.nan))
        leaps = np.fmax.reduce(np.abs(np.diff(logs, axis=0)), axis=1, initial=0)
        with np.errstate(over="ignore"):
            found[start + (start == 0) : start + _ROWS_AT_ONCE] = np.exp(leaps)
    found[np.isinf(highest).any(axis=1)] = np.inf
    return found
