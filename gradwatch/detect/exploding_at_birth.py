"""``exploding`` at the first updates: an update that moves a weight by many times its size and does not help the loss.

What is measured. For each weight (two or more dimensions) and each sampled update of the first ten:

- The *movement* is ‖Δw‖ ÷ the size of w. The size is ‖w‖, but at least the norm of an ordinary weight of that shape,
  √max(rows, columns), so that weights that begin at zero or near it are not judged against themselves.
- The *promise* is ‖g‖·‖Δw‖ ÷ loss: what the update takes off the loss to first order, at most, in losses.

Why no healthy run shows it. A smooth loss that is never negative satisfies ‖g‖² ≤ 2λ·loss, where λ is its largest
curvature, and a descent is stable up to a rate of 2/λ. So a sane step promises at most four times the loss. A weight
may move far on purpose, where raw targets of 10⁴ ask for it; but then the promise is small, and the loss comes down.
Nobody moves a weight by ten times its size, promises a thousand losses, and arrives. The promise has no scale: a loss
that is summed or multiplied has gradients that are multiplied, too.

The promise is known when the update is made, one step before the NaN that may follow it. Where it is not large enough,
the next losses decide; where no loss is seen, the next total norms do, or as many moved weights that the forward pass,
which multiplies them, must overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["ExplodingAtBirth"]

WINDOW = 10  # the last update that is judged; later growth has a level of its own, which ``Exploding`` judges
MOVED = 10.0  # times its size; healthy programs reach 1.9, sick ones 1e2 to Inf
PROMISED = 1e3  # times the loss; a sane step promises at most 4, healthy programs of ours 22
WORSE = 10.0  # times the loss before the update: no minibatch is so much harder than another
MOVED_UNSEEN = 100.0  # the movement, and ...
STEEPER = 1e3  # ... times the total norm before it: without a loss. Adam at a rate of 1 on raw targets reaches 300
STRETCHED = 8.0  # decades by which the moved weights together stretch a signal: without a loss, enough at once


@dataclass
class UpdateStart:
    """The figures of a step before its update is made.

    Attributes:
        step: its number.
        norms: (P,) norms of the weights.
        gradients: (P,) norms of their gradients.
        total: the total gradient norm.
        loss: the loss, None where there was none that is positive.
    """

    VERSION: ClassVar[int] = 1

    step: int
    norms: Floats
    gradients: Floats
    total: float
    loss: float | None

    @classmethod
    def of(cls, report: StepReport) -> UpdateStart:
        """Return the figures of ``report``, which measured the weights."""
        loss = report.loss if report.loss is not None and 0 < report.loss < math.inf else None
        norms = report.figures["weight_norm"]
        return cls(report.step, norms, report.grad_norm, report.grad_norm_total, loss)


@dataclass
class ExplodingAtBirthState:
    """The state of ``ExplodingAtBirth`` across steps.

    Attributes:
        pending: the latest step whose weights were measured, but not yet its update: in a loop without an optimizer
            that is seen one step later.
        moved: (P,) the movement of each weight by the latest update that moved any too far; 0 before.
        start: the figures before that update.
        promise: the largest promise of those weights; NaN without a loss.
    """

    VERSION: ClassVar[int] = 1

    moved: Floats
    pending: UpdateStart | None = None
    start: UpdateStart | None = None
    promise: float = math.nan


class ExplodingAtBirth(Detector[ExplodingAtBirthState]):
    """Weights that one of the first ten updates moves by many times their size, while the loss gets no better.

    ``value`` is the movement ‖Δw‖ ÷ size, ``threshold`` is 10. A weight is sick if its movement exceeds 10 and (1) the
    update promised a thousand times the loss, or (2) the loss is ten times what it was before that update. Where no
    loss is observed, or where it is not positive: (1) the moved weights together stretch a signal by 1e8, or (2) one
    moved by 100 times its size and the total gradient norm has become 1,000 times as large.
    ``Thresholds.exploding_growth`` replaces the rule.
    """

    kind = "exploding"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(ExplodingAtBirthState(np.zeros(len(layers))))
        self._layers = layers
        self._is_replaced = thresholds.exploding_growth is not None
        self._healthy = healthy(len(layers))
        self._is_over = self._is_replaced

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_over or report.update > WINDOW:
            self._is_over = True
            return self._healthy
        if not report.gradients_are_finite:
            return None  # nonfinite takes over
        ours = self._state
        promises = self._takes_in(report) and self._promises_too_much()
        if not (promises or self._got_worse(report)):
            return self._healthy
        sick = ours.moved >= MOVED
        onset = np.full(len(sick), self._start.step)
        return DetectorResult(sick, ours.moved, ours.moved, np.full(len(sick), MOVED), onset)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow every step after the last update that is judged.

        Bound: a step that waits comes after every examined one, and nothing is sick after update 10.
        """
        return self._is_over

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        start, name = self._start, self._layers.names[column]
        measured = (
            f"The update of step {start.step} moved {name} by {_finite(self._state.moved[column]):.3g} times its size "
            f"(normal: up to {MOVED:g} times; the size is its norm, or that of an ordinary weight of its shape where "
            "that is larger)."
        )
        figure = f"one update moves it {_finite(self._state.moved[column]):.3g} times its size, normal up to {MOVED:g}"
        return Evidence(measured, (self._consequence(report, start),), ("update too large",), figure)

    def _consequence(self, report: StepReport, start: UpdateStart) -> str:
        is_later = report.step > start.step
        if start.loss is None and is_later:
            total = report.grad_norm_total
            return f"The total gradient norm was {start.total:.3g} before that update, and is {total:.3g} after it."
        if start.loss is None:
            return "The forward pass multiplies the moved weights, so that it overflows within a few steps."
        if report.loss is not None and is_later:
            return f"The loss was {start.loss:.3g} before that update, and is {report.loss:.3g} at step {report.step}."
        promise = _finite(self._state.promise)
        return (
            f"By its gradient that update would take {promise:.3g} times the loss of {start.loss:.3g} off the loss: "
            "it goes far beyond where the gradient holds."
        )

    @property
    def _start(self) -> UpdateStart:
        start = self._state.start
        if start is None:
            raise RuntimeError("explain() before any update was found to be too large")
        return start

    def _takes_in(self, report: StepReport) -> bool:
        """Return True if an update that is seen in ``report`` moved any weight too far; then remember it."""
        start = self._start_of_update(report) if report.sampled else None
        if start is None:
            return False
        moved = self._movements(report.figures["update_ratio"], start.norms)
        far = moved >= MOVED
        if not far.any():
            return False
        ours = self._state
        ours.moved, ours.start, ours.promise = moved, start, math.nan
        if start.loss is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # a gradient of 0 whose update is Inf promises nothing
                promises = start.gradients * moved * self._sizes(start.norms) / start.loss
            ours.promise = float(np.max(np.nan_to_num(promises[far], nan=0.0, posinf=np.inf)))
        return True

    def _start_of_update(self, report: StepReport) -> UpdateStart | None:
        """Return the figures before the update that is seen in ``report``; None where none is seen, or none was made.

        In a loop without an optimizer an update is seen one step later, and its start is the step before.
        """
        pending, now = self._state.pending, None
        has_ratio = "update_ratio" in report.figures
        if "weight_norm" in report.figures:
            now = UpdateStart.of(report)
        self._state.pending = now if pending is not None or not has_ratio else None
        if not has_ratio or report.skipped:
            return None
        return pending or now

    def _promises_too_much(self) -> bool:
        ours = self._state
        if self._start.loss is not None:
            return ours.promise >= PROMISED
        far = ours.moved[ours.moved >= MOVED]
        return len(far) > 1 and float(np.log10(far).sum()) >= STRETCHED

    def _got_worse(self, report: StepReport) -> bool:
        """Return True if the loss, or the total norm where there is no loss, is much larger than before the update."""
        start = self._state.start
        if start is None or report.step <= start.step:
            return False
        if start.loss is not None:
            return report.loss is not None and not report.loss < WORSE * start.loss  # also where it is NaN
        is_far = self._state.moved.max() >= MOVED_UNSEEN
        return bool(is_far and start.total > 0 and report.grad_norm_total >= STEEPER * start.total)

    def _movements(self, ratio: Floats, norms: Floats) -> Floats:
        """Return (P,) ‖Δw‖ ÷ size of each weight; 0 where it was not measured, and for tensors that are no weights."""
        with np.errstate(over="ignore", invalid="ignore"):
            moved = ratio * norms / self._sizes(norms)
        return np.where(self._layers.is_weight, np.nan_to_num(moved, nan=0.0, posinf=np.inf), 0.0)

    def _sizes(self, norms: Floats) -> Floats:
        return np.fmax(norms, self._layers.ordinary_norm)


def _finite(number: float) -> float:
    return min(float(number), 1e300)
