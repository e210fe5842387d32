"""Facts that join the cause of a finding, and the clues in them that remedies depend on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gradwatch.findings import Clue
from gradwatch.measure.report import Origin, StepReport

__all__ = ["Fact", "clues_of"]


class Fact(NamedTuple):
    """One sentence of a cause, and what remedies depend on in it."""

    words: str
    clue: Clue | None = None


def clues_of(report: StepReport) -> Iterator[Clue]:
    """Yield what a step itself shows: where its NaN or Inf came from, and whether scaling can act on its gradients."""
    if report.origin is not None:
        yield from _clues_of_origin(report.origin)
    if report.update == 0 and report.weight_nonfinite is not None and report.weight_nonfinite.any():
        yield "sick from the start"
    if report.overflowed:
        yield "scaler gave up"
    if report.gradients_are_finite and not math.isfinite(report.grad_norm_total):
        yield "norm overflows"


def _clues_of_origin(origin: Origin) -> Iterator[Clue]:
    yield from origin.operations
    yield from origin.clues
    if origin.where == "input":
        yield "bad batch"
    if origin.operation and not origin.operations:
        yield "another operation"
