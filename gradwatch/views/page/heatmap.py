"""Lay out the depth × time picture with its axes and findings, for the template ``pictures.html.j2``."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Run
from gradwatch.findings import Finding
from gradwatch.views.colours import NOT_FINITE_COLOUR, VIRIDIS, ColourScale
from gradwatch.views.names import labels
from gradwatch.views.phrases import number, since
from gradwatch.views.picture import picture_of, png

__all__ = ["LEFT", "WIDTH", "Heatmap", "Legend", "across", "heatmap_of", "legend_of"]

WIDTH, LEFT, TOP, BOTTOM = 760, 170, 6, 40
_TALLEST, LOWEST, _LAYER = 560, 130, 14  # pixels
_LABEL = 14  # pixels between two names, at least
_NARROWEST = 4  # pixels: an outline of one step is seen


@dataclass(frozen=True)
class _LayerName:
    text: str
    y: float
    is_sick: bool


@dataclass(frozen=True)
class _Tick:
    """A step below the picture; ``anchor`` as SVG has it."""

    step: int
    x: float
    anchor: str


@dataclass(frozen=True)
class _Outline:
    """A rectangle around layers that a finding covers, with the finding's place in the list and its words."""

    index: int
    words: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Heatmap:
    """Everything that is drawn, in pixels; ``pixels`` is a PNG in base64."""

    width: int
    height: int
    left: int
    top: int
    bottom: int
    pixels: str
    names: Sequence[_LayerName]
    ticks: Sequence[_Tick]
    outlines: Sequence[_Outline]


@dataclass(frozen=True)
class Legend:
    """The meaning of the colours: the ends of the scale, its colours, and the colour of what is not finite."""

    low: str
    high: str
    colours: Sequence[str]
    not_finite: str


def heatmap_of(run: Run, scale: ColourScale) -> Heatmap:
    """Lay out layers from input (top) to output and steps from left to right; findings are outlined and numbered."""
    height = int(np.clip(_LAYER * len(run.layers), LOWEST, _TALLEST))
    return Heatmap(
        width=WIDTH,
        height=height,
        left=LEFT,
        top=TOP,
        bottom=BOTTOM,
        pixels=base64.b64encode(png(picture_of(run, scale))).decode(),
        names=list(_names(run, height)),
        ticks=list(_ticks(run.steps)),
        outlines=list(_outlines(run, height)),
    )


def legend_of(scale: ColourScale) -> Legend:
    """Say what the colours mean."""
    return Legend(number(10**scale.low), number(10**scale.high), VIRIDIS, NOT_FINITE_COLOUR)


def _names(run: Run, height: int) -> Iterator[_LayerName]:
    count = len(run.layers)
    every = -(-count * _LABEL // height) if count else 1
    sick, shown = run.sick, labels(run.layers)
    for place in range(0, count, every):
        column = run.order[place]
        yield _LayerName(shown[column], (place + 0.5) * height / count + 4, bool(sick[column]))


def _ticks(steps: NDArray[np.int64]) -> Iterator[_Tick]:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0) if len(steps) > 4 else (0.0, 1.0)
    for share in shares if len(steps) else ():
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        step = round(steps[0] + share * (steps[-1] - steps[0]))
        yield _Tick(step, WIDTH if share == 1 else across(steps, step), anchor)


def _outlines(run: Run, height: int) -> Iterator[_Outline]:
    place_of = {run.layers[column]: place for place, column in enumerate(run.order.tolist())}
    for index, (finding, ended) in enumerate(zip(run.findings, run.ended, strict=True), start=1):
        if ended and len(run.steps) and finding.last_step < run.steps[0]:
            continue  # over before the picture begins
        left, right = _edges(run.steps, finding, ended)
        words = f"{index}. {finding.kind} in {finding.place}, {since(finding, ended)}"
        for first, last in _stretches(finding, place_of):
            top, bottom = (place * height / len(run.layers) for place in (first, last + 1))
            yield _Outline(index, words, left, top, right - left, bottom - top)


def across(steps: NDArray[np.int64], step: float) -> float:
    """Return where ``step`` begins on the axis that all pictures of a run share, in pixels."""
    return LEFT + float((step - steps[0]) / (steps[-1] + 1 - steps[0])) * (WIDTH - LEFT)


def _edges(steps: NDArray[np.int64], finding: Finding, ended: bool) -> tuple[float, float]:
    """Return left and right edge, from the finding's onset to its last step, or to the end while it is open."""
    if not len(steps):
        return LEFT, WIDTH
    left = across(steps, max(finding.step, int(steps[0])))
    right = across(steps, finding.last_step + 1) if ended else WIDTH
    left = min(left, WIDTH - _NARROWEST)
    return left, min(max(right, left + _NARROWEST), WIDTH)


def _stretches(finding: Finding, place_of: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) place of each stretch of neighbours that ``finding`` covers; all for one of the whole run."""
    covered = {finding.layer, *finding.layers} - {""}
    if not covered:
        if place_of:
            yield 0, len(place_of) - 1
        return
    places = sorted(place_of[layer] for layer in covered if layer in place_of)
    cuts = [0, *(index for index in range(1, len(places)) if places[index] != places[index - 1] + 1), len(places)]
    for begin, end in itertools.pairwise(cuts):
        if begin < end:
            yield places[begin], places[end - 1]
