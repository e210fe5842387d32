"""``dead``: units that pass no gradient, whatever their inputs are.

Five samples are what it takes to know that units are dead, because one batch may leave some of them alone. Where all
units of a layer are, gradients vanish before it and may vanish after it, and ``vanishing`` is sooner known. Then the
finding is this layer's (``shut_among``): its gradient has been gone for as long as that rule has waited, and at the
latest sample it had not one unit that passed any. Nothing is raised by it that was not raised before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import SILENT_SAMPLES, Floats, StepReport

__all__ = ["Dead"]

SHARE = 0.8  # of a layer's units; healthy rectifiers lose up to two thirds
PATIENCE = 2  # samples


@dataclass
class DeadState:
    """The state of ``Dead`` across steps.

    Attributes:
        is_shut: (P,) bool, layers none of whose units passed a gradient at the latest sample.
        samples: the steps of the last five samples.
    """

    VERSION: ClassVar[int] = 2

    is_shut: NDArray[np.bool_]
    samples: list[int] = field(default_factory=list)


class Dead(Detector[DeadState]):
    """A rectifier most of whose units have passed no gradient on any input of five sampled forward passes.

    Units are judged, not entries: half of a healthy ReLU's entries are zero, another half on every batch. ``value`` is
    the share of dead units that follow the layer. ``Thresholds.dead_share`` replaces the share.
    """

    kind = "dead"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(DeadState(np.zeros(len(layers), dtype=bool)))
        self._layers = layers
        self._share = thresholds.dead_share or SHARE
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        share = report.figures.get("dead_share")
        if share is None or not report.is_finite:  # no unit passes a NaN on as a gradient
            return None
        samples = self._state.samples = [*self._state.samples, report.step][-SILENT_SAMPLES:]
        self._state.is_shut = self._are_shut(report)
        known = np.nan_to_num(share, nan=0.0)
        return self._result(known >= self._share, known, samples[0])

    @staticmethod
    def _are_shut(report: StepReport) -> NDArray[np.bool_]:
        """Return (P,) the layers without a living unit; a weight of zeros has not killed them, it has yet to begin."""
        figures, unknown = report.figures, np.full(len(report.layers), np.nan)
        with np.errstate(invalid="ignore"):
            return (figures.get("shut_samples", unknown) >= 1) & (figures.get("weight_norm", unknown) != 0)

    def shut_among(self, columns: Iterable[int], since: int) -> DetectorResult | None:
        """Return what to say of those of ``columns`` that were shut at a sample since; None where none was.

        Args:
            columns: of layers whose gradients have vanished.
            since: the step since which they have.
        """
        if not self._state.samples or self._state.samples[-1] < since:
            return None
        sick = np.zeros_like(self._state.is_shut)
        sick[list(columns)] = True
        sick &= self._state.is_shut
        return self._result(sick, sick.astype(float), since) if sick.any() else None

    def _result(self, sick: NDArray[np.bool_], share: Floats, onset: int) -> DetectorResult:
        return DetectorResult(
            sick=sick,
            badness=share - 1e-6 * self._layers.depth,  # of several dead layers, that nearest the input
            value=share,
            threshold=np.full(len(share), self._share),
            onset=np.full(len(share), onset),
        )

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        shares, name = report.figures.get("dead_share"), self._layers.names[column]
        share = np.nan if shares is None else shares[column]
        if not share >= self._share:
            return self._explain_shut(report, name)
        passes = count_of(len(self._state.samples), "sampled forward pass", "sampled forward passes")
        return Evidence(
            measured=f"{share:.0%} of the units after {name} passed no gradient on any input of {passes} up to step "
            f"{report.step} (normal: less than {self._share:.0%}).",
            cause=("The inputs of its activation function are so far below zero that the function is flat there.",),
        )

    def _explain_shut(self, report: StepReport, name: str) -> Evidence:
        return Evidence(
            measured=f"No unit after {name} passed a gradient on any input of the sampled forward pass of step "
            f"{self._state.samples[-1]}, and the gradient of {name} has vanished up to step {report.step} (normal: "
            f"less than {self._share:.0%} of the units).",
            cause=(
                "All inputs of its activation function lie where that is flat, at zero or below: no gradient passes to "
                "the layer or to those before it.",
            ),
        )
