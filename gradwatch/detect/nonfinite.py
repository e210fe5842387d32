"""``nonfinite``: NaN or Inf in a gradient or in the loss.

The entries themselves are judged, never a norm, so one sick step is enough and there is no threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy, whole_run
from gradwatch.detect.wording import count_of
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, Origin, StepReport

__all__ = ["NonFiniteGradient", "NonFiniteLoss"]

PERSISTS = 20  # overflows in a row under a gradient scaler: halved as often, a scale of 65,536 is below 1


@dataclass
class GradientState:
    """The state of ``NonFiniteGradient`` across steps.

    Attributes:
        overflows: overflows in a row under a gradient scaler.
        since: the step of the first of them.
    """

    VERSION: ClassVar[int] = 1

    overflows: int = 0
    since: int = 0


class NonFiniteGradient(Detector[GradientState]):
    """NaN or Inf entries in a gradient; ``value`` is their number.

    The finding's layer is the one nearest the output, or, where an update made NaN of a weight, that weight.
    """

    kind = "nonfinite"
    severity = "error"

    def __init__(self, layers: Layers) -> None:
        super().__init__(GradientState())
        self._layers, self._healthy = layers, healthy(len(layers))

    def examine(self, report: StepReport) -> DetectorResult:
        self._count_overflows(report)
        if report.gradients_are_finite:
            return self._healthy
        ours = self._state
        is_left_to_the_scaler = 0 < ours.overflows < PERSISTS
        sick = (report.nonfinite > 0) & (not is_left_to_the_scaler)
        return DetectorResult(
            sick=sick,
            badness=self._layers.depth + len(sick) * self._made_by_update(report),
            value=report.nonfinite.astype(float),
            threshold=np.zeros(len(sick)),
            onset=np.full(len(sick), ours.since if ours.overflows else report.step),
        )

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow every step whose total is finite.

        Bound: one entry that is NaN or Inf makes the norm of its gradient, and so the total, NaN or Inf.
        """
        return math.isfinite(total)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        found = self._found(int(report.nonfinite[column]), column)
        others = f"; this concerns {len(covered)} of {len(self._layers)} layers" if len(covered) > 1 else ""
        return Evidence(
            measured=f"{found} NaN or Inf at step {report.step}{others}.",
            cause=_with_origin(report, self._cause(report)),
        )

    def _made_by_update(self, report: StepReport) -> Floats:
        """Return (P,) 2 for weights of the module whose update made NaN or Inf, 1 for its other tensors, else 0."""
        made = np.zeros(len(self._layers))
        if report.origin is None or report.origin.where != "update" or report.weight_nonfinite is None:
            return made
        for column in np.flatnonzero(report.weight_nonfinite).tolist():
            if self._layers.names[column].rpartition(".")[0] == report.origin.module:
                made[column] = 2.0 if self._layers.is_weight[column] else 1.0
        return made

    def _found(self, count: int, column: int) -> str:
        """Return the words for so many sick entries; off the CPU a count of 1 means "at least one"."""
        size, name = int(self._layers.size[column]), self._layers.names[column]
        if size == 1:
            return f"The only gradient entry of {name} is"
        if count == 1:
            return f"At least 1 of {size:,} gradient entries of {name} is"
        return f"{count:,} of {size:,} gradient entries of {name} are"

    def _count_overflows(self, report: StepReport) -> None:
        """Count overflows in a row; the scale is not to blame for a loss that is not finite itself."""
        ours = self._state
        if not report.overflowed or (report.loss is not None and not math.isfinite(report.loss)):
            ours.overflows = 0
            return
        if ours.overflows == 0:
            ours.since = report.step
        ours.overflows += 1

    def _cause(self, report: StepReport) -> str:
        if self._state.overflows:
            return f"The gradient scaler lowered its scale {self._state.overflows} times in a row, and it did not help."
        if (corrupt := self._corrupt_weight(report)) is not None:
            return corrupt
        if report.loss is not None and not math.isfinite(report.loss):
            return f"The loss of this step is {report.loss}, while every weight is finite."
        return self._cause_of_finite_loss(report, report.origin)

    def _cause_of_finite_loss(self, report: StepReport, origin: Origin | None) -> str:
        if origin is not None and not origin.is_own:
            loss = "No" if report.loss is None else f"The loss of this rank is finite ({report.loss:.4g}), and no"
            return f"{loss} weight was sick before this step."
        if report.loss is not None:
            return f"The loss is finite ({report.loss:.4g}): the backward pass made it."
        if origin is not None and origin.where == "update":
            return "The backward pass met it in that weight."
        return "No weight was sick before this step."

    def _corrupt_weight(self, report: StepReport) -> str | None:
        """Return the first weight from the input on that was sick before this step, and what it held."""
        corrupt = report.weight_nonfinite
        if corrupt is None or not corrupt.any():
            return None
        columns = np.flatnonzero(corrupt)
        first = int(columns[np.argmin(self._layers.depth[columns])])
        held = count_of(int(corrupt[first]), "entry that is", "entries that are")
        name = self._layers.names[first]
        subject = "The weight" if name == "weight" else f"The weight {name}"
        return f"{subject} already held {held} NaN or Inf before this step."


@dataclass
class LossState:
    """The state of ``NonFiniteLoss`` across steps.

    Attributes:
        went_first: whether the loss turned NaN or Inf while every gradient was finite, and has stayed so.
    """

    VERSION: ClassVar[int] = 1

    went_first: bool = False


class NonFiniteLoss(Detector[LossState]):
    """A loss that turns NaN or Inf before any gradient does.

    When both turn at one step, only the finding of the gradient is raised, and its cause names the loss.
    """

    kind = "nonfinite"
    severity = "error"
    covers_whole_run = True

    def __init__(self) -> None:
        super().__init__(LossState())
        self._healthy = healthy(1)

    def examine(self, report: StepReport) -> DetectorResult | None:
        if report.loss is None:
            return None
        sick = not math.isfinite(report.loss)
        self._state.went_first = sick and (self._state.went_first or report.gradients_are_finite)
        if not sick:
            return self._healthy
        return whole_run(self._state.went_first, value=1, threshold=0)  # one number that is not finite

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow every step whose loss is finite or was not observed. Bound: only a loss that is not finite is sick."""
        return loss is None or math.isfinite(loss)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        return Evidence(
            measured=f"The loss is {report.loss} at step {report.step}, while every gradient is still finite.",
            cause=_with_origin(report, "The forward pass made it, for no gradient of this step is sick."),
        )


def _with_origin(report: StepReport, cause: str) -> tuple[str, ...]:
    if report.origin is None:
        return (cause,)
    return f"{report.origin.evidence.capitalize()}: {report.origin.words.rstrip('.')}.", cause
