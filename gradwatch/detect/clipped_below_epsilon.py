"""``stalled`` by clipping, layer by layer: a clip by the total norm pushes gradients below the optimizer's epsilon.

A clip by the total norm multiplies all gradients by one factor. Where one layer makes nearly all of the total, that
factor fits this layer alone. Adam divides each entry by its own size plus ε = 1e-8, so that a common factor changes
nothing until what is left is smaller than ε. Then the update is rate · g ÷ ε, which is next to nothing. Such layers
stop while the run seems to go on. If the total grows, the factor shrinks and more layers stop (Megatron-LM issue 5394).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.loss_progress import LossProgress
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["TIGHT", "ClippedBelowEpsilon", "share_left"]

EPSILON = 1e-8  # that Adam, and most that followed it, add to what they divide by
TIGHT = 0.01  # share of the gradient below which clipping is no guard against spikes: those are seldom a hundredfold
WOULD_MOVE = 1e-4  # of its norm, by an update without clipping: healthy ones are near 1e-3
FOLLOWS = 0.05  # of the rate, per entry: Adam moves most entries by 0.1 to 1 times the rate
HALF = 0.5  # of all entries that have a gradient: a few biases that stand still are no disease
FALLEN = 0.01  # share by which the loss has come down since then: what still moves may be all that learns
SAMPLES = 10  # in a row, some hundred updates


@dataclass
class ClippedBelowEpsilonState:
    """The state of ``ClippedBelowEpsilon`` across steps.

    Attributes:
        progress: how far the loss has come down since clipping began to hold back half of the entries.
    """

    VERSION: ClassVar[int] = 1

    progress: LossProgress = field(default_factory=LossProgress)


class ClippedBelowEpsilon(Detector[ClippedBelowEpsilonState]):
    """Layers that stand still because clipping leaves less of their gradient than the optimizer's ε.

    A layer is held back at a sampled update where clipping leaves less than 0.01 of all gradients and less than 1e-8 of
    this one per entry, the update moves it by less than a twentieth of the rate per entry (so that weight decay does
    not count), and would have moved it by 1e-4 of its norm or more had it grown with the gradient. It is sick where
    such layers hold half of all entries, for ten samples in a row, and the loss has not come down by a hundredth
    meanwhile. Embeddings are left out: most of their rows have no gradient in any one batch.

    No healthy run shows this for so long. An optimizer with a smaller ε, or none (Lion, Muon), moves these layers as
    far as ever. A rate that is tiny, or at the end of its schedule, moves them by little, and still by a tenth of the
    rate per entry. Gradients that are tiny by themselves would move nothing without clipping either. Where the loss
    comes down, those layers that move are enough.

    ``value`` is what is left per entry, by root mean square; ``threshold`` is 1e-8.
    ``Thresholds.stalled_update_ratio`` switches this rule off, because it replaces all of ``stalled``.
    """

    kind = "stalled"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(ClippedBelowEpsilonState())
        self._layers = layers
        self._has_rows = np.array(["Embedding" in owner for owner in layers.owners], dtype=bool)
        self._is_off = thresholds.stalled_update_ratio is not None
        self.patience = thresholds.patience or SAMPLES

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_off:
            return None
        ours = self._state
        ours.progress.add(report.loss)
        ratios, norms = report.figures.get("update_ratio"), report.figures.get("weight_norm")
        if not report.sampled or report.skipped or ratios is None or norms is None:
            return None
        held, left = self._held(report, ratios, norms)
        if not held.any():
            ours.progress = LossProgress()
            return healthy(len(held))
        threshold = np.full(len(held), EPSILON)
        mending = np.full(len(held), ours.progress.has_fallen(FALLEN, at_once=False))
        return DetectorResult(held, report.size.astype(np.float64), left, threshold, mending=mending)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        total, share = report.grad_norm_total, share_left(report)
        left = report.grad_norm[column] * share / math.sqrt(max(int(report.size[column]), 1))
        loudest = int(np.nanargmax(report.grad_norm))
        part = min(1.0, float(report.grad_norm[loudest]) / total)
        measured = (
            f"Clipping leaves {share:.2g} of every gradient at step {report.step}. In {self._layers.names[column]} "
            f"that is {left:.2g} per entry (an optimizer of Adam's kind adds {EPSILON:g} to what it divides by)."
        )
        cause = (
            f"{count_of(len(covered), 'layer does', 'layers do')} not move because all gradients are cut by one "
            f"factor: the total norm is {total:.3g}, of which {self._layers.names[loudest]} alone makes {part:.0%}."
        )
        return Evidence(measured, (cause,), ("clipped away",), "clipping leaves less than the optimizer's epsilon")

    def _held(self, report: StepReport, ratios: Floats, norms: Floats) -> tuple[NDArray[np.bool_], Floats]:
        """Return (P,) the layers that clipping holds back, none unless they hold half of the entries; what is left."""
        share, rate = share_left(report), report.learning_rate or 0.0
        roots = np.sqrt(np.maximum(report.size, 1))
        left = report.grad_norm * share / roots
        if not share < TIGHT or not rate > 0:
            return np.zeros(len(left), dtype=bool), left
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            follows = ratios * norms / roots <= FOLLOWS * rate
            held = (left < EPSILON) & follows & (ratios >= WOULD_MOVE * share) & (norms > 0) & ~self._has_rows
        entries = float(report.size[report.measured & ~self._has_rows].sum())
        is_much = float(report.size[held].sum()) >= HALF * entries
        return held if is_much else np.zeros(len(left), dtype=bool), left


def share_left(report: StepReport) -> float:
    """Return the share of the gradient that clipping has left; 1 where that is not known."""
    total, left = report.grad_norm_total, report.grad_norm_clipped_total
    return left / total if 0 < total < math.inf and math.isfinite(left) else 1.0
