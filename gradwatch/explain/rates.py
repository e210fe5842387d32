"""Remember the learning rate of a run, so that a rate that jumped or died away is answered by the one before.

What it measures: the largest rate of an optimizer's groups at each update. The loss of a step was reached by the rate
of the update before it, so that one belongs to the lowest loss. A healthy run has both: a warm-up rises, a cosine falls
to zero. So nothing is concluded from a rate alone; the sentences join the cause of a finding that has opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gradwatch.explain.clues import Fact
from gradwatch.measure.report import StepReport

__all__ = ["RateCourse"]

ROSE = 1.5  # times the rate that led to the lowest loss
DECAYED = 1e-3  # times the highest rate: what is left moves nothing
LOWER, HIGHER = 0.1, 10.0  # times the rate where no earlier one is known to be better, as the remedies change it
USUAL_MOVE = 0.01  # share of its norm by which a sane update moves a weight; most are below
FAIR_MOVE = 1e-3  # what an update should move a weight by where it moved next to nothing
LARGE_MOVE = 0.1  # beyond it, the rate is lowered to a usual move
LEAST_LOWER = 1e-4
MOST_DECADES = 30  # by which a higher rate is advised at once


@dataclass
class RateCourse:
    """The course of the learning rate, beside that of the loss.

    Attributes:
        lowest_loss: the lowest loss so far.
        good_rate: the rate of the update before it; that of its own step where it was the first.
        good_step: the step of that rate.
        peak, peak_step: the largest rate since then, and its step.
        highest, highest_step: the largest rate of the run, and its last step.
        latest, latest_step: the rate of the latest step; None where there is none.
    """

    VERSION: ClassVar[int] = 1

    lowest_loss: float | None = None
    good_rate: float | None = None
    good_step: int = 0
    peak: float = 0.0
    peak_step: int = 0
    highest: float = 0.0
    highest_step: int = 0
    latest: float | None = None
    latest_step: int = 0

    def add(self, report: StepReport) -> None:
        """Take in one step."""
        rate = report.learning_rate
        if rate is None or not math.isfinite(rate):
            return
        if report.loss is not None and (self.lowest_loss is None or report.loss < self.lowest_loss):
            first = self.latest is None
            self.lowest_loss = report.loss
            self.good_rate, self.good_step = (rate, report.step) if first else (self.latest, self.latest_step)
            self.peak, self.peak_step = rate, report.step
        if rate > self.peak:
            self.peak, self.peak_step = rate, report.step
        if rate >= self.highest:
            self.highest, self.highest_step = rate, report.step
        self.latest, self.latest_step = rate, report.step

    @property
    def has_risen(self) -> bool:
        """The rate has been well above the one that led to the lowest loss since."""
        good = self.good_rate
        return good is not None and 0 < ROSE * good < self.peak and self.good_step < self.peak_step

    @property
    def has_decayed(self) -> bool:
        """Next to nothing is left of the highest rate."""
        return self.latest is not None and 0 < self.latest < DECAYED * self.highest

    def risen(self) -> Iterator[Fact]:
        """Yield the rate, and a rate that was lower when the loss was lowest."""
        if self.latest is None:
            return
        if not self.has_risen:
            yield Fact(f"The learning rate is {self.latest:.3g}.")
            return
        now = f"is {self.peak:.3g}" if self.peak == self.latest else f"was {self.peak:.3g} at step {self.peak_step}"
        good = self.good_rate or 0.0
        before = f"{self.peak / good:.3g} times the {good:.3g} of step {self.good_step}, where the loss was lowest"
        yield Fact(f"The learning rate {now}, {before}.", "rate rose")

    def decayed(self) -> Iterator[Fact]:
        """Yield the rate, and a rate that was higher by far."""
        if self.latest is None:
            return
        if self.has_decayed:
            before = f"it was {self.highest:.3g} at step {self.highest_step}"
            yield Fact(f"The learning rate has fallen to {self.latest:.3g}; {before}.", "rate decayed")
        else:
            yield Fact(f"The learning rate is {self.latest:.3g}.")

    def lower(self, moved: float) -> float | None:
        """Return the rate to try where it is too high: one that it had before it rose, else a tenth or less.

        Args:
            moved: the share of its size by which the first sampled update moved a weight; NaN where that is not known.
        """
        if self.has_risen:
            return self.good_rate
        if not self.latest:
            return None
        share = LOWER
        if moved > LARGE_MOVE:
            share = min(LOWER, 10.0 ** round(math.log10(USUAL_MOVE) - math.log10(min(moved, 1e300))))
        return self.latest * max(share, LEAST_LOWER)

    def higher(self, moved: float) -> float | None:
        """Return the rate to try where it is too low: the one that it had before it died away, else ten times or more.

        Args:
            moved: the share of its size by which an update moves a weight at most; NaN where that is not known.
        """
        if self.has_decayed:
            return self.highest
        if not self.latest:
            return None
        decades = math.log10(FAIR_MOVE) - math.log10(moved) if 0 < moved < FAIR_MOVE else 0.0
        times = 10.0 ** min(round(decades), MOST_DECADES)
        return self.latest * max(times, HIGHER)
