"""Write rows and findings: to TensorBoard, loggers, JSON lines, memory and the log.

Enters: rows at the logging cadence, findings as they open and end. Leaves: files, lines. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradwatch.findings import Finding
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Row", "RowBuilder", "Sink"]


@dataclass(frozen=True)
class Row:
    """What is written at a logged step: its report, and what happened since the last row.

    Attributes:
        report: the logged step.
        highest: (P,) float64, largest gradient norm of each layer since the last row; Inf where one was not finite.
        lowest: (P,) float64, smallest finite gradient norm of each layer since the last row; NaN where none.
        highest_total, lowest_total: the same of the total norm.
        figures: latest figures since the last row, (P,) each.
        skipped_steps: updates left out since the run began.
        clipped, skipped: how many steps since the last row were clipped, and left out.
        band: (2, P) float64, where each layer's norm becomes faint, and where it outgrows its level (``packed.BAND``);
            None where no detector says.
    """

    report: StepReport
    highest: Floats
    lowest: Floats
    highest_total: float
    lowest_total: float
    figures: Mapping[str, Floats]
    skipped_steps: int
    clipped: int = 0
    skipped: int = 0
    band: Floats | None = None


class Sink(Protocol):
    """What a sink can do. One that raises is dropped with one warning; training goes on."""

    def write_row(self, row: Row) -> None:
        """Takes a logged step."""
        ...

    def write_finding(self, finding: Finding, ended: bool) -> None:
        """Takes a finding when it opens, and again, as it then stands, when it ends."""
        ...

    def flush(self) -> None:
        """Everything taken so far is safe afterwards."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class RowBuilder:
    """Gathers one optimizer's steps between two rows, so that no spike is lost between them."""

    _highest: Floats
    _lowest: Floats
    _highest_total: float
    _lowest_total: float
    _figures: dict[str, Floats]
    _clipped: int
    _skipped: int

    def __init__(self) -> None:
        self._begin()

    def add(self, report: StepReport) -> None:
        """Takes in one step."""
        norm, total = report.grad_norm, report.grad_norm_total
        self._highest = np.fmax(self._highest, np.where(report.nonfinite > 0, np.inf, norm))
        self._lowest = np.fmin(self._lowest, np.where(np.isfinite(norm), norm, np.nan))
        self._highest_total = float(np.fmax(self._highest_total, total if np.isfinite(total) else np.inf))
        self._lowest_total = float(np.fmin(self._lowest_total, total if np.isfinite(total) else np.nan))
        self._figures.update(report.figures)
        self._clipped += report.grad_norm_clipped_total < total
        self._skipped += report.skipped

    def build(self, report: StepReport, skipped_steps: int, band: Floats | None = None) -> Row:
        """The row of ``report``, the last step added; the next row starts anew."""
        row = Row(
            report=report,
            highest=self._highest,
            lowest=self._lowest,
            highest_total=self._highest_total,
            lowest_total=self._lowest_total,
            figures=self._figures,
            skipped_steps=skipped_steps,
            clipped=self._clipped,
            skipped=self._skipped,
            band=band,
        )
        self._begin()
        return row

    def _begin(self) -> None:
        self._highest = np.array(np.nan)  # fmax and fmin prefer any number to NaN
        self._lowest = np.array(np.nan)
        self._highest_total = self._lowest_total = np.nan
        self._figures = {}
        self._clipped = self._skipped = 0
