"""``unstable``: updates that overshoot, so that the loss jumps up again and again instead of coming down.

A jump is one that the update before it can have made (``loss_evidence``). That keeps healthy runs silent whose losses
jump because the next batch is a harder one, or because the targets have moved. A jump is also large. It is compared
with the first loss, because near convergence a healthy loss jumps by many times its own, tiny, level. And it is
compared with the jumps of the same run that came with the data, because the first batch may have been an easy one.
A loss below zero is a likelihood, or a gain: its zero means nothing, so a jump is compared with all that was gained.

And the updates are large: an update that overshoots moves some weight by a good part of its norm. At sane rates a
weight moves by a thousandth, and by up to a fiftieth in small networks. There a loss jumps because its batches differ,
as in Q-learning, whose first loss says nothing of what is to come. Where updates overshoot, some weight moves by 0.2 to
100 times its norm. A network that diverges at smaller updates does not jump: its weights, or its losses, grow.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy, whole_run
from gradwatch.detect.loss_evidence import LossEvidence
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["Unstable"]

WINDOW = 40  # steps in which jumps are counted
JUMPS = 6  # upward jumps among them: a spike is one, a schedule's restart is one, a bad data shard a few
MOVED = 0.03  # of its norm, by which an update that overshoots moves some weight, at the least
SMALL = 0.2  # of the norm of an ordinary weight of its shape: one that is smaller may begin at zero, and must grow
SAMPLES = 3  # measured updates that this is taken from
HORIZON = 30  # losses that the mean is of, which says how much a loss below zero has gained
JUMP = 1.0  # a jump is as large as the whole loss was at first, and as those that come with the data

GREW = 3.0  # times the first loss: its mean is then more than jumps on the way down


@dataclass
class UnstableState:
    """The state of ``Unstable`` across steps, from finite losses alone.

    Attributes:
        first: the first loss.
        last: the latest loss.
        mean: running mean of the loss.
        lowest: the lowest that this mean has been.
        count: losses so far.
        moved: the largest share of its norm that a weight was moved by, of the last three measured updates.
        rose: whether the latest loss was above the one before it.
        jumps: for each of the last 40 changes, the jump as a multiple of the first loss; 0 where it is none.
        limits: the smallest multiple that would have been one.
        beyond: for each of the last 40 changes, how far it rose beyond the reach of the updates, or 0.
        evidence: what the loss can prove.
    """

    VERSION: ClassVar[int] = 3

    first: float | None = None
    last: float = 0.0
    mean: float = 0.0
    lowest: float = 0.0
    count: int = 0
    moved: list[float] = field(default_factory=list)
    rose: bool = False
    jumps: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)
    evidence: LossEvidence = field(default_factory=LossEvidence)


class Unstable(Detector[UnstableState]):
    """Upward jumps of the loss that the updates can have made, again and again.

    ``value`` is the largest such jump in the last 40 steps, as a multiple of the first loss, and ``threshold`` the
    multiple from which on it counts: 1, or, where that is larger, the median of the rises that the updates cannot have
    made, or all that a loss below zero has gained. A loss that changes sign (policy gradients, adversarial games) is no
    distance and is not judged. Nor is a run whose latest updates moved no weight by 0.03 of its norm.
    """

    kind = "unstable"
    covers_whole_run = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(UnstableState())
        self._layers = layers
        self._jump = thresholds.unstable_jump or JUMP
        self.patience = thresholds.patience or 1
        self._healthy = healthy(1)

    def examine(self, report: StepReport) -> DetectorResult | None:
        loss, ours = report.loss, self._state
        reach = ours.evidence.take_in(report)
        self._note_movement(report)
        if loss is None or not math.isfinite(loss):
            return None
        if ours.first is None:
            ours.first = ours.last = ours.mean = ours.lowest = loss
            ours.count = 1
            return None
        self._take_change(loss - ours.last, reach.rise)
        ours.last = loss
        are_large = not ours.moved or max(ours.moved) >= MOVED
        if self._count() < JUMPS or not ours.evidence.measures_progress or not are_large:
            return self._healthy
        return whole_run(True, *self._largest())

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow losses within half a jump of the last examined one.

        Bound: two losses that each lie within half a jump of the same value lie at most one jump apart, and no jump is
        smaller than the first loss times ``unstable_jump``. So none of the steps that wait adds a jump, and their
        number in the window can only fall. A step without a loss is not judged at all.
        """
        if loss is None:
            return True
        ours = self._state
        return ours.first is not None and abs(loss - ours.last) <= self._jump / 2 * abs(ours.first)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        largest, limit = self._largest()
        measured = (
            f"The loss jumped up {self._count()} times in the last {len(self._state.jumps)} steps, by up to "
            f"{largest:.3g} times its first value of {self._state.first:.4g} (a jump counts from {limit:.3g} times on)."
        )
        return Evidence(measured, (self._why(),))

    def _why(self) -> str:
        """Return why the loss jumps; one that has grown all along may be chasing what it is compared with."""
        ours = self._state
        first = ours.first or 0.0
        if ours.mean <= GREW * abs(first):
            return "Updates overshoot: each undoes what the one before had gained."
        grown = f"the loss has grown from {first:.3g} to {ours.mean:.3g} on average"
        return f"Updates overshoot, or the targets of the loss move with the model: {grown}."

    def _take_change(self, rise: float, reach: float) -> None:
        """Note whether this change of the loss is a jump; a rise that follows a rise is none: such a loss diverges."""
        ours, jump, limit = self._state, 0.0, self._jump
        scale = abs(ours.first or 0.0)
        if not ours.rose and reach >= rise > limit * scale > 0:
            beyond = [each for each in ours.beyond if each > 0]
            gained = (ours.first or 0.0) - ours.lowest  # above zero that is at most the first loss
            limit *= max(scale, gained, statistics.median(beyond) if beyond else 0.0) / scale
            jump = rise / scale if rise > limit * scale else 0.0
        ours.jumps = [*ours.jumps[1 - WINDOW :], jump]
        ours.limits = [*ours.limits[1 - WINDOW :], limit]
        ours.beyond = [*ours.beyond[1 - WINDOW :], max(0.0, rise - reach)]
        ours.rose = rise > 0
        ours.count += 1
        ours.mean += (ours.last + rise - ours.mean) / min(ours.count, HORIZON)
        ours.lowest = min(ours.lowest, ours.mean)

    def _note_movement(self, report: StepReport) -> None:
        """Keep the largest share of its norm that a measured update moved a weight by."""
        ratio, norm = report.figures.get("update_ratio"), report.figures.get("weight_norm")
        if ratio is None or norm is None or not report.sampled or report.skipped:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            moved = ratio * norm / np.fmax(norm, SMALL * self._layers.ordinary_norm)
        known = moved[self._layers.is_weight & np.isfinite(moved)]
        if len(known):
            self._state.moved = [*self._state.moved[1 - SAMPLES :], float(known.max())]

    def _count(self) -> int:
        return sum(jump > 0 for jump in self._state.jumps)

    def _largest(self) -> tuple[float, float]:
        """Return (the largest jump, the limit that it was compared with), both as multiples of the first loss."""
        return max(zip(self._state.jumps, self._state.limits, strict=True))
