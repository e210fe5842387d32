"""What the front end asks for, one function a question, from a run's log."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files import format
from gradwatch.event_files.decode import Told, UnreadableError, told_of
from gradwatch.tensorboard_plugin import pooling
from gradwatch.tensorboard_plugin.run_log import RunLog, Series
from gradwatch.tensorboard_plugin.statistics import STATISTICS, Statistic, scale_of

__all__ = ["Packed", "cells_of", "curve_of", "findings_of", "overview_of", "profile_of"]

Packed = tuple[dict[str, Any], NDArray[np.float32]]  # a header, and the entries behind it

_MOST_FINDINGS = 1_000  # in the list beside the map
_MOST_PROBLEMS = 10
CURVES = (*format.NORMS, *format.BAND)


def overview_of(log: RunLog) -> dict[str, Any]:
    """The table of layers, the steps there are, the statistics that were logged."""
    table, steps = log.table, log.totals()[0]
    statistics = [each.as_dict(name) for name, each in STATISTICS.items() if log.has(each.series)]
    bounds = {"firstStep": int(steps[0]), "lastStep": int(steps[-1])} if len(steps) else {}
    columns = {"layers": table.layers, "depth": table.depth.tolist(), "size": table.size.tolist()}
    return {**columns, **bounds, "rows": len(steps), "statistics": statistics}


def findings_of(log: RunLog) -> dict[str, Any]:
    """Findings by first step, each as it was told last; and what of them could not be read."""
    latest: dict[tuple[str, str, int], Told] = {}
    problems: list[str] = []
    for step, tensor in log.events("finding"):
        try:
            told = told_of(tensor, f"gradwatch/finding at step {step}")
        except UnreadableError as error:
            problems.append(str(error))
            continue
        latest[told.finding.kind, told.finding.layer, told.finding.step] = told
    if len(latest) > _MOST_FINDINGS:
        problems.insert(0, f"Only the first {_MOST_FINDINGS:,} of {len(latest):,} findings are shown.")
    by_onset = sorted(latest.values(), key=lambda told: told.finding.step)[:_MOST_FINDINGS]
    return {"findings": [_plain(told) for told in by_onset], "problems": problems[:_MOST_PROBLEMS]}


def cells_of(log: RunLog, name: str, start: int, end: int, width: int) -> Packed:
    """The heat map: (C, P) largest values; clipped and skipped steps of each cell; the run's colour scale."""
    statistic = STATISTICS[name]
    series = log.series(statistic.series)
    cells = pooling.cells(series.steps, start, end, width)
    with np.errstate(over="ignore", invalid="ignore"):
        values = (pooling.largest(series.values[statistic.row], cells) * statistic.factors(log)).astype(np.float32)
    steps, totals = log.totals()
    marks = {kind: pooling.count(steps, totals[f"{kind}_steps"], cells) for kind in ("clipped", "skipped")}
    return {"edges": cells.edges.tolist(), "scale": scale_of(statistic, log), **marks}, values


def curve_of(log: RunLog, name: str, layer: str, start: int, end: int, width: int) -> Packed:
    """One layer over time: (rows, C), the rows named in the header; steps are the last of each cell."""
    statistic = STATISTICS[name]
    series, column = log.series(statistic.series), log.table.layers.index(layer)
    cells = pooling.cells(series.steps, start, end, width)
    names, values = _rows(log, statistic, series, column)
    pooled = [
        (pooling.smallest if row in ("lowest", "floor") else pooling.largest)(each, cells)
        for row, each in zip(names, values, strict=True)
    ]
    return {"rows": names, "steps": (cells.edges[1:] - 1).tolist()}, np.stack(pooled)


def profile_of(log: RunLog, name: str, step: int) -> Packed:
    """All layers at the row that stands for ``step``: (rows, P), the rows named in the header."""
    statistic = STATISTICS[name]
    series = log.series(statistic.series)
    at = min(int(np.searchsorted(series.steps, step)), len(series.steps) - 1)
    names, values = _rows(log, statistic, Series(series.steps[at : at + 1], series.values[:, at : at + 1]), slice(None))
    since = int(series.steps[at - 1]) + 1 if at else int(series.steps[0])
    return {"rows": names, "step": int(series.steps[at]), "since": since}, values[:, 0]


def _plain(told: Told) -> dict[str, Any]:
    """As JSON has it: null for a number that is not finite."""
    values = told.finding.as_dict()
    figures = {name: values[name] if np.isfinite(values[name]) else None for name in ("value", "threshold")}
    return {**values, **figures, "ended": told.ended}


def _rows(log: RunLog, statistic: Statistic, series: Series, column: int | slice) -> tuple[list[str], Any]:
    """Names and (rows, S, …) values: of a gradient's norm with its extremes and the band of what is normal."""
    factor = statistic.factors(log)[column]
    with np.errstate(over="ignore", invalid="ignore"):
        values = series.values[..., column] * factor
        if statistic.series != "grad_norm":
            return [statistic.series], values
        if not log.has("band"):
            return list(format.NORMS), values
        band = log.series("band")
        at = np.searchsorted(band.steps, series.steps).clip(max=len(band.steps) - 1)
        there = (band.steps[at] == series.steps).reshape(-1, *[1] * (values.ndim - 2))
        normal = np.where(there, band.values[:, at][..., column], np.float32(np.nan)) * factor
    return list(CURVES), np.concatenate([values, normal])
