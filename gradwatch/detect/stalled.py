"""``stalled``: weights, or a loss, that have not moved since the run began."""

from __future__ import annotations

import math

import numpy as np

from gradwatch.detect.symptoms import Detector, Symptoms, whole_run
from gradwatch.findings import Thresholds
from gradwatch.measure.report import StepReport

__all__ = ["Stalled"]

RESOLUTION = 2.0**-24  # half of float32's spacing: an update this small against its weight is rounded away
FLAT = 1e-3  # share of its first value within which the loss has stayed all the time
FLAT_STEPS = 100  # ... for so many steps: minibatch noise alone is wider than this after a few
SAMPLES = 10  # samples of the weights in a row, taken at steps 0, 1, 2, 4, 8 and every tenth: a warm-up may begin at 0


class Stalled(Detector):
    """A run that stands where it began, although gradients arrive.

    Sick is a run (1) no sampled update of which has moved any layer by more than rounding, or (2) whose loss has stayed
    within 1e-3 of its first value for 100 steps. The first thing that moves ends the watch: a run that has learned may
    stand still (converged, or at the end of its schedule). ``value`` is the largest update ratio ‖Δw‖/‖w‖ of any layer,
    ``threshold`` what it should exceed; under (2) both are shares of the first loss.
    ``Thresholds.stalled_update_ratio`` replaces both rules by its literal meaning, at any time of the run.
    """

    kind = "stalled"
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__()
        self._literal = thresholds.stalled_update_ratio
        self.patience = thresholds.patience or SAMPLES
        self._memory = {"weights_moved": False, "loss_moved": False, "first_loss": None, "losses": 0, "change": 0.0}

    def examine(self, report: StepReport) -> Symptoms | None:
        self._watch_loss(report.loss)
        ratios = report.figures.get("update_ratio")
        if not report.sampled or report.skipped or ratios is None or np.isnan(ratios).all():
            return None
        ratio = float(np.nanmax(ratios))
        if self._literal is not None:
            return whole_run(ratio < self._literal, ratio, self._literal)
        memory = self._memory
        memory["weights_moved"] |= ratio > RESOLUTION
        gradients_arrive = report.grad_norm_total > 0  # else it is vanishing, not stalled
        if self._loss_is_flat():
            return whole_run(gradients_arrive, memory["change"], FLAT)
        return whole_run(gradients_arrive and not memory["weights_moved"], ratio, RESOLUTION)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        ratio = float(np.nanmax(report.figures["update_ratio"]))
        if self._literal is None and self._loss_is_flat():
            measured = (
                f"in {self._memory['losses']} steps the loss has moved by at most {self._memory['change']:.2g} of its "
                f"first value, {self._memory['first_loss']:.6g} (a run that learns moves by more than {FLAT:g} of it)."
            )
        else:
            limit = RESOLUTION if self._literal is None else self._literal
            measured = (
                f"the largest update of any layer at step {report.step} is {ratio:.3g} of its weights (a run that "
                f"learns moves by more than {limit:.3g})."
            )
        return (
            f"gradients arrive (total norm {report.grad_norm_total:.3g}), updates move the weights by {ratio:.3g} of "
            "their norm at most",
            measured,
        )

    def _watch_loss(self, loss: float | None) -> None:
        memory = self._memory
        if loss is None or not math.isfinite(loss):
            return
        if memory["first_loss"] is None:
            memory["first_loss"] = loss
        scale = abs(memory["first_loss"]) or 1.0
        memory["losses"] += 1
        memory["change"] = max(memory["change"], abs(loss - memory["first_loss"]) / scale)
        memory["loss_moved"] |= memory["change"] > FLAT

    def _loss_is_flat(self) -> bool:
        return self._memory["losses"] >= FLAT_STEPS and not self._memory["loss_moved"]
