"""``stalled`` in single layers: weights in a 16-bit format whose updates are each rounded away, while others move.

bfloat16 resolves 0.4 % of an entry. The scale of a normalisation begins at 1, and an update of 1e-3 leaves it there for
ever: an optimizer adds each update to the rounded weight, so that lost ones never add up. Three things tell this from a
layer that has no reason to move:

- Its gradient is of the size of the others', per entry. A bias before a normalisation has rounding noise for one.
- Its updates, each as large as those that others made, add up to more than the format resolves.
- Not one of its entries has changed. Matrices are left out: entries near zero always move, and rows of an embedding
  that no batch has met have no gradient. float32 and float64 lose nothing of this size and are left out, too.

Many networks learn in bfloat16 though a few of their vectors stand still: where the loss has come down by almost a
third, nothing is said.
"""

from __future__ import annotations

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

__all__ = ["Unmoved"]

COARSE = 2.0**-12  # resolution of float16 is 2⁻¹¹, of bfloat16 2⁻⁸; that of float32, 2⁻²⁴, loses nothing that matters
SAMPLES = 10  # in a row
LASTING = 100  # updates
LEARNED = 0.3  # share by which the loss has come down in a run that learns without these layers
NOISE = 0.1  # share of the others' gradient per entry below which a layer has no reason to move


@dataclass
class UnmovedState:
    """The state of ``Unmoved`` across steps.

    Attributes:
        has_moved: (P,) bool, whether any sampled update changed an entry of the layer.
        asked: (P,) how far its updates would have moved it, added up, as a share of its norm.
        update: the update of the last sample.
        progress: how far the loss has come down.
    """

    VERSION: ClassVar[int] = 1

    has_moved: NDArray[np.bool_]
    asked: Floats
    update: int = 0
    progress: LossProgress = field(default_factory=LossProgress)


class Unmoved(Detector[UnmovedState]):
    """Vectors in a 16-bit format that no update has changed by a bit, although their gradients ask for it.

    ``value`` is the layer's update ratio, 0, and ``threshold`` the share of an entry that its format resolves.
    ``Thresholds.stalled_update_ratio`` switches this rule off, because it replaces all of ``stalled``.
    """

    kind = "stalled"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        count = len(layers)
        super().__init__(UnmovedState(np.zeros(count, dtype=bool), np.zeros(count)))
        self._layers = layers
        self._is_coarse = layers.resolution > COARSE
        self._is_off = thresholds.stalled_update_ratio is not None or not self._is_coarse.any()
        self.patience = thresholds.patience or SAMPLES

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_off:
            return None
        self._state.progress.add(report.loss)
        ratios, norms = report.figures.get("update_ratio"), report.figures.get("weight_norm")
        if not report.sampled or report.skipped or ratios is None or norms is None:
            return None
        candidates = self._is_coarse & ~self._layers.is_weight & ~self._state.has_moved
        if not candidates.any():
            return None
        ours = self._state
        ours.has_moved |= ratios > 0
        ours.asked += np.nan_to_num(self._asked(report, ratios, norms)) * (report.update - ours.update)
        ours.update = report.update
        sick = candidates & (ratios == 0) & (ours.asked > self._layers.resolution)
        if not sick.any() or report.update < LASTING or ours.progress.has_fallen(LEARNED):
            return healthy(len(sick))
        return DetectorResult(sick, ours.asked, np.zeros(len(sick)), self._layers.resolution)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, form = self._layers.names[column], self._layers.format_of(column)
        measured = (
            f"No update has changed {name} by a bit up to step {report.step}, though its gradient norm is "
            f"{report.grad_norm[column]:.3g} and others move."
        )
        cause = (
            f"{form} rounds away what is less than {self._layers.resolution[column]:.2g} of an entry. Each update is "
            f"smaller; together they ask for {self._state.asked[column]:.2g} of it over "
            f"{count_of(report.update, 'update', 'updates')}."
        )
        return Evidence(measured, (cause,), ("rounded away",), "no update has changed it by a bit")

    def _asked(self, report: StepReport, ratios: Floats, norms: Floats) -> Floats:
        """Return (P,) how far an update as large as those of the layers that move would move each layer.

        It is a share of the layer's norm; 0 for layers whose gradient is noise, and where nothing moves.
        """
        roots = np.sqrt(np.maximum(report.size, 1))
        moving = ratios > 0
        if not moving.any():
            return np.zeros(len(ratios))
        with np.errstate(divide="ignore", invalid="ignore"):
            step = float(np.median((ratios * norms / roots)[moving]))
            gradient = report.grad_norm / roots
            strength = gradient / float(np.median(gradient[moving]))
            asked = step * np.minimum(strength, 1.0) * roots / norms
        return np.where((strength >= NOISE) & np.isfinite(asked), asked, 0.0)
