"""``nonfinite``: NaN or Inf in a gradient or in the loss.

Evidence is the entries themselves, never a norm, so one sick step is enough and no threshold is involved.
"""

from __future__ import annotations

import math

import numpy as np

from gradwatch.detect.symptoms import Detector, Symptoms, healthy, whole_run
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["NonFiniteGradient", "NonFiniteLoss"]

PERSISTS = 20  # overflows in a row under a gradient scaler: halved as often, a scale of 65,536 is below 1


class NonFiniteGradient(Detector):
    """NaN or Inf entries in a gradient; ``value`` is their number, the finding's layer the one nearest the output."""

    kind = "nonfinite"
    severity = "error"

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self._layers, self._healthy = layers, healthy(len(layers))
        self._memory = {"overflows": 0, "since": 0}

    def examine(self, report: StepReport) -> Symptoms:
        self._count_overflows(report)
        if report.gradients_are_finite:
            return self._healthy
        is_first_overflows = 0 < self._memory["overflows"] < PERSISTS
        sick = (report.nonfinite > 0) & (not is_first_overflows)
        return Symptoms(
            sick=sick,
            badness=self._layers.depth.astype(float),
            value=report.nonfinite.astype(float),
            threshold=np.zeros(len(sick)),
            onset=np.full(len(sick), self._memory["since"] if self._memory["overflows"] else report.step),
        )

    def _count_overflows(self, report: StepReport) -> None:
        """In a row; a loss that is not finite itself is no matter of its scale."""
        memory = self._memory
        if not report.overflowed or (report.loss is not None and not math.isfinite(report.loss)):
            memory["overflows"] = 0
            return
        if memory["overflows"] == 0:
            memory["since"] = report.step
        memory["overflows"] += 1

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        size, count = int(self._layers.size[column]), int(report.nonfinite[column])
        others = f", {len(covered)} of {len(self._layers)} layers in all" if len(covered) > 1 else ""
        measured = (
            f"{count:,} of {size:,} gradient entries of {self._layers.names[column]} are NaN or Inf at step "
            f"{report.step}{others}."
        )
        return _with_origin(report, self._cause(report)), measured

    def _cause(self, report: StepReport) -> str:
        if self._memory["overflows"]:
            return (
                f"the gradient scaler lowered its scale {self._memory['overflows']} times in a row, and it did not help"
            )
        corrupt = [] if report.weight_nonfinite is None else np.flatnonzero(report.weight_nonfinite).tolist()
        if corrupt:
            worst = max(corrupt, key=lambda column: -self._layers.depth[column])
            return (
                f"the weight {self._layers.names[worst]} already held {int(report.weight_nonfinite[worst]):,} "  # type: ignore[index]
                "entries that are NaN or Inf before this step"
            )
        if report.loss is not None and not math.isfinite(report.loss):
            return f"the loss of this step is {report.loss}, while every weight is finite"
        if report.loss is not None:
            return f"the loss is finite ({report.loss:.4g}): the backward pass made it"
        return "no weight was sick before this step"


class NonFiniteLoss(Detector):
    """A loss that turns NaN or Inf before any gradient does; when they turn together the gradient's finding says so."""

    kind = "nonfinite"
    severity = "error"
    covers_whole_run = True

    def __init__(self) -> None:
        super().__init__()
        self._healthy = healthy(1)
        self._memory = {"went_first": False}

    def examine(self, report: StepReport) -> Symptoms | None:
        if report.loss is None:
            return None
        sick = not math.isfinite(report.loss)
        self._memory["went_first"] = sick and (self._memory["went_first"] or report.gradients_are_finite)
        if not sick:
            return self._healthy
        return whole_run(self._memory["went_first"], value=1, threshold=0)  # one number that is not finite

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        return (
            _with_origin(report, "the forward pass: no gradient of this step is sick"),
            f"the loss is {report.loss} at step {report.step}, while every gradient is still finite.",
        )


def _with_origin(report: StepReport, cause: str) -> str:
    return cause if report.origin is None else f"{report.origin.evidence}: {report.origin.words}; {cause}"
