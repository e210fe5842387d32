"""``unstable``: a loss that keeps jumping about instead of coming down."""

from __future__ import annotations

import itertools
import math

from gradwatch.detect.symptoms import Detector, Symptoms, healthy, whole_run
from gradwatch.findings import Thresholds
from gradwatch.measure.report import StepReport

__all__ = ["Unstable"]

WINDOW = 40  # steps looked back upon
JUMPS = 6  # upward jumps among them: a spike is one, a schedule's restart is one, a bad data shard a few
JUMP = 1.0  # a jump is as large as the whole loss was at first


class Unstable(Detector):
    """Upward jumps of the loss, as large as its first value, again and again.

    ``value`` is the largest upward jump in the last 40 steps as a share of the first loss. Judged against the first
    loss because near convergence a healthy loss jumps by many times its own, tiny, level. A loss that changes sign
    (policy gradients, adversarial games) is no distance and is not judged.
    """

    kind = "unstable"
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__()
        self._jump = thresholds.unstable_jump or JUMP
        self.patience = thresholds.patience or 1
        self._healthy = healthy(1)
        self._memory = {"first": None, "last": None, "rises": [], "negative": False, "positive": False}

    def examine(self, report: StepReport) -> Symptoms | None:
        loss, memory = report.loss, self._memory
        if loss is None or not math.isfinite(loss):
            return None
        memory["negative"] |= loss < 0
        memory["positive"] |= loss > 0
        if memory["first"] is None:
            memory.update(first=loss, last=loss, rises=[0.0])
            return None
        rise = (loss - memory["last"]) / abs(memory["first"]) if memory["first"] else 0.0
        memory["rises"] = [*memory["rises"][-WINDOW:], rise]  # and the one before them
        memory["last"] = loss
        largest = max(memory["rises"][-WINDOW:])
        if largest <= self._jump or (memory["negative"] and memory["positive"]) or len(self._jumps()) < JUMPS:
            return self._healthy
        return whole_run(True, largest, self._jump)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Within half a jump of the last loss observed, no two losses are a jump apart."""
        if loss is None:
            return True
        first, last = self._memory["first"], self._memory["last"]
        return first is not None and abs(loss - last) <= self._jump / 2 * abs(first)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        jumps = self._jumps()
        first = self._memory["first"]
        measured = (
            f"the loss jumped up {len(jumps)} times in the last {len(self._memory['rises']) - 1} steps, by up to "
            f"{max(jumps):.3g} times its first value of {first:.4g} (a jump counts from {self._jump:g} times on)."
        )
        return "updates overshoot: each undoes what the one before had gained", measured

    def _jumps(self) -> list[float]:
        """Rises by more than a jump that follow a fall: a loss that climbs all the time diverges."""
        rises = self._memory["rises"]
        return [rise for before, rise in itertools.pairwise(rises) if rise > self._jump and before <= 0]
