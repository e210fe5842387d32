"""Judge what a loss can prove: whether its level measures progress, and which of its changes the updates can have made.

Two things make a loss a bad witness, and neither is a disease.

*Its level measures nothing.* The loss of a policy gradient, of an adversary, or of a regulariser that outweighs the
rest goes through zero. Shares of its first value then mean nothing, and a rise is no harm.

*Its changes come with the data.* One batch is harder than another, the targets of a bootstrapped critic move, two tasks
take turns. Such a loss rises although no update has done any harm. The proof is in the gradients. A convex loss changes
from w to w + Δw by at most

    L(w + Δw) − L(w) ≤ ⟨∇L(w + Δw), Δw⟩ ≤ ‖∇L(w + Δw)‖ · ‖Δw‖,    L(w) − L(w + Δw) ≤ ‖∇L(w)‖ · ‖Δw‖,

and along one step a network is nearly so. A change beyond this *reach* cannot be the update's work. Of the jumps of
16 programs whose rate is too high nine in ten rise by less than their reach; of those of programs that learn (small
batches, Q-learning, actor and critic, diffusion, several tasks) nine in ten rise by more, most of them 3 to 100 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from gradwatch.measure.report import StepReport

__all__ = ["LossEvidence", "Reach"]

SAMPLES = 3  # measured updates that the length of the next ones is taken from: a rate may change, a batch may be easy


class Reach(NamedTuple):
    """How far the updates since the last loss can have changed the loss; Inf where that is not known.

    Attributes:
        rise: the largest rise that they can have made.
        fall: the largest fall.
    """

    rise: float
    fall: float


UNKNOWN = Reach(math.inf, math.inf)


@dataclass
class LossEvidence:
    """The signs of the losses of one optimizer so far, and the lengths of its updates.

    Attributes:
        negative: whether any loss was below zero.
        positive: whether any loss was above zero.
        lengths: ‖Δw‖ of the last three measured updates.
        rates: ‖Δw‖ over the norm of the gradient that made it, of the same updates.
        path: the length of all updates since the last loss; None where it is not known.
        gradient: the norm of the gradient at the last loss.
    """

    VERSION: ClassVar[int] = 1

    negative: bool = False
    positive: bool = False
    lengths: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    path: float | None = 0.0
    gradient: float = 0.0

    @property
    def measures_progress(self) -> bool:
        """Return False if the loss has been on both sides of zero."""
        return not (self.negative and self.positive)

    def note_sign(self, loss: float | None) -> None:
        """Take in the sign of one loss, for a rule that asks for nothing else."""
        if loss is not None:
            self.negative |= loss < 0
            self.positive |= loss > 0

    def take_in(self, report: StepReport) -> Reach:
        """Take in one step; return how far the updates since the last loss can have changed the loss.

        The reach is not known before an update was measured, nor where the loop had clipped the gradient before it was
        measured.
        """
        self.note_sign(report.loss)
        total = report.grad_norm_total
        reach, path = UNKNOWN, self.path
        if path is not None and self.lengths and not math.isnan(total) and not report.already_clipped:
            reach = Reach(path * total, path * self.gradient)
        if report.loss is not None and math.isfinite(report.loss):
            path, self.gradient = 0.0, total
        if not report.skipped:
            self._note_update(report)
            length = self._length(report.grad_norm_clipped_total)
            path = None if path is None or length is None else path + length
        self.path = path
        return reach

    def _note_update(self, report: StepReport) -> None:
        """Keep the length of an update that was measured.

        A weight that was zero has no ratio, nor has one whose gradient is sparse. The length of the others is scaled up
        by their share of the gradient.
        """
        ratio, size = report.figures.get("update_ratio"), report.figures.get("weight_norm")
        if not report.sampled or ratio is None or size is None:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            length = ratio * size
        known = np.isfinite(length) & np.isfinite(report.grad_norm)
        gradient = float(np.linalg.norm(report.grad_norm[known]))
        used = report.grad_norm_clipped_total
        if gradient > 0 and math.isfinite(report.grad_norm_total) and math.isfinite(used) and used > 0:
            moved = float(np.linalg.norm(length[known])) * (report.grad_norm_total / gradient)
            self.lengths = [*self.lengths[1 - SAMPLES :], moved]
            self.rates = [*self.rates[1 - SAMPLES :], moved / used]

    def _length(self, gradient: float) -> float | None:
        """Return the longest that an update by a gradient of this norm may be, None where none was measured.

        Adam's updates have one length whatever the gradient is, those of SGD are proportional to it.
        """
        if not self.lengths or math.isnan(gradient):
            return None
        return max(max(self.lengths), min(self.rates) * gradient)
