"""The depth × time picture with its axes and findings, as SVG."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Run
from gradwatch.findings import Finding
from gradwatch.views.phrases import layer_of, number, since
from gradwatch.views.picture import NOT_FINITE, VIRIDIS, Scale, picture_of, png

__all__ = ["heatmap", "labels", "legend"]

WIDTH, LEFT, TOP, BOTTOM = 760, 170, 6, 40
_TALLEST, _LOWEST, _LAYER = 560, 130, 14  # pixels
_LABEL = 14  # pixels between two names, at least
_NARROWEST = 4  # pixels: an outline of one step is seen


def heatmap(run: Run, scale: Scale) -> str:
    """Layers from input (top) to output, steps from left to right; findings outlined and numbered as in the list."""
    height = int(np.clip(_LAYER * len(run.layers), _LOWEST, _TALLEST))
    pixels = base64.b64encode(png(picture_of(run, scale))).decode()
    parts = [
        f'<svg viewBox="0 {-TOP} {WIDTH} {TOP + height + BOTTOM}" role="img" aria-label="Gradient norms along time">',
        f'<image class="pixels" x="{LEFT}" y="0" width="{WIDTH - LEFT}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{pixels}"/>',
        *_names(run, height),
        *_steps(run, height),
        *_outlines(run, height),
        "</svg>",
    ]
    return "".join(parts)


def legend(scale: Scale) -> str:
    """What the colours mean."""
    return (
        f'<p class="soft">Norm of each layer’s gradient: <span class="key">≤ {number(10**scale.low)} '
        f'<span class="scale" style="background:linear-gradient(90deg,{",".join(VIRIDIS)})"></span> '
        f"≥ {number(10**scale.high)};</span> "
        f'<span class="key"><span class="swatch" style="background:{NOT_FINITE}"></span> not finite (NaN, Inf);</span> '
        '<span class="key"><span class="swatch"></span> not measured.</span> Numbered outlines are findings. Where '
        "steps or layers share a pixel, the largest shows.</p>"
    )


def labels(names: Sequence[str], most: int = 24) -> list[str]:
    """Names that fit: without the modules that all are in, where one is too long, and then without their middle."""
    shared = 0
    if any(len(name) > most for name in names):
        shared = os.path.commonprefix(list(names)).rfind(".") + 1  # noqa: RUF071 (names, not paths)
    cut = ["…" + name[shared:] if shared else name for name in names]
    half = (most - 1) // 2
    return [name if len(name) <= most else f"{name[:half]}…{name[-half:]}" for name in cut]


def _names(run: Run, height: int) -> Iterator[str]:
    count = len(run.layers)
    every = -(-count * _LABEL // height) if count else 1
    sick, shown = run.sick, labels(run.layers)
    for place in range(0, count, every):
        column = run.order[place]
        middle = (place + 0.5) * height / count + 4
        mark = ' class="sick"' if sick[column] else ""
        yield f'<text{mark} x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(shown[column])}</text>'


def _steps(run: Run, height: int) -> Iterator[str]:
    steps = run.steps
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if len(steps) > 4 else (0.0, 1.0):
        at = LEFT + share * (WIDTH - LEFT)
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        step = steps[round(share * (len(steps) - 1))] if len(steps) else ""
        yield f'<text class="soft" x="{at:.0f}" y="{height + 16}" text-anchor="{anchor}">{step}</text>'
    yield f'<text class="soft" x="{(LEFT + WIDTH) / 2}" y="{height + 34}" text-anchor="middle">step</text>'


def _outlines(run: Run, height: int) -> Iterator[str]:
    for index, (finding, ended) in enumerate(zip(run.findings, run.ended, strict=True), start=1):
        if ended and len(run.steps) and finding.last_step < run.steps[0]:
            continue  # over before the picture begins
        left, right = _across(run.steps, finding, ended)
        words = escape(f"{index}. {finding.kind} in {layer_of(finding)}, {since(finding, ended)}")
        for first, last in _stretches(_places(run, finding)):
            top, bottom = (place * height / len(run.layers) for place in (first, last + 1))
            box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
            yield (
                f'<g><title>{words}</title><rect class="halo" {box}/><rect class="outline" {box}/>'
                f'<rect {box} fill="transparent"/>'
                f'<text class="mark" x="{left + 5:.1f}" y="{top + 13:.1f}">{index}</text></g>'
            )


def _across(steps: NDArray[np.int64], finding: Finding, ended: bool) -> tuple[float, float]:
    """Left and right edge, from the row that first tells of the finding."""
    if not len(steps):
        return LEFT, WIDTH
    first = int(np.searchsorted(steps, finding.step))
    last = int(np.searchsorted(steps, finding.last_step)) + 1 if ended else len(steps)
    left, right = (LEFT + min(place, len(steps)) / len(steps) * (WIDTH - LEFT) for place in (first, last))
    left = min(left, WIDTH - _NARROWEST)
    return left, max(right, left + _NARROWEST)


def _places(run: Run, finding: Finding) -> list[int]:
    """Of a finding of the whole run, all."""
    covered = {finding.layer, *finding.layers} - {""}
    if not covered:
        return list(range(len(run.layers)))
    return [place for place, column in enumerate(run.order.tolist()) if run.layers[column] in covered]


def _stretches(places: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of neighbours."""
    cuts = [0, *(index for index in range(1, len(places)) if places[index] != places[index - 1] + 1), len(places)]
    for begin, end in itertools.pairwise(cuts):
        if begin < end:
            yield places[begin], places[end - 1]
