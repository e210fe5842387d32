"""``stalled``: weights, or a loss, that have not moved since the run began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, whole_run
from gradwatch.findings import Thresholds
from gradwatch.measure.report import StepReport

__all__ = ["Stalled"]

RESOLUTION = 2.0**-24  # half of float32's spacing: an update this small against its weight is rounded away
FLAT = 1e-3  # share of its first value within which the loss has stayed all the time
FLAT_STEPS = 100  # ... for so many steps: minibatch noise alone is wider than this after a few
SAMPLES = 10  # samples of the weights in a row, taken at steps 0, 1, 2, 4, 8 and every tenth: a warm-up may begin at 0


@dataclass
class StalledState:
    """The state of ``Stalled`` across steps.

    Attributes:
        weights_moved: whether any sampled update moved a layer by more than rounding.
        loss_moved: whether the loss has left the thousandth around its first value.
        first_loss: the first finite loss.
        losses: finite losses so far.
        change: the largest distance from the first loss, as a share of it.
    """

    VERSION: ClassVar[int] = 1

    weights_moved: bool = False
    loss_moved: bool = False
    first_loss: float | None = None
    losses: int = 0
    change: float = 0.0


class Stalled(Detector[StalledState]):
    """A run that stays where it began, although gradients arrive.

    A run is sick (1) if no sampled update of it has moved any layer by more than rounding, or (2) if its loss has
    stayed within 1e-3 of its first value for 100 steps. The first thing that moves ends the watch: a run that has
    learned may come to rest (converged, or at the end of its schedule). ``value`` is the largest update ratio ‖Δw‖/‖w‖
    of any layer, ``threshold`` what it should exceed; under (2) both are shares of the first loss.
    ``Thresholds.stalled_update_ratio`` replaces both rules by its literal meaning, at any time of the run.
    """

    kind = "stalled"
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(StalledState())
        self._literal = thresholds.stalled_update_ratio
        self.patience = thresholds.patience or SAMPLES

    def examine(self, report: StepReport) -> DetectorResult | None:
        self._follow_loss(report.loss)
        ratios = report.figures.get("update_ratio")
        if not report.sampled or report.skipped or ratios is None or np.isnan(ratios).all():
            return None
        ratio = float(np.nanmax(ratios))
        if self._literal is not None:
            return whole_run(ratio < self._literal, ratio, self._literal)
        ours = self._state
        ours.weights_moved |= ratio > RESOLUTION
        gradients_arrive = report.grad_norm_total > 0  # without gradients the run is vanishing, not stalled
        if self._loss_is_flat():
            return whole_run(gradients_arrive, ours.change, FLAT)
        return whole_run(gradients_arrive and not ours.weights_moved, ratio, RESOLUTION)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        ratio = float(np.nanmax(report.figures["update_ratio"]))
        if self._literal is None and self._loss_is_flat():
            measured = (
                f"In {self._state.losses} steps the loss has moved by at most {self._state.change:.2g} of its first "
                f"value, {self._state.first_loss:.6g} (a run that learns moves by more than {FLAT:g} of it)."
            )
        else:
            limit = RESOLUTION if self._literal is None else self._literal
            measured = (
                f"The largest update of any layer at step {report.step} is {ratio:.3g} of its weights (a run that "
                f"learns moves by more than {limit:.3g})."
            )
        cause = (
            f"Gradients arrive (total norm {report.grad_norm_total:.3g}), but an update moves no layer by more than "
            f"{ratio:.3g} of its norm."
        )
        return Evidence(measured, (cause,))

    def _follow_loss(self, loss: float | None) -> None:
        if loss is None or not math.isfinite(loss):
            return
        ours = self._state
        if ours.first_loss is None:
            ours.first_loss = loss
        scale = abs(ours.first_loss) or 1.0
        ours.losses += 1
        ours.change = max(ours.change, abs(loss - ours.first_loss) / scale)
        ours.loss_moved |= ours.change > FLAT

    def _loss_is_flat(self) -> bool:
        return self._state.losses >= FLAT_STEPS and not self._state.loss_moved
