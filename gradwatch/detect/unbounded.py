"""``exploding`` slowly: weights that grow for hundreds of steps, and a loss that runs away with them.

What is measured. At each sampled update the *growth* of a weight is its norm ÷ its size when the run began: its first
norm, but at least that of an ordinary weight of its shape, so that weights that begin at zero or near it may grow
into their size. A network multiplies its weights, so what counts is the *stretch*: the sum of the decades of all
weights that have grown at least threefold. The *flight* of the loss is by how many decades its running mean exceeds,
above or below zero, the largest of the first ten losses.

Why no healthy run shows it. Weights of healthy runs grow, too: on separable classes as log t, before a normalisation
as √t, on raw targets to whatever these ask for. There the loss comes down. Losses of healthy runs rise, too: where
rewards come late, or where a critic follows its actor; an actor's loss falls below zero as far as its rewards go.
There the weights stay of their size. Stretch and flight together, both large and the flight at its highest for fifty
steps in a row, are growth without bound: a negative weight decay, a critic that nothing bounds, targets that the
network makes itself, a term that is maximised. Weights that grow while no gradient arrives at all are grown by the
optimizer alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.detect.course import Course
from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Unbounded"]

GROWN = 3.0  # times its size: smaller growth is left out, so that depth alone makes no stretch
STRETCHED = 0.6  # decades of stretch: one weight that has grown fourfold ...
FLOWN = 1.0  # ... and decades of flight: a loss ten times as large as any at first ...
TOGETHER = 3.5  # ... and both together
AT_ITS_HIGHEST = 0.3  # decades: a loss that has halved since is coming down
STRETCHED_UNSEEN = 1.0  # decades of stretch without a loss, whose flight is then that of the total gradient norm ...
TOGETHER_UNSEEN = 6.0  # ... and both together: gradients grow a hundredfold in healthy runs, too
IDLE_STRETCHED, IDLE_GREW = 2.0, 0.5  # decades of stretch, and of those since the last gradient that was not zero
SAMPLES = 6  # in a row: fifty steps


@dataclass
class UnboundedState:
    """The state of ``Unbounded`` across steps.

    Attributes:
        sizes: (P,) size of each weight when the run began; NaN before its first sample.
        course: how the run began, and its loss now.
        farthest: the largest flight so far, in decades.
        idle_stretch: the stretch at the first sample since which no gradient has arrived; NaN while gradients arrive.
    """

    VERSION: ClassVar[int] = 2

    sizes: Floats
    course: Course = field(default_factory=Course)
    farthest: float = 0.0
    idle_stretch: float = math.nan


class Unbounded(Detector[UnboundedState]):
    """Weights that grow without bound; ``value`` is the growth of a weight, ``threshold`` is 3.

    A run is sick at a sample where the stretch is at least 0.6 decades, the flight of the loss at least 1, both
    together at least 3.5, and the flight within 0.3 of its highest. Where no loss is observed, the flight is that of
    the total gradient norm, and the limits are higher. It is sick, too, where the stretch has grown by half a decade to
    two or more while every gradient was zero. Then every weight is sick that has grown threefold.
    ``Thresholds.exploding_growth`` replaces the rule.
    """

    kind = "exploding"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(UnboundedState(np.full(len(layers), np.nan)))
        self._layers = layers
        self._is_replaced = thresholds.exploding_growth is not None
        self.patience = thresholds.patience or SAMPLES
        self._healthy = healthy(len(layers))
        self._is_idle = False  # no gradient arrived, for explain

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_replaced or not report.is_finite:
            return None
        self._state.course.add(report)
        norms = report.figures.get("weight_norm")
        if not report.sampled or norms is None:
            return None
        ours = self._state
        ours.sizes = np.where(np.isnan(ours.sizes), np.fmax(norms, self._layers.ordinary_norm), ours.sizes)
        with np.errstate(invalid="ignore"):  # a norm may overflow
            growth = np.where(self._layers.is_weight, np.nan_to_num(norms / ours.sizes, nan=0.0), 0.0)
        grown = growth >= GROWN
        stretch = float(np.log10(growth[grown]).sum())
        self._is_idle = self._grows_idly(report, stretch)
        if not (self._is_idle or self._flies(report, stretch)):
            return self._healthy
        return DetectorResult(grown, growth, growth, np.full(len(growth), GROWN))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        ours, name = self._state, self._layers.names[column]
        norm, size = float(report.figures["weight_norm"][column]), float(ours.sizes[column])
        measured = (
            f"The norm of {name} is {norm:.3g} at step {report.step}, {norm / size:.3g} times its size when the run "
            f"began (normal: up to {GROWN:g} times, unless the loss comes down)."
        )
        figure = f"its weights are {norm / size:.3g} times their first size, normal up to {GROWN:g}"
        grown = count_of(len(covered), "weight has", "weights have")
        return Evidence(
            measured, (f"{grown} grown without bound. {self._company(report)}",), ("grows without bound",), figure
        )

    def _company(self, report: StepReport) -> str:
        """Return the sentence that says what has run away with the weights."""
        course = self._state.course
        if self._is_idle:
            return "No gradient arrives, so the optimizer alone makes them grow: its weight decay may be negative."
        if course.losses:
            return f"The loss was at most {course.first_loss:.3g} in the first steps, and is now {course.loss:.3g}."
        total = report.grad_norm_total
        return (
            f"The total gradient norm was at most {course.first_total:.3g} in the first steps, and is now {total:.3g}."
        )

    def _flies(self, report: StepReport, stretch: float) -> bool:
        """Return True if the loss, or the total norm where there is none, has run away with the weights."""
        ours, course = self._state, self._state.course
        has_loss = course.losses > 0
        total = report.grad_norm_total
        now, first = (abs(course.loss), course.first_loss) if has_loss else (total, course.first_total)
        if not (0 < first < math.inf and 0 < now < math.inf):
            return False
        flight = math.log10(now) - math.log10(first)
        ours.farthest = max(ours.farthest, flight)
        is_highest = flight >= ours.farthest - AT_ITS_HIGHEST
        least, together = (STRETCHED, TOGETHER) if has_loss else (STRETCHED_UNSEEN, TOGETHER_UNSEEN)
        return is_highest and flight >= FLOWN and stretch >= least and stretch + flight >= together

    def _grows_idly(self, report: StepReport, stretch: float) -> bool:
        """Return True if the weights have grown much further since the last gradient that was not zero."""
        ours = self._state
        if report.grad_norm_total > 0:
            ours.idle_stretch = math.nan
        elif math.isnan(ours.idle_stretch):
            ours.idle_stretch = stretch
        return stretch >= IDLE_STRETCHED and stretch - ours.idle_stretch >= IDLE_GREW
