"""What remedies depend on: facts that join a cause, and what a step's report says by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gradwatch.findings import Clue
from gradwatch.measure.report import StepReport

__all__ = ["Fact", "clues_of"]


class Fact(NamedTuple):
    """What joins a cause: its words, and what remedies depend on of it."""

    words: str
    clue: Clue | None = None


def clues_of(report: StepReport) -> Iterator[Clue]:
    """Of a NaN or Inf: which operations may have made it, whether the batch held it, whether a scaler gave up."""
    if report.origin is not None:
        yield from report.origin.operations
        if report.origin.where == "input":
            yield "bad batch"
    if report.overflowed:
        yield "scaler gave up"
