"""``vanishing`` in a run whose gradients turn exactly zero at once, and stay so.

What is measured: the total norm of every update. It was above zero at one of the first two updates, or at both, and
has been exactly zero at each one since, beside a loss that is not near zero.

Why no healthy run shows it. A minimum is not hit so exactly, and a hinge that is satisfied has a loss of zero. A run
that has learned has had more than two gradients. Five such updates in a row are enough, where other gradients that are
gone are given ten, because short runs end before that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.vanishing import GONE_RATIO, UNFINISHED
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["DiedAtOnce"]

FIRST = 2  # updates that may have had a gradient
PATIENCE = 5  # updates in a row


@dataclass
class DiedAtOnceState:
    """The state of ``DiedAtOnce`` across steps.

    Attributes:
        reached: updates with a gradient.
        largest: the largest total norm of them.
        first_loss: the first finite loss.
    """

    VERSION: ClassVar[int] = 1

    reached: int = 0
    largest: float = 0.0
    first_loss: float | None = None


class DiedAtOnce(Detector[DiedAtOnceState]):
    """Layers of a run that has had a gradient at its first updates and none since.

    ``value`` is the L2 norm of the gradient, 0, and ``threshold`` 1e-6 of the first total.
    ``Thresholds.vanishing_norm`` replaces the rule.
    """

    kind = "vanishing"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(DiedAtOnceState())
        self._layers = layers
        self._is_off = thresholds.vanishing_norm is not None
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        ours, total, loss = self._state, report.grad_norm_total, report.loss
        if not report.is_finite or not report.measured.any():
            return None
        if total > 0:
            ours.reached, ours.largest = ours.reached + 1, max(ours.largest, total)
        if ours.first_loss is None:
            ours.first_loss = loss
        if self._is_off or total > 0 or not 0 < ours.reached <= FIRST or not self._has_work(loss):
            return healthy(len(self._layers))
        zero = np.zeros(len(self._layers))
        badness = self._layers.is_weight - 1e-6 * self._layers.depth
        return DetectorResult(report.measured, badness, zero, np.full(len(zero), GONE_RATIO * ours.largest))

    def _has_work(self, loss: float | None) -> bool:
        """Return True if the loss is not near zero."""
        first = self._state.first_loss
        return loss is not None and first is not None and loss > UNFINISHED * first > 0

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow fewer steps than the patience, or any once more than two updates had a gradient.

        Bound: no layer was sick at the last examined step, so a streak is at most as long as the steps that wait.
        """
        return waiting < self.patience or self._state.reached > FIRST

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        measured = (
            f"The gradient of every layer is exactly zero at step {report.step}, as it was at all but "
            f"{count_of(self._state.reached, 'update', 'updates')} so far, while the loss is {report.loss:.4g}."
        )
        return Evidence(measured, ("No gradient reaches any layer: the output or the loss is flat.",), ("no gradient",))
