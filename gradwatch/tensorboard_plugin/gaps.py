"""Fill what the rows of a run leave open, for pictures: figures between rows, and figures of what is not finite."""

from __future__ import annotations

import numpy as np

from gradwatch.event_files.format import NORMS
from gradwatch.event_files.run import LayerSeries, Totals

__all__ = ["held_between_rows", "infinite_where_the_gradient_is"]


def held_between_rows(series: LayerSeries, totals: Totals) -> LayerSeries:
    """Return ``series`` with the layers of one optimizer alone filled at the rows of the others.

    A row says what happened since the same optimizer's last row, so its layers keep their figures in between.
    """
    optimizers = totals.values["optimizer"]
    if len(np.unique(optimizers)) < 2:
        return series
    steps, values = series.steps, series.values
    owner = np.full(len(steps), np.nan)
    at = np.searchsorted(totals.steps, steps).clip(max=len(totals.steps) - 1)
    is_known = totals.steps[at] == steps
    owner[is_known] = optimizers[at][is_known]
    seen = ~np.isnan(values[0])
    for optimizer in np.unique(owner[~np.isnan(owner)]):
        rows = np.flatnonzero(owner == optimizer)
        alone = seen[rows].any(axis=0) & ~seen[owner != optimizer].any(axis=0)
        following = np.searchsorted(rows, np.arange(len(steps)))
        to = np.flatnonzero(following < len(rows))
        values[:, to[:, None], np.flatnonzero(alone)] = values[:, rows[following[to]]][..., alone]
    return series


def infinite_where_the_gradient_is(figures: LayerSeries, norms: LayerSeries) -> LayerSeries:
    """Return ``figures`` with Inf for those that were measured and are NaN.

    NaN can mean "not measured" or "the value is NaN", as the norm of a NaN weight is. The second is taken from the
    gradient: its highest norm is Inf there.
    """
    _, here, there = np.intersect1d(figures.steps, norms.steps, assume_unique=True, return_indices=True)
    highest = norms.values[NORMS.index("highest")]
    values = figures.values
    is_measured = np.isfinite(values).any(axis=(0, 1))
    is_sick = np.isnan(values[:, here]) & (np.isinf(highest[there]) & is_measured)
    values[:, here] = np.where(is_sick, np.float32(np.inf), values[:, here])
    return figures
