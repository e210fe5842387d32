"""Lay out curves along time and bars along depth, for the template ``pictures.html.j2``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Floats, Run, TimeSeries
from gradwatch.views.names import labels
from gradwatch.views.page.heatmap import LEFT, WIDTH, across
from gradwatch.views.phrases import number
from gradwatch.views.profile import Profile, lengths, pooled

__all__ = ["BarTable", "Chart", "bars_of", "charts_of"]

HEIGHT = 64
_BARS_LEFT = 190  # pixels for the names of layers
_POINTS = 700  # what a screen shows
_ROW = 18  # pixels of a layer
_TITLES = {  # in their order on the page; both totals are in one chart
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm_total": "total gradient norm",
    "grad_norm_clipped_total": "total gradient norm",
}


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis.

    Attributes:
        title: what is drawn.
        remark: what else is to be known of it.
        width, height, left: pixels; the axis begins at ``left``.
        low, high: the ends of its own axis; None if no value is finite.
        curves: SVG paths.
        dots: an SVG path of a dot for each value that is not finite, for each curve.
    """

    title: str
    remark: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    low: str | None = None
    high: str | None = None
    curves: Sequence[str] = ()
    dots: Sequence[str] = ()


@dataclass(frozen=True)
class _Bar:
    x: float
    y: int
    length: float
    figure: str
    is_sick: bool


@dataclass(frozen=True)
class _BarColumn:
    title: str
    x: float
    bars: Sequence[_Bar]


@dataclass(frozen=True)
class _BarName:
    text: str
    y: int
    is_sick: bool


@dataclass(frozen=True)
class BarTable:
    """A row for each layer, a column for each figure, in pixels."""

    width: int
    height: int
    left: int
    thickness: int
    names: Sequence[_BarName]
    columns: Sequence[_BarColumn]


def charts_of(run: Run) -> list[Chart]:
    """Lay out total norms, the loss and the learning rate over the steps of the run's picture, by optimizer."""
    by_chart: dict[tuple[str, str], list[TimeSeries]] = {}
    for figure, title in _TITLES.items():
        for name, series in run.curves.items():
            which, _, optimizer = name.partition("/")
            if which == figure:
                by_chart.setdefault((title, optimizer), []).append(series)
    return [_chart(run, title, optimizer, series) for (title, optimizer), series in by_chart.items()]


def bars_of(profile: Profile) -> BarTable:
    """Lay out the figures of all layers."""
    names = [
        _BarName(text, _ROW * (place + 2) - 5, bool(profile.sick[place]))
        for place, text in enumerate(labels(profile.names))
    ]
    width = (WIDTH - _BARS_LEFT) / max(1, len(profile.columns))
    columns = [
        _BarColumn(title, _BARS_LEFT + place * width, _bars(_BARS_LEFT + place * width, width, values, profile.sick))
        for place, (title, values) in enumerate(profile.columns.items())
    ]
    return BarTable(WIDTH, _ROW * (len(names) + 1) + 8, _BARS_LEFT, _ROW - 6, names, columns)


def _bars(left: float, width: float, values: Floats, sick: NDArray[np.bool_]) -> list[_Bar]:
    longest = width - 78  # what is left beside the number
    shares = np.nan_to_num(lengths(values)).clip(0, 1)
    figures = ["–" if np.isnan(value) else number(value) for value in values]
    return [
        _Bar(left, _ROW * (place + 1) + 3, float(shares[place]) * longest, figure, bool(sick[place]))
        for place, figure in enumerate(figures)
    ]


def _chart(run: Run, title: str, optimizer: str, series: Sequence[TimeSeries]) -> Chart:
    finite = np.concatenate([each.values[np.isfinite(each.values)] for each in series]).astype(float)
    if not len(finite):
        return Chart(title, ", ".join(filter(None, (optimizer, "never finite"))))
    is_log = bool(finite.min() > 0 and finite.max() > 20 * finite.min())
    extent = _extent(finite, is_log)
    paths = [_paths(each, run.steps, extent, is_log) for each in _distinct(series)]
    return Chart(
        title=title,
        remark=", ".join(filter(None, (optimizer, "logarithmic" if is_log else ""))),
        low=number(finite.min()),
        high=number(finite.max()),
        curves=[curve for curve, _ in paths],
        dots=[dots for _, dots in paths if dots],
    )


def _distinct(series: Sequence[TimeSeries]) -> Sequence[TimeSeries]:
    """Return only the first of two equal curves: where nothing is clipped, the norms before and after are equal."""
    is_same = len(series) > 1 and np.array_equal(series[0].values, series[1].values, equal_nan=True)
    return series[:1] if is_same else series


def _extent(finite: Floats, is_log: bool) -> tuple[float, float]:
    """Return both ends of the axis, which are never the same; those of a logarithmic axis are decades."""
    low, high = np.log10([finite.min(), finite.max()]) if is_log else (finite.min(), finite.max())
    return low, max(high, low + max(1e-12, abs(low) * 1e-6))


def _paths(series: TimeSeries, axis: NDArray[np.int64], extent: tuple[float, float], is_log: bool) -> tuple[str, str]:
    """Return the path of a curve, and that of the dots above it."""
    groups = min(_POINTS, len(series.values))
    starts = np.arange(groups) * len(series.values) // groups
    values = pooled(np.where(np.isfinite(series.values), series.values, np.inf).astype(float), starts)
    right = [across(axis, step) for step in series.steps[starts].tolist()]
    heights = np.log10(np.where(values > 0, values, np.nan)) if is_log else values
    down = HEIGHT - (heights - extent[0]) / (extent[1] - extent[0]) * (HEIGHT - 12)
    dots = "".join(f"M{x:.1f} 5h.01" for x in np.array(right)[~np.isfinite(values)].tolist())
    return "".join(_strokes(np.array(right), down)), dots


def _strokes(right: Floats, down: Floats) -> Iterator[str]:
    """Yield the parts of a path; the pen is lifted over values that are not finite."""
    is_down = False
    for x, y in zip(right.tolist(), down.tolist(), strict=True):
        is_finite = bool(np.isfinite(y))
        if is_finite:
            yield f"L{x:.1f} {y:.1f}" if is_down else f"M{x:.1f} {y:.1f}h.1"
        is_down = is_finite
