"""Where reports and findings go: TensorBoard, JSON lines, memory, the log.

Enters: rows at the logging cadence, findings as they open and end. Leaves: files, lines. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradwatch.findings import Finding
from gradwatch.report import Floats, StepReport

__all__ = ["Row", "RowBuilder", "Sink"]


@dataclass(frozen=True)
class Row:
    """What is written at a logged step: its report, and what happened since the last row.

    Attributes:
        report: the logged step.
        highest: (P,) float32, largest gradient norm of each layer since the last row; Inf where one was not finite.
        lowest: (P,) float32, smallest finite gradient norm of each layer since the last row; NaN where none.
        highest_total, lowest_total: the same of the total norm.
        figures: latest figures since the last row, (P,) each.
        skipped_steps: updates left out since the run began.
    """

    report: StepReport
    highest: Floats
    lowest: Floats
    highest_total: float
    lowest_total: float
    figures: Mapping[str, Floats]
    skipped_steps: int


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


@dataclass
class RowBuilder:
    """Gathers one optimizer's steps between two rows, so that no spike is lost between them."""

    _highest: NDArray[np.floating] | None = None
    _lowest: NDArray[np.floating] | None = None
    _totals: list[float] = field(default_factory=lambda: [-np.inf, np.inf])
    _figures: dict[str, Floats] = field(default_factory=dict)

    def add(self, report: StepReport) -> None:
        """Takes in one step."""
        norm = report.grad_norm
        high = np.where(report.nonfinite > 0, np.inf, norm)
        low = np.where(report.nonfinite > 0, np.nan, norm)
        self._highest = high if self._highest is None else np.fmax(self._highest, high)
        self._lowest = low if self._lowest is None else np.fmin(self._lowest, low)
        total = report.grad_norm_total
        self._totals = [
            max(self._totals[0], total if np.isfinite(total) else np.inf),
            min(self._totals[1], total if np.isfinite(total) else np.inf),
        ]
        self._figures.update(report.figures)

    def build(self, report: StepReport, skipped_steps: int) -> Row:
        """The row of ``report``, the last step added; the next row starts anew."""
        assert self._highest is not None and self._lowest is not None
        row = Row(report, self._highest, self._lowest, *self._totals, dict(self._figures), skipped_steps)
        self.__init__()  # type: ignore[misc]
        return row
