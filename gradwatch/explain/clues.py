"""Facts that join the cause of a finding, and the clues in them that remedies depend on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gradwatch.findings import Clue
from gradwatch.measure.report import StepReport

__all__ = ["Fact", "clues_of"]


class Fact(NamedTuple):
    """One sentence of a cause, and what remedies depend on in it."""

    words: str
    clue: Clue | None = None


def clues_of(report: StepReport) -> Iterator[Clue]:
    """Yield which operations may have made a NaN or Inf, whether the batch held it, and whether a scaler gave up."""
    if report.origin is not None:
        yield from report.origin.operations
        if report.origin.where == "input":
            yield "bad batch"
    if report.overflowed:
        yield "scaler gave up"
