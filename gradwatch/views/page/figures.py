"""Gather the figures of a page's pictures: for its tooltips, and for programs that read the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwatch.event_files.run import Floats, Run
from gradwatch.sinks.jsonl import json_of
from gradwatch.views.page.heatmap import LEFT, WIDTH
from gradwatch.views.picture import highest_norms, row_starts
from gradwatch.views.plain import object_of
from gradwatch.views.terminal import curves_of

__all__ = ["figures_of"]


def figures_of(runs: Sequence[Run]) -> str:
    """Return JSON, a list with an object for each run, in which no character ends or begins a tag of HTML.

    Each object is that of ``gradwatch report --json`` with ``axis`` (ends in pixels and in steps), ``rows`` (names of
    the picture's rows), ``norms`` (rows × columns, the largest norm in equal spans of steps; null for what was not
    measured, a text for what is not finite) and ``curves`` (steps and values by title).
    """
    text = json_of([_figures(run) for run in runs])
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _figures(run: Run) -> dict[str, Any]:
    if not len(run.steps):
        return object_of(run)
    return {
        **object_of(run),
        "axis": {"left": LEFT, "right": WIDTH, "first": int(run.steps[0]), "end": int(run.steps[-1]) + 1},
        "rows": _row_names(run),
        "norms": [_rounded(row) for row in highest_norms(run)],
        "curves": {
            title: {"steps": series.steps.tolist(), "values": _rounded(series.values)}
            for title, series in curves_of(run, with_flat_rates=True)
        },
    }


def _row_names(run: Run) -> list[str]:
    """Return the layer of each row of the picture; where several share it, the first and the last."""
    names = [run.layers[column] for column in run.order.tolist()]
    begins = [*row_starts(len(names)).tolist(), len(names)]
    return [
        names[begin] if end - begin == 1 else f"{names[begin]} … {names[end - 1]}"
        for begin, end in itertools.pairwise(begins)
    ]


def _rounded(values: Floats) -> list[float | str | None]:
    """Return three digits of each: a page is to be read, and sent by mail."""
    return [_plain(value) for value in np.asarray(values, dtype=float).tolist()]


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return float(f"{value:.3g}") if math.isfinite(value) else "not finite"
