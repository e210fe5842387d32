"""Answer what the front end asks of a run, one function a question."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files import format
from gradwatch.event_files.assemble import latest_states
from gradwatch.event_files.consequences import leaders
from gradwatch.event_files.decode import UnreadableError, coverage_of, finding_event_of, run_end_of
from gradwatch.event_files.run import FindingEvent, Floats, LayerSeries
from gradwatch.tensorboard_plugin import pooling
from gradwatch.tensorboard_plugin.cached_run import CachedRun
from gradwatch.tensorboard_plugin.leaps import leaps_of
from gradwatch.tensorboard_plugin.statistics import STATISTICS, Statistic, levels_of, scales_of

__all__ = ["Packed", "cells_of", "course_of", "curve_of", "findings_of", "overview_of", "profile_of"]

Packed = tuple[dict[str, Any], NDArray[np.float32]]  # a header, and the entries that follow it

_MOST_FINDINGS = 1_000  # in the list beside the map
_MOST_PROBLEMS = 10
CURVES = (*format.NORMS, *format.BAND)


def overview_of(run: CachedRun) -> dict[str, Any]:
    """Return the table of layers, the steps there are, the statistics that were logged."""
    table, steps = run.table, run.totals().steps
    statistics = [each.as_dict(name) for name, each in STATISTICS.items() if run.has(each.series)]
    bounds = {"firstStep": int(steps[0]), "lastStep": int(steps[-1])} if len(steps) else {}
    columns = {"layers": table.layers, "depth": table.depth.tolist(), "size": table.size.tolist()}
    return {**columns, **bounds, "rows": len(steps), "statistics": statistics}


def findings_of(run: CachedRun) -> dict[str, Any]:
    """Return findings by first step, each as it was written last; what of them could not be read; the run's extent.

    ``follows`` is the index of the finding that may have led to one.
    """
    events: list[FindingEvent] = []
    problems: list[str] = []
    for _, tensor, what in run.events("finding"):
        try:
            events.append(finding_event_of(tensor, what))
        except UnreadableError as error:
            problems.append(str(error))
    states = latest_states(events)
    if len(states) > _MOST_FINDINGS:
        problems.insert(0, f"Only the first {_MOST_FINDINGS:,} of {len(states):,} findings are shown.")
    shown = states[:_MOST_FINDINGS]
    findings = [{**_plain(state), "follows": first} for state, first in zip(shown, leaders(shown), strict=True)]
    return {"findings": findings, "problems": problems[:_MOST_PROBLEMS], **_coverage(run), **_lost(run), **_extent(run)}


def _coverage(run: CachedRun) -> dict[str, Any]:
    """Return how many steps there were, how many nothing is known of, and what was not looked for; else nothing."""
    events = run.events("coverage")
    try:
        coverage = coverage_of(*events[-1][1:]) if events else None
    except UnreadableError:
        return {}
    if coverage is None or coverage.is_whole:
        return {}
    return {"steps": coverage.steps, "unmeasured": coverage.unmeasured, "unjudged": coverage.unjudged_in_words()}


def _lost(run: CachedRun) -> dict[str, Any]:
    """Return how much could not be written, as the run said at its end; nothing where all was."""
    events = run.events("end")
    try:
        lost = run_end_of(*events[-1][1:]).lost if events else {}
    except UnreadableError:
        return {}
    return {"lost": dict(lost)} if lost else {}


def _extent(run: CachedRun) -> dict[str, Any]:
    """Return how far the run has come, for a table of runs; nothing where that cannot be read."""
    try:
        totals = run.totals()
    except UnreadableError:
        return {}  # the overview says so
    losses = totals.values["loss"][~np.isnan(totals.values["loss"])]
    return {
        "rows": len(totals.steps),
        "lastStep": int(totals.steps[-1]) if len(totals.steps) else None,
        "loss": _or_null(losses[-1].item()) if len(losses) else None,
        "isLossFinite": bool(np.isfinite(losses[-1:]).all()),
    }


def cells_of(run: CachedRun, name: str, start: int, end: int, width: int) -> Packed:
    """Return the heat map: (C, P) largest values, of ratios those furthest from 1; marks of cells; colour scales."""
    statistic = STATISTICS[name]
    series = run.series(statistic.series)
    cells = pooling.cells(series.steps, start, end, width)
    with np.errstate(over="ignore", invalid="ignore"):
        values = _furthest(statistic, series, cells, statistic.factors(run)).astype(np.float32)
    totals = run.totals()
    marks = {
        kind: pooling.count(totals.steps, totals.values[f"{kind}_steps"], cells) for kind in ("clipped", "skipped")
    }
    levels = [_or_null(level) for level in levels_of(run).tolist()]
    return {"edges": cells.edges.tolist(), **scales_of(statistic, run), "levels": levels, **marks}, values


def _furthest(statistic: Statistic, series: LayerSeries, cells: pooling.Cells, factors: Floats) -> Floats:
    """Return (C, P): the largest of each cell; of ratios the smallest where that is further from 1."""
    largest = pooling.largest(series.values[statistic.row], cells) * factors
    if not statistic.is_ratio:
        return largest
    smallest = pooling.smallest(series.values[format.NORMS.index("lowest")], cells) * factors
    return np.where(smallest * largest < 1, smallest, largest)


def course_of(run: CachedRun, start: int, end: int, width: int) -> Packed:
    """Return the whole run over time: (rows, C), the rows named in the header, each pooled as its name says."""
    totals = run.totals()
    cells = pooling.cells(totals.steps, start, end, width)
    pooled = {}
    for name in ("loss", "learning_rate"):
        values = totals.values[name].astype(np.float32)
        pooled[f"{name} smallest"] = pooling.smallest(values, cells)
        pooled[f"{name} largest"] = pooling.largest(values, cells)
    pooled["total_norm smallest"] = pooling.smallest(totals.values["lowest_total"].astype(np.float32), cells)
    pooled["total_norm largest"] = pooling.largest(totals.values["highest_total"].astype(np.float32), cells)
    pooled["leap largest"] = pooling.largest(leaps_of(run, totals.steps), cells)
    return {"edges": cells.edges.tolist(), "rows": list(pooled)}, np.stack(list(pooled.values()))


def curve_of(run: CachedRun, name: str, layer: str, start: int, end: int, width: int) -> Packed:
    """Return one layer over time: (rows, C), the rows named in the header; steps are the last of each cell."""
    statistic = STATISTICS[name]
    series, column = run.series(statistic.series), run.table.layers.index(layer)
    cells = pooling.cells(series.steps, start, end, width)
    names, values = _rows(run, statistic, series, column)
    pooled = [
        (pooling.smallest if row in ("lowest", "floor") else pooling.largest)(each, cells)
        for row, each in zip(names, values, strict=True)
    ]
    return {"rows": names, "steps": (cells.edges[1:] - 1).tolist()}, np.stack(pooled)


def profile_of(run: CachedRun, name: str, step: int) -> Packed:
    """Return all layers at the row that stands for ``step``: (rows, P), the rows named in the header."""
    statistic = STATISTICS[name]
    series = run.series(statistic.series)
    at = min(int(np.searchsorted(series.steps, step)), len(series.steps) - 1)
    this_row = LayerSeries(series.steps[at : at + 1], series.values[:, at : at + 1])
    names, values = _rows(run, statistic, this_row, slice(None))
    since = int(series.steps[at - 1]) + 1 if at else int(series.steps[0])
    return {"rows": names, "step": int(series.steps[at]), "since": since}, values[:, 0]


def _or_null(value: float) -> float | None:
    """Return ``value`` as JSON has it: null where it is not finite."""
    return value if np.isfinite(value) else None


def _plain(state: FindingEvent) -> dict[str, Any]:
    """Return ``state`` as JSON has it: null for a number that is not finite."""
    values = state.finding.as_dict()
    figures = {name: _or_null(values[name]) for name in ("value", "threshold")}
    return {**values, **figures, "ended": state.ended}


def _rows(run: CachedRun, statistic: Statistic, series: LayerSeries, column: int | slice) -> tuple[list[str], Any]:
    """Return names and (rows, S, …) values: of a gradient's norm with its extremes and the band of what is normal."""
    factor = statistic.factors(run)[column]
    with np.errstate(over="ignore", invalid="ignore"):
        values = series.values[..., column] * factor
        if statistic.series != "grad_norm":
            return [statistic.series], values
        if not run.has("band"):
            return list(format.NORMS), values
        band = run.series("band")
        at = np.searchsorted(band.steps, series.steps).clip(max=len(band.steps) - 1)
        there = (band.steps[at] == series.steps).reshape(-1, *[1] * (values.ndim - 2))
        normal = np.where(there, band.values[:, at][..., column], np.float32(np.nan)) * factor
    return list(CURVES), np.concatenate([values, normal])
