"""List the statistics that the heat map can show: each is a row of a series, times a factor for each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwatch.event_files import format
from gradwatch.event_files.run import Floats
from gradwatch.tensorboard_plugin.cached_run import CachedRun

__all__ = ["STATISTICS", "Statistic", "levels_of", "scales_of"]

_SAMPLED_STEPS = 2_000  # for a median or a colour scale; all of 20,000 steps change neither visibly
_OUTER_SHARE = 0.5  # percent of the values, at either end, beyond the colour scale: one spike must not flatten it
_CLAMPED_SHARE = 5  # percent beyond a clamped scale, which shows small differences
_LEAST_RATIO = {_OUTER_SHARE: 10.0, _CLAMPED_SHARE: 3.0}  # at the end of a scale of ratios: noise must stay pale


@dataclass(frozen=True)
class Statistic:
    """A statistic that the heat map can show.

    Attributes:
        series: its tag, without the prefix.
        label: what people read.
        is_share: from 0 to 1 on a linear scale; otherwise logarithmic.
        is_ratio: 1 is normal; the scale is centred there.
        factor: what each layer's values are multiplied with, None for nothing.
    """

    series: str
    label: str
    is_share: bool = False
    is_ratio: bool = False
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
        return {"name": name, "label": self.label, "isShare": self.is_share, "isRatio": self.is_ratio}


def _per_entry(run: CachedRun) -> Floats:
    return 1 / np.sqrt(np.maximum(run.table.size, 1))


def levels_of(run: CachedRun) -> Floats:
    """Return (P,) each layer's own median norm above 0, its level; NaN where it has none."""
    return run.derived("levels", lambda: _levels(run.series("grad_norm").values[format.NORMS.index("grad_norm")]))


def _levels(norms: Floats) -> Floats:
    some = _some(norms).astype(float)
    is_known = np.isfinite(some) & (some > 0)  # a layer that is rarely reached has the level of the steps that reach it
    some[~is_known] = np.nan
    ordered, count = np.sort(some, axis=0), is_known.sum(axis=0)  # NaN last; np.nanmedian takes twice as long
    below, above = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(some) - 1)
    columns = np.arange(some.shape[1])
    return (ordered[below, columns] + ordered[above, columns]) / 2


def _per_level(run: CachedRun) -> Floats:
    """Return one over each layer's level; 1 where it has none, so that a norm of 0 remains a measured 0."""
    levels = levels_of(run)
    return np.divide(1.0, levels, out=np.ones_like(levels), where=levels > 0)


STATISTICS = {
    "grad_ratio": Statistic("grad_norm", "Gradient norm ÷ own median", is_ratio=True, factor=_per_level),
    "grad_norm": Statistic("grad_norm", "Gradient norm"),
    "grad_rms": Statistic("grad_norm", "Gradient RMS per entry", factor=_per_entry),
    "update_ratio": Statistic("update_ratio", "Update ratio"),
    "weight_norm": Statistic("weight_norm", "Weight norm"),
    "activation_rms": Statistic("activation_rms", "Activation RMS"),
    "dead_share": Statistic("dead_share", "Dead units", is_share=True),
    "saturated_share": Statistic("saturated_share", "Saturated entries", is_share=True),
}


def scales_of(statistic: Statistic, run: CachedRun) -> dict[str, tuple[float, float] | None]:
    """Return (low, high) of a colour scale, and of one that is clamped; None where no value is positive."""
    if statistic.is_share:
        return {"scale": (0.0, 1.0), "clamp": (0.0, 1.0)}
    return run.derived(f"scales of {statistic.label}", lambda: _scales(statistic, run))


def _scales(statistic: Statistic, run: CachedRun) -> dict[str, tuple[float, float] | None]:
    with np.errstate(over="ignore", invalid="ignore"):
        values = _some(run.series(statistic.series).values[statistic.row]) * statistic.factors(run)
        shown = values[np.isfinite(values) & (values > 0)]
    beyond = {"scale": _OUTER_SHARE, "clamp": _CLAMPED_SHARE}
    return {name: _scale(statistic, shown, share) if len(shown) else None for name, share in beyond.items()}


def _scale(statistic: Statistic, shown: Floats, beyond: float) -> tuple[float, float]:
    low, high = np.percentile(shown, [beyond, 100 - beyond]).tolist()
    if not statistic.is_ratio:
        return low, high
    furthest = max(high, 1 / low, _LEAST_RATIO[beyond])
    return 1 / furthest, furthest


def _some(values: Floats) -> Floats:
    """Return at most ``_SAMPLED_STEPS`` of the rows, evenly spaced."""
    return values[:: -(-len(values) // _SAMPLED_STEPS)]
