"""``exploding`` by a loss that falls without an end, and drives the gradients with it.

What is measured, at sampled updates. The *fall* is by how many decades the running mean of the loss lies below zero,
against the largest of the first ten absolute losses; the *rise* is by how many the total gradient norm has outgrown the
largest of the first ten. Both count from 1 at least, so that a loss that begins at nothing may grow into its size.

Why no healthy run shows it. A likelihood falls as the logarithm of its density, and an actor's loss as far as rewards
go, two or three decades; gradients then stay of their size. A loss that has fallen by four decades, at a new lowest at
every sample of fifty steps, while its gradients have risen by three, has no minimum: a multiplier or a temperature
whose loss has the wrong sign, a term that is maximised. The weights may stay as they are: it is enough that the
logarithm of one number grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.detect.course import Course
from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.unbounded import SAMPLES
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["RunawayLoss"]

FALLEN = 4.0  # decades below zero
RISEN = 3.0  # decades of the total gradient norm
LEAST = 1.0  # that the first losses and norms count as
MAKES_IT = 0.1  # share of the total that a layer which drives the rise has


@dataclass
class RunawayLossState:
    """The state of ``RunawayLoss`` across steps.

    Attributes:
        course: how the run began, and its loss now.
        lowest: the lowest running mean of the loss at the samples so far.
    """

    VERSION: ClassVar[int] = 2

    course: Course = field(default_factory=Course)
    lowest: float = math.inf


class RunawayLoss(Detector[RunawayLossState]):
    """A loss that falls without an end; ``value`` is the growth of the gradient since the first steps.

    A run is sick at a sample where the fall is at least 4 decades, at its farthest so far, and the rise at least 3.
    Every layer is sick that has a tenth of the total gradient norm; ``value`` is its norm ÷ the largest of the first
    totals, ``threshold`` a tenth of 1,000. ``Thresholds.exploding_growth`` replaces the rule.
    """

    kind = "exploding"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(RunawayLossState())
        self._layers = layers
        self._is_replaced = thresholds.exploding_growth is not None
        self.patience = thresholds.patience or SAMPLES
        self._healthy = healthy(len(layers))

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_replaced or not report.is_finite:
            return None
        ours, course, total = self._state, self._state.course, report.grad_norm_total
        course.add(report)
        if not report.sampled:
            return None
        is_lowest = course.loss < ours.lowest
        ours.lowest = min(course.loss, ours.lowest)
        has_fallen = -course.loss >= 10**FALLEN * self._first_loss
        if not (is_lowest and has_fallen and 10**RISEN * self._first_total <= total < math.inf):
            return self._healthy
        norm = np.where(report.measured, report.grad_norm, 0.0)
        growth = norm / self._first_total
        return DetectorResult(norm >= MAKES_IT * total, growth, growth, np.full(len(norm), MAKES_IT * 10**RISEN))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        course, total = self._state.course, report.grad_norm_total
        measured = (
            f"The loss was at most {self._first_loss:.3g} away from zero in the first steps, and is {course.loss:.3g} "
            f"at step {report.step}; the total gradient norm has grown to {total:.3g}."
        )
        cause = (
            f"The loss falls without an end, by the gradient of {self._layers.names[column]} above all. "
            "Look for a term of the wrong sign, or a factor that is learned and may grow for ever."
        )
        figure = f"the loss falls without an end, to {course.loss:.3g}"
        return Evidence(measured, (cause,), ("grows without bound",), figure)

    @property
    def _first_loss(self) -> float:
        return max(LEAST, self._state.course.first_loss)

    @property
    def _first_total(self) -> float:
        return max(LEAST, self._state.course.first_total)
