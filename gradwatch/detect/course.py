"""Follow how a run began and where its loss is now, for rules that judge its whole course."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradwatch.measure.report import StepReport

__all__ = ["FIRST_STEPS", "HORIZON", "Course"]

FIRST_STEPS = 10
HORIZON = 30  # losses that the mean remembers


@dataclass
class Course:
    """The first losses and gradients of a run, and its loss now.

    Attributes:
        steps: steps so far.
        losses: finite losses so far.
        first_loss: the largest absolute value of the first ten losses.
        first_total: the largest of the first ten total gradient norms.
        loss: running mean of the loss.
    """

    VERSION: ClassVar[int] = 1

    steps: int = 0
    losses: int = 0
    first_loss: float = 0.0
    first_total: float = 0.0
    loss: float = 0.0

    def add(self, report: StepReport) -> None:
        """Take in one step that is finite."""
        if self.steps < FIRST_STEPS:
            self.first_total = max(self.first_total, report.grad_norm_total)
        self.steps += 1
        if report.loss is None:
            return
        if self.losses < FIRST_STEPS:
            self.first_loss = max(self.first_loss, abs(report.loss))
        self.losses += 1
        self.loss += (report.loss - self.loss) / min(self.losses, HORIZON)
