"""List the statistics that the heat map can show: each is a row of a series, times a factor for each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwatch.event_files import format
from gradwatch.event_files.run import Floats
from gradwatch.tensorboard_plugin.cached_run import CachedRun

__all__ = ["STATISTICS", "Statistic", "scale_of"]

_SAMPLED_STEPS = 2_000  # for a median or a colour scale; all of 20,000 steps change neither visibly
_OUTER_SHARE = 0.5  # percent of the values, at either end, beyond the colour scale: one spike must not flatten it


@dataclass(frozen=True)
class Statistic:
    """A statistic that the heat map can show.

    Attributes:
        series: its tag, without the prefix.
        label: what people read.
        is_share: from 0 to 1 on a linear scale; otherwise logarithmic.
        factor: what each layer's values are multiplied with, None for nothing.
    """

    series: str
    label: str
    is_share: bool = False
    factor: Callable[[CachedRun], Floats] | None = None

    @property
    def row(self) -> int:
        """Return the index of the row of the series that is pooled by maximum."""
        return format.NORMS.index("highest") if self.series == "grad_norm" else 0

    def factors(self, run: CachedRun) -> Floats:
        """Return (P,) float32."""
        ones = np.ones(len(run.table.layers))
        with np.errstate(over="ignore"):
            return (ones if self.factor is None else self.factor(run)).astype(np.float32)

    def as_dict(self, name: str) -> dict[str, Any]:
        """Return what the front end shows of it."""
        return {"name": name, "label": self.label, "isShare": self.is_share}


def _per_entry(run: CachedRun) -> Floats:
    return 1 / np.sqrt(np.maximum(run.table.size, 1))


def _per_median(run: CachedRun) -> Floats:
    """Return one over each layer's own median norm; NaN where it has none, or none but 0."""
    norms = _some(run.series("grad_norm").values[format.NORMS.index("grad_norm")]).astype(float)
    norms[~np.isfinite(norms)] = np.nan
    medians = np.full(norms.shape[1], np.nan)
    known = ~np.isnan(norms).all(axis=0)
    medians[known] = np.nanmedian(norms[:, known], axis=0)
    return np.divide(1.0, medians, out=np.full_like(medians, np.nan), where=medians > 0)


STATISTICS = {
    "grad_norm": Statistic("grad_norm", "Gradient norm"),
    "grad_rms": Statistic("grad_norm", "Gradient RMS per entry", factor=_per_entry),
    "grad_ratio": Statistic("grad_norm", "Gradient norm ÷ the layer's own median", factor=_per_median),
    "update_ratio": Statistic("update_ratio", "Update ratio"),
    "weight_norm": Statistic("weight_norm", "Weight norm"),
    "activation_rms": Statistic("activation_rms", "Activation RMS"),
    "dead_share": Statistic("dead_share", "Dead units", is_share=True),
    "saturated_share": Statistic("saturated_share", "Saturated entries", is_share=True),
}


def scale_of(statistic: Statistic, run: CachedRun) -> tuple[float, float] | None:
    """Return (low, high) of all but the outermost values, for a colour scale; None where no value is positive."""
    if statistic.is_share:
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        values = _some(run.series(statistic.series).values[statistic.row]) * statistic.factors(run)
        shown = values[np.isfinite(values) & (values > 0)]
    if not len(shown):
        return None
    low, high = np.percentile(shown, [_OUTER_SHARE, 100 - _OUTER_SHARE]).tolist()
    return low, high


def _some(values: Floats) -> Floats:
    """Return at most ``_SAMPLED_STEPS`` of the rows, evenly spaced."""
    return values[:: -(-len(values) // _SAMPLED_STEPS)]
