"""Write rows and findings: to TensorBoard, loggers, JSON lines, memory and the log.

Rows come at the logging cadence, findings as they open, go on and end.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gradwatch.event_files.run import FindingEvent
from gradwatch.findings import Finding
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Row", "RowBuilder", "Sink", "event_of", "is_update"]


@dataclass(frozen=True)
class Row:
    """One logged step: its report, and what happened since the last row.

    Attributes:
        report: the logged step.
        highest: (P,) float64, largest gradient norm of each layer since the last row; Inf where one was not finite.
        lowest: (P,) float64, smallest finite gradient norm of each layer since the last row; NaN where none.
        highest_total, lowest_total: the same of the total norm.
        figures: latest figures since the last row, (P,) each.
        skipped_steps: updates left out since the run began.
        clipped, skipped: how many steps since the last row were clipped, and left out.
        band: (2, P) float64, where each layer's norm becomes faint, and where it outgrows its level
            (``gradwatch.event_files.format.BAND``); None if no detector says.
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
    """The four methods of a sink. Training goes on where one raises, with one warning.

    Of several ranks of ``torch.distributed`` the first alone hands anything to its sinks, except to those with an
    attribute ``is_of_every_rank`` that is True.
    A sink may have a fifth, ``write_coverage(coverage)``: it takes how many steps were measured
    (``gradwatch.event_files.run.Coverage``), with rows where some were not, at ``flush`` and at ``close``. And a sixth,
    ``write_environment(environment)``: it takes what the run is made with
    (``gradwatch.event_files.run.Environment``), once, before all else. And a seventh, ``write_lost(lost)``: it takes
    at ``close`` what the sink was never able to take, such as ``{"row": 2, "finding": 1}``.

    What it did not take waits, and is handed to it again later: an OSError is most often a disk that is full.

    Training waits for it at most 0.1 s, so it is called in threads, one at a time. One with an attribute
    ``shares_thread`` that is True is called in the thread that trains, which waits as long as it takes. One with a
    method ``prepare()`` has it called in that thread, before others call the rest.
    """

    def write_row(self, row: Row) -> None:
        """Take a logged step."""
        ...

    def write_finding(self, finding: Finding, ended: bool) -> None:
        """Take a finding when it opens, as it is then when it has gone on, and when it ends.

        While a finding is open it comes again with later rows, and at ``flush`` and ``close``, if ``last_step`` or
        ``layers`` have changed (``is_update``), and once more where its ``ranks`` and ``cause`` are known better.
        Its identity is (kind, layer, step); what comes last counts.
        """
        ...

    def flush(self) -> None:
        """Make everything safe that was taken so far."""
        ...

    def close(self) -> None:
        """Finish the run. What comes later is of another run: a sink may be used again, and then begins anew."""
        ...


def is_update(finding: Finding, ended: bool) -> bool:
    """Return whether a sink was given the finding before and it goes on: it is sick for longer than when it opened."""
    return not ended and not FindingEvent(finding, ended).is_opening


def event_of(finding: Finding, ended: bool, known: Container[tuple[str, str, int]]) -> str:
    """Return what to call it that a sink is given the finding: ``"opened"``, ``"updated"`` or ``"ended"``.

    Args:
        finding: as it is now.
        ended: whether it has ended.
        known: identities of the findings that the sink has written. One whose cause is known better comes again.
    """
    if ended:
        return "ended"
    return "updated" if is_update(finding, ended) or finding.identity in known else "opened"


class RowBuilder:
    """The steps of one optimizer between two rows, gathered so that no spike is lost between them."""

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
        """Take in one step."""
        norm, total = report.grad_norm, report.grad_norm_total
        self._highest = np.fmax(self._highest, np.where(report.nonfinite > 0, np.inf, norm))
        self._lowest = np.fmin(self._lowest, np.where(np.isfinite(norm), norm, np.nan))
        self._highest_total = float(np.fmax(self._highest_total, total if np.isfinite(total) else np.inf))
        self._lowest_total = float(np.fmin(self._lowest_total, total if np.isfinite(total) else np.nan))
        self._figures.update(report.figures)
        self._clipped += report.grad_norm_clipped_total < total
        self._skipped += report.skipped

    def build(self, report: StepReport, skipped_steps: int, band: Floats | None = None) -> Row:
        """Return the row of ``report``, the last step added; the next row starts anew."""
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
