"""``unstable``: a loss that keeps jumping up instead of coming down."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy, whole_run
from gradwatch.findings import Thresholds
from gradwatch.measure.report import StepReport

__all__ = ["Unstable"]

WINDOW = 40  # steps in which jumps are counted
JUMPS = 6  # upward jumps among them: a spike is one, a schedule's restart is one, a bad data shard a few
JUMP = 1.0  # a jump is as large as the whole loss was at first


@dataclass
class UnstableState:
    """The state of ``Unstable`` across steps, from finite losses alone.

    Attributes:
        first: the first loss.
        last: the latest loss.
        rises: the last 41 differences between one loss and the next, as shares of the first loss.
        negative: whether any loss was below zero.
        positive: whether any loss was above zero.
    """

    VERSION: ClassVar[int] = 1

    first: float | None = None
    last: float = 0.0
    rises: list[float] = field(default_factory=list)
    negative: bool = False
    positive: bool = False


class Unstable(Detector[UnstableState]):
    """Upward jumps of the loss, as large as its first value, again and again.

    ``value`` is the largest upward jump in the last 40 steps as a share of the first loss. Jumps are compared with the
    first loss because near convergence a healthy loss jumps by many times its own, tiny, level. A loss that changes
    sign (policy gradients, adversarial games) is no distance and is not judged.
    """

    kind = "unstable"
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(UnstableState())
        self._jump = thresholds.unstable_jump or JUMP
        self.patience = thresholds.patience or 1
        self._healthy = healthy(1)

    def examine(self, report: StepReport) -> DetectorResult | None:
        loss, ours = report.loss, self._state
        if loss is None or not math.isfinite(loss):
            return None
        ours.negative |= loss < 0
        ours.positive |= loss > 0
        if ours.first is None:
            ours.first, ours.last, ours.rises = loss, loss, [0.0]
            return None
        rise = (loss - ours.last) / abs(ours.first) if ours.first else 0.0
        ours.rises = [*ours.rises[-WINDOW:], rise]  # and the one before them
        ours.last = loss
        largest = max(ours.rises[-WINDOW:])
        changes_sign = ours.negative and ours.positive
        if largest <= self._jump or changes_sign or len(self._jumps()) < JUMPS:
            return self._healthy
        return whole_run(True, largest, self._jump)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow losses within half a jump of the last examined one.

        Bound: two losses that each lie within half a jump of the same value lie at most one jump apart, so none of the
        steps that wait adds a jump. A run that was not sick before is then not sick at any of them, because the number
        of jumps in the window can only fall. A step without a loss is not judged at all.
        """
        if loss is None:
            return True
        first, last = self._state.first, self._state.last
        return first is not None and abs(loss - last) <= self._jump / 2 * abs(first)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        jumps, steps = self._jumps(), len(self._state.rises) - 1
        measured = (
            f"The loss jumped up {len(jumps)} times in the last {steps} steps, by up to {max(jumps):.3g} times its "
            f"first value of {self._state.first:.4g} (a jump counts from {self._jump:g} times on)."
        )
        return Evidence(measured, ("Updates overshoot: each undoes what the one before had gained.",))

    def _jumps(self) -> list[float]:
        """Return the rises above one jump that follow a fall: a loss that climbs all the time diverges."""
        return [rise for before, rise in itertools.pairwise(self._state.rises) if rise > self._jump and before <= 0]
