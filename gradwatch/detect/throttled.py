"""``stalled`` by clipping: what is left of the gradient is so little that no hundred updates can lower the loss.

Clipping is a guard against spikes. Where it cuts every gradient to less than a hundredth, it sets the length of each
update instead: plain descent moves by rate · limit, whatever the gradient is. A limit that was mistaken for another
number, or a loss that is summed where it was a mean, stops such a run without an error.

Four figures tell this from runs that clip hard and learn:

- *The share that is left*, clipped total ÷ total. Clipping to 0.01 under Adam has a small one, too, and so has a
  language model with a total of 300 that is clipped to 1.
- *The gain*, ‖Δw‖ ÷ (rate · clipped total). It is about 1 for plain descent and at most 1 ÷ (1 − momentum). Adam, Lion
  and Muon divide by the size of the gradient: theirs is √entries ÷ clipped total, and grows as clipping cuts.
- *The reach* of the updates, Σ ‖Δw‖ · ‖G‖. To first order, and for a convex loss always, no series of updates lowers
  the loss by more. Noise of minibatches makes ‖G‖ larger, so that the reach is overrated and the run is not accused.
- *The reach without clipping*, Σ ‖Δw‖ · ‖G‖ ÷ share. Where that is small as well, the rate is what is too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.detect.clipped_below_epsilon import TIGHT, share_left
from gradwatch.detect.detector import Detector, DetectorResult, Evidence, whole_run
from gradwatch.detect.loss_progress import LossProgress
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["Throttled"]

WINDOW = 100  # updates, which the cadence samples about ten times
MOST = 0.9  # of the window: a few small gradients do not make a clip loose
FALLEN = 0.05  # share of its beginning by which the loss has come down in a run that learns; noise is below it
REACH = 0.01  # share of the loss that the updates of the window could lower it by: slow is not stalled
WITHOUT = 0.05  # share that it could have come down by without clipping: five times as much
GAIN = 100.0  # momentum of 0.99; Adam reaches it where less than 0.003 is left per entry


@dataclass
class ThrottledState:
    """The state of ``Throttled`` across steps; the lists hold the last updates, at most ``WINDOW``.

    Attributes:
        steps: their numbers.
        shares: of the gradient that clipping has left.
        reaches: ‖Δw‖ · ‖G‖; NaN before a first update was measured.
        progress: how far the loss has come down.
        highest_rate: the highest learning rate so far.
        length: ‖Δw‖ of the latest sampled update; NaN before it.
        used: the total norm that it was made of.
    """

    VERSION: ClassVar[int] = 1

    steps: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    reaches: list[float] = field(default_factory=list)
    progress: LossProgress = field(default_factory=LossProgress)
    highest_rate: float = 0.0
    length: float = math.nan
    used: float = math.nan


class Throttled(Detector[ThrottledState]):
    """A run whose clipping leaves so little of each gradient that its updates cannot lower the loss.

    It is sick where, over the last 100 updates, clipping has left less than 0.01 of at least nine gradients in ten, the
    updates follow what is left (gain of at most 100), their reach is less than a hundredth of the loss, without
    clipping it would have been a twentieth or more, and the loss has not come down by a twentieth since the run began.

    No healthy run shows this: its updates could lower the loss by more, or the loss has come down. A warm-up has short
    updates, so the window begins anew where the rate rises above all rates before. Fine-tuning at a tiny rate has a
    small reach without clipping, too. Runs of Adam have a large gain as long as their gradients exceed ε; where they do
    not, ``Stalled`` and ``ClippedBelowEpsilon`` judge.

    ``value`` is the median share that is left, ``threshold`` 0.01. Without a loss or a learning rate nothing is judged.
    ``Thresholds.stalled_update_ratio`` switches this rule off.
    """

    kind = "stalled"
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(ThrottledState())
        self._is_off = thresholds.stalled_update_ratio is not None

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_off:
            return None
        ours = self._state
        ours.progress.add(report.loss)
        if report.skipped:
            return None
        self._take_length(report)
        self._take_update(report)
        if not report.sampled:
            return None
        share = float(np.median(ours.shares)) if ours.shares else 1.0
        result = whole_run(self._is_throttled(report), share, TIGHT)
        return DetectorResult(result.sick, result.badness, result.value, result.threshold, onset=self._onset(report))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        ours = self._state
        share, level = float(np.median(ours.shares)), self._level
        reach = sum(ours.reaches) / level
        without = sum(each / share for each, share in zip(ours.reaches, ours.shares, strict=True) if share > 0) / level
        measured = (
            f"Clipping leaves {share:.2g} of the gradient in the last {WINDOW} updates (half of them less), a norm of "
            f"{report.grad_norm_clipped_total:.3g} out of {report.grad_norm_total:.3g}, and the loss is "
            f"{ours.progress.recent:.4g} where it began at {ours.progress.beginning:.4g}."
        )
        cause = (
            f"These updates follow what is left of the gradient: together they can lower the loss by {reach:.2g} of it "
            f"at most. Unclipped ones could by {min(without, 1):.2g}{' or more' if without > 1 else ''}."
        )
        return Evidence(measured, (cause,), ("clipped away",), "clipping leaves too little to learn")

    def _onset(self, report: StepReport) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the first step of the window."""
        return np.array([self._state.steps[0] if self._state.steps else report.step], dtype=np.int64)

    def _take_length(self, report: StepReport) -> None:
        """Take how far a sampled update moved all weights together, and what it was made of."""
        ratios, norms = report.figures.get("update_ratio"), report.figures.get("weight_norm")
        if not report.sampled or ratios is None or norms is None:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = ratios * norms
        length = float(np.linalg.norm(lengths[np.isfinite(lengths)]))
        if length > 0:  # an embedding whose sampled rows have no gradient says nothing
            self._state.length, self._state.used = length, report.grad_norm_clipped_total

    def _take_update(self, report: StepReport) -> None:
        """Take the share and the reach of one update; begin anew where the rate is higher than ever before."""
        ours, rate = self._state, report.learning_rate or 0.0
        if rate > ours.highest_rate:
            ours.highest_rate = rate
            ours.steps, ours.shares, ours.reaches = [], [], []
        total, left = report.grad_norm_total, report.grad_norm_clipped_total
        reach = ours.length * (left / ours.used) * total if ours.used > 0 else math.nan
        for values, value in ((ours.shares, share_left(report)), (ours.reaches, reach)):
            values.append(value)
            del values[:-WINDOW]
        ours.steps.append(report.step)
        del ours.steps[:-WINDOW]

    def _is_throttled(self, report: StepReport) -> bool:
        ours, rate = self._state, report.learning_rate
        if len(ours.shares) < WINDOW or not rate or ours.progress.has_fallen(FALLEN, at_once=False):
            return False
        shares, reaches = np.array(ours.shares), np.array(ours.reaches)
        if float((shares < TIGHT).mean()) < MOST or not ours.length <= GAIN * rate * ours.used:
            return False
        level = self._level
        with np.errstate(divide="ignore", invalid="ignore"):
            return bool(reaches.sum() < REACH * level and (reaches / shares).sum() > WITHOUT * level)

    @property
    def _level(self) -> float:
        """The loss that falls are measured against: the smaller of its beginning and its level now."""
        return min(abs(self._state.progress.beginning), abs(self._state.progress.recent))
