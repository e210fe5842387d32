"""Curves along time and bars along depth, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Run, TimeSeries
from gradwatch.views.page.heatmap import labels
from gradwatch.views.phrases import number
from gradwatch.views.profile import Profile, lengths, pooled

__all__ = ["bars", "curves"]

WIDTH, LEFT, HEIGHT = 760, 80, 130
_POINTS = 700  # what a screen shows
_ROW = 18  # pixels of a layer
_TITLES = {"loss": "loss", "learning_rate": "learning rate"}


def curves(run: Run) -> str:
    """The total norm before and after clipping, and the loss, on axes of their own."""
    by_title: dict[str, list[TimeSeries]] = {}
    for name in sorted(run.curves, key=lambda name: ("clipped" in name, name)):
        which, _, optimizer = name.partition("/")
        if which != "learning_rate" or (run.curves[name].values != run.curves[name].values[0]).any():
            title = _TITLES.get(which, "total gradient norm") + (f", {optimizer}" if optimizer else "")
            by_title.setdefault(title, []).append(run.curves[name])
    return "".join(_chart(title, series) for title, series in sorted(by_title.items(), reverse=True))


def bars(profile: Profile) -> str:
    """A row for each layer, a column for each figure."""
    if not profile.names:
        return ""
    left, count = 190, len(profile.columns)
    width = (WIDTH - left) / count
    height = _ROW * (len(profile.names) + 1) + 8
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Figures of each layer">']
    for place, name in enumerate(labels(profile.names)):
        mark = ' class="sick"' if profile.sick[place] else ""
        sick = "● " if profile.sick[place] else ""
        middle = _ROW * (place + 2) - 5
        parts.append(f'<text{mark} x="{left - 8}" y="{middle}" text-anchor="end">{sick}{escape(name)}</text>')
    for column, (title, values) in enumerate(profile.columns.items()):
        parts += _column(left + column * width, width, title, values, profile.sick)
    return "".join([*parts, "</svg>"])


def _column(
    left: float, width: float, title: str, values: NDArray[np.floating], sick: NDArray[np.bool_]
) -> Iterator[str]:
    yield f'<text class="soft" x="{left:.0f}" y="13">{escape(title)}</text>'
    longest = width - 78  # what is left beside the number
    for place, (share, value) in enumerate(zip(np.nan_to_num(lengths(values)), values, strict=True)):
        top, length = _ROW * (place + 1) + 3, min(max(share, 0), 1) * longest
        mark = "bar sick" if sick[place] else "bar"
        shown = "–" if np.isnan(value) else number(value)
        yield f'<rect class="{mark}" x="{left:.0f}" y="{top}" width="{length:.1f}" height="{_ROW - 6}"/>'
        yield f'<text class="soft" x="{left + length + 5:.0f}" y="{top + 10}">{shown}</text>'


def _chart(title: str, series: Sequence[TimeSeries]) -> str:
    finite = np.concatenate([each.values[np.isfinite(each.values)] for each in series]).astype(float)
    if not len(finite):
        return f"<h3>{escape(title)}</h3><p>Not finite at any row.</p>"
    is_log = finite.min() > 0 and finite.max() > 20 * finite.min()
    low, high = np.log10([finite.min(), finite.max()]) if is_log else (finite.min(), finite.max())
    high = max(high, low + max(1e-12, abs(low) * 1e-6))
    steps = np.concatenate([each.steps for each in series])
    same = len(series) > 1 and np.array_equal(series[0].values, series[1].values, equal_nan=True)
    shown = series[:1] if same else series
    parts = [
        f'<h3>{escape(title)} <span class="soft">{"(logarithmic)" if is_log else ""}</span></h3>',
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 22}" role="img" aria-label="{escape(title)}">',
        f'<path class="axis" d="M{LEFT} 4V{HEIGHT}H{WIDTH}" fill="none"/>',
        f'<text class="soft" x="{LEFT - 6}" y="14" text-anchor="end">{number(finite.max())}</text>',
        f'<text class="soft" x="{LEFT - 6}" y="{HEIGHT}" text-anchor="end">{number(finite.min())}</text>',
        f'<text class="soft" x="{LEFT}" y="{HEIGHT + 16}">{steps.min()}</text>',
        f'<text class="soft" x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">{steps.max()}</text>',
    ]
    for index, each in enumerate(shown):
        parts.append(_curve(each, (int(steps.min()), int(steps.max())), (low, high), is_log, "second" if index else ""))
    key = ' <span style="color:var(--first)">before</span>, <span style="color:var(--second)">after clipping</span>'
    return "".join([*parts, "</svg>", f'<p class="soft">Norm{key}.</p>' if len(shown) > 1 else ""])


def _curve(series: TimeSeries, steps: tuple[int, int], extent: tuple[float, float], is_log: bool, which: str) -> str:
    """A line, and a cross on top wherever a value is not finite."""
    groups = min(_POINTS, len(series.values))
    starts = np.arange(groups) * len(series.values) // groups
    values = pooled(np.where(np.isfinite(series.values), series.values, np.inf).astype(float), starts)
    across = LEFT + (series.steps[starts] - steps[0]) / max(1, steps[1] - steps[0]) * (WIDTH - LEFT)
    heights = np.log10(np.where(values > 0, values, np.nan)) if is_log else values
    down = HEIGHT - (heights - extent[0]) / (extent[1] - extent[0]) * (HEIGHT - 12)
    path, pen = [], "M"
    for x, y in zip(across.tolist(), down.tolist(), strict=True):
        finite = np.isfinite(y)
        path.append(f"{pen}{x:.1f} {y:.1f}" + ("h.1" if pen == "M" else "") if finite else "")
        pen = "L" if finite else "M"
    lost = "".join(f"M{x:.1f} 1l4 4m-4 0l4-4" for x in across[~np.isfinite(values)].tolist())
    crosses = f'<path d="{lost}" stroke="var(--error)"><title>not finite</title></path>' if lost else ""
    return f'<path class="curve {which}" d="{"".join(path)}"/>{crosses}'
