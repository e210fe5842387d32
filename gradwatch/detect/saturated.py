"""``saturated``: an activation function that is flat for almost all of its inputs.

A layer that has become flat by training is sick only where that shows: the loss has not come down, and the gradient of
the layer has faded. A fifth of steep entries lets half of a gradient pass, so a critic whose tanh is flat for 85 % of
its entries learns as before. What passes is measured against the same layer at a time when it was not flat, since the
usual ratio of two layers differs from model to model. A loss that has been on both sides of zero cannot tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence
from gradwatch.detect.loss_evidence import LossEvidence
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Saturated"]

SHARE = 0.8  # of the entries; healthy hidden layers reach a fifth
UNSATURATED = 0.5  # a layer that once was below this has become what it is by training
PATIENCE = 3  # samples, for a hidden layer; taken at updates 1, 2, 4, 8 and every tenth
OUTPUT_PATIENCE = 10  # samples, for the last function of the model, and for gates
IMPROVED = 0.9  # share of the first losses below which a loss has come down
RECENT = 10  # losses
FADED = 0.1  # of the gradient it had before it became flat, against the layers after it: as if 99 % were cut off


@dataclass
class SaturatedState:
    """The state of ``Saturated`` across steps.

    Attributes:
        trained: (P,) layers that were below ``UNSATURATED`` at some sample.
        output_streak: (P,) samples in a row in which an output or a gate was flat.
        first: the first three finite losses.
        recent: the last ten finite losses.
        passed: (P,) the gradient of each layer ÷ the largest after it, when the layer was last below ``UNSATURATED``;
            NaN where that is not known.
        evidence: what the loss can prove.
    """

    VERSION: ClassVar[int] = 2

    trained: NDArray[np.bool_]
    output_streak: NDArray[np.int64]
    passed: Floats
    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    evidence: LossEvidence = field(default_factory=LossEvidence)


class Saturated(Detector[SaturatedState]):
    """A sigmoid, tanh or softmax that is flat for four of five entries.

    Confidence is no sickness: a gate, a router or an output may saturate while the run learns. So a layer that became
    flat by training counts only where the loss has not come down, and so do the last function of the model and gates
    (whose result is a factor of something), for ten samples. ``value`` is the share of flat entries, those where the
    slope of the function is below a twentieth of its steepest. ``Thresholds.saturated_share`` replaces the share.
    """

    kind = "saturated"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        count = len(layers)
        flat = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.int64), np.full(count, np.nan)
        super().__init__(SaturatedState(*flat))
        self._layers = layers
        self._share = thresholds.saturated_share or SHARE
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        self._follow_loss(report.loss)
        is_sampled = "saturated_share" in report.figures or "saturated_output_share" in report.figures
        if not is_sampled or not report.is_finite:
            return None
        hidden = _known(report, "saturated_share", len(self._layers))
        output = _known(report, "saturated_output_share", len(self._layers))
        ours = self._state
        is_steep = (hidden < UNSATURATED) & ~np.isnan(hidden)
        ours.trained = ours.trained | is_steep
        ours.output_streak = np.where(output >= self._share, ours.output_streak + 1, 0)
        passed = self._passed(report, is_steep | (hidden >= self._share))
        ours.passed = np.where(is_steep, passed, ours.passed)
        stays = self._came_down() is False
        has_faded = ~(passed > FADED * ours.passed)  # also where it is not known
        is_flat = (hidden >= self._share) & (~ours.trained | stays & has_faded)
        is_flat |= (ours.output_streak >= OUTPUT_PATIENCE) & stays
        share = np.nan_to_num(np.fmax(hidden, output), nan=0.0)
        return DetectorResult(
            sick=is_flat,
            badness=share - 1e-6 * self._layers.depth,
            value=share,
            threshold=np.full(len(share), self._share),
        )

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name = self._layers.names[column]
        hidden = _known(report, "saturated_share", len(self._layers))
        output = _known(report, "saturated_output_share", len(self._layers))
        share = float(np.fmax(hidden, output)[column])
        return Evidence(
            measured=f"The activation function after {name} is flat for {share:.0%} of its entries at step "
            f"{report.step} (normal: less than {self._share:.0%}).",
            cause=("Its inputs lie so far out that its slope is below a twentieth of its steepest.",),
        )

    def _passed(self, report: StepReport, asked: NDArray[np.bool_]) -> Floats:
        """Return (P,) the gradient of each layer ÷ the largest of the weights after it, by root mean square."""
        layers, passed = self._layers, np.full(len(self._layers), np.nan)
        rms = report.grad_norm / np.sqrt(np.maximum(layers.size, 1))
        weights = layers.is_weight & report.measured
        for column in np.flatnonzero(asked & report.measured).tolist():
            is_after = layers.depth > layers.depth[column] if layers.after is None else layers.after[column]
            largest = rms[weights & is_after].max(initial=0.0)
            if largest > 0:
                passed[column] = rms[column] / largest
        return passed

    def _follow_loss(self, loss: float | None) -> None:
        self._state.evidence.note_sign(loss)
        if loss is None or not math.isfinite(loss):
            return
        if len(self._state.first) < PATIENCE:
            self._state.first = [*self._state.first, loss]
        self._state.recent = [*self._state.recent, loss][-RECENT:]

    def _came_down(self) -> bool | None:
        """Return True if the loss is below its first values; None where no loss was observed that can tell."""
        if not self._state.recent or not self._state.evidence.measures_progress:
            return None
        first, recent = np.mean(self._state.first), np.mean(self._state.recent)
        return bool(recent < first - (1 - IMPROVED) * abs(first))


def _known(report: StepReport, name: str, layers: int) -> Floats:
    return report.figures.get(name, np.full(layers, np.nan))
