"""Turn rows and findings into plain numbers and tables, as files and loggers take them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from gradwatch.findings import Finding
from gradwatch.measure.report import LAYER_FIGURES
from gradwatch.sinks import Row

__all__ = ["LAYER_COLUMNS", "FindingTable", "layer_table", "layer_text", "measured_layers", "named_totals", "totals"]

LAYER_COLUMNS = ("layer", "grad_norm", "grad_norm_highest", "grad_norm_lowest", "nonfinite", *LAYER_FIGURES)
"""The columns of ``layer_table``."""


def totals(row: Row) -> dict[str, float]:
    """Return what concerns the whole run at a logged step, by the name of the figure.

    ``loss`` and ``learning_rate`` are left out where nothing is known of them. ``clipped_steps`` counts those since the
    last row, ``skipped_steps`` those since the run began.
    """
    report = row.report
    figures: dict[str, float | None] = {
        "grad_norm_total": report.grad_norm_total,
        "grad_norm_clipped_total": report.grad_norm_clipped_total,
        "grad_norm_total_highest": row.highest_total,
        "grad_norm_total_lowest": row.lowest_total,
        "loss": report.loss,
        "learning_rate": report.learning_rate,
        "clipped_steps": row.clipped,
        "skipped_steps": row.skipped_steps,
    }
    return {name: value for name, value in figures.items() if value is not None}


def named_totals(row: Row) -> dict[str, float]:
    """Return ``totals``, those of a second optimizer by names of their own: ``loss/optimizer_1``."""
    which = f"/optimizer_{row.report.optimizer}" if row.report.optimizer else ""
    return {f"{name}{which}": value for name, value in totals(row).items()}


def layer_table(row: Row) -> list[list[str | float | None]]:
    """Return a line of ``LAYER_COLUMNS`` for each layer that had a gradient since the last row.

    A cell is None where a figure was not measured or is NaN; ``nonfinite`` counts the entries that made a norm NaN.
    """
    report = row.report
    norms = (report.grad_norm, row.highest, row.lowest)
    figures = [row.figures.get(name, np.full(len(report.layers), np.nan)) for name in LAYER_FIGURES]
    lines = zip(*(column.tolist() for column in (*norms, report.nonfinite, *figures)), strict=True)
    had_gradient = report.measured | ~np.isnan(row.highest)
    return [
        [layer, *(None if math.isnan(value) else value for value in line)]
        for layer, line, is_shown in zip(report.layers, lines, had_gradient.tolist(), strict=True)
        if is_shown
    ]


def measured_layers(row: Row) -> tuple[list[str], list[list[str | float | None]]]:
    """Return ``layer_table`` without columns of which nothing is known, and the names of the others before it."""
    table = layer_table(row)
    shown = [at for at in range(len(LAYER_COLUMNS)) if any(line[at] is not None for line in table)]
    return [LAYER_COLUMNS[at] for at in shown], [[line[at] for at in shown] for line in table]


def layer_text(row: Row) -> str:
    """Return ``measured_layers`` as tab-separated lines, the names of columns first; a cell of None is empty."""
    columns, lines = measured_layers(row)
    return _tab_separated([columns, *lines])


class FindingTable:
    """The findings of a run as a table, each as it came last, in order of their coming."""

    COLUMNS = ("kind", "severity", "layer", "step", "last step", "ended", "value", "message")

    def __init__(self) -> None:
        self._states: dict[tuple[str, str, int], tuple[Finding, bool]] = {}  # (finding, ended), as they came last

    def add(self, finding: Finding, ended: bool) -> None:
        """Take in a finding."""
        self._states[finding.identity] = finding, ended

    def __contains__(self, identity: object) -> bool:
        return identity in self._states

    def open_counts(self) -> dict[str, int]:
        """Return how many findings of each kind are open, for kinds that were found at all."""
        counts = dict.fromkeys((finding.kind for finding, _ in self._states.values()), 0)
        for finding, ended in self._states.values():
            counts[finding.kind] += not ended
        return {str(kind): count for kind, count in counts.items()}

    def lines(self) -> list[list[str]]:
        """Return a line of ``COLUMNS`` for each finding."""
        return [_cells(finding, ended) for finding, ended in self._states.values()]

    def as_text(self) -> str:
        """Return the table as tab-separated lines, the names of its columns first."""
        return _tab_separated([self.COLUMNS, *self.lines()])


def _tab_separated(lines: Iterable[Iterable[object]]) -> str:
    return "".join("\t".join("" if cell is None else str(cell) for cell in line) + "\n" for line in lines)


def _cells(finding: Finding, ended: bool) -> list[str]:
    value = f"{finding.value:.6g}" if math.isfinite(finding.value) else "not finite"
    steps = [str(finding.step), str(finding.last_step), "yes" if ended else "no"]
    return [finding.kind, finding.severity, finding.layer or "whole run", *steps, value, finding.message]
