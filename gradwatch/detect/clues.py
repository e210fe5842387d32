"""What a step's report says that remedies depend on."""

from __future__ import annotations

from collections.abc import Iterator

from gradwatch.findings import Clue
from gradwatch.report import StepReport

__all__ = ["clues_of"]


def clues_of(report: StepReport) -> Iterator[Clue]:
    """Of a NaN or Inf: which operation made it, whether the batch held it, whether a scaler gave up."""
    if report.origin is not None:
        if report.origin.operation is not None:
            yield report.origin.operation
        if report.origin.where == "input":
            yield "bad batch"
    if report.overflowed:
        yield "scaler gave up"
