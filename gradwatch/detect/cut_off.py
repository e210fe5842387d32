"""``stalled`` because the graph of the loss misses weights that everything is computed from.

A weight without a gradient is no finding by itself: unused heads, idle experts and branches not taken have none. Two
things show that nobody meant it, looked up in ``watcher/ownership_survey.py``:

- *Cut off.* What the weight computes came back to the loss without a graph: into the operation of a trained weight, or
  added to what the model returns. An optimizer holds it, so that it is not frozen; it has not changed, so that it is no
  average or codebook that the loop updates; and it is as it was initialised, so that it is no backbone trained before.
  Targets and teachers meet the model's output in the loss and never come back into the model.
- *Left out.* A loss is computed from the weight at every look, and no backward pass begins at it: it was not added to
  the one that is trained, or it was added as a number.

Either must hold at three looks in a row, and the weight must never have had a gradient: what is unfrozen soon, and a
head that has its turn later, are neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.wording import count_of, names_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["CutOff"]

LASTING = 90  # updates before anything is said: an encoder may be left alone while its head warms up
LOOKS = 3  # in a row


@dataclass
class CutOffState:
    """The state of ``CutOff`` across steps.

    Attributes:
        reached: (P,) bool, whether each layer has ever had a gradient.
        cut_off, left_out: (P,) looks in a row at which each layer was that.
    """

    VERSION: ClassVar[int] = 1

    reached: NDArray[np.bool_]
    cut_off: NDArray[np.int64]
    left_out: NDArray[np.int64]


class CutOff(Detector[CutOffState]):
    """Weights that the loss depends on and that never get a gradient.

    ``value`` is how far the layer has moved, 0, and ``threshold`` is 0, too.
    ``Thresholds.stalled_update_ratio`` switches this rule off, because it replaces all of ``stalled``.
    ``Thresholds.patience`` does not apply: looks are few, and several of them have to agree already.
    """

    kind = "stalled"
    judges_samples_only = True  # all looks are
    patience = 1

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        count = len(layers)
        never = np.zeros(count, dtype=np.int64)
        super().__init__(CutOffState(np.zeros(count, dtype=bool), never, never.copy()))
        self._layers = layers
        self._is_off = thresholds.stalled_update_ratio is not None

    def examine(self, report: StepReport) -> DetectorResult | None:
        ours, owners = self._state, report.ownership
        ours.reached |= report.measured
        if owners is None or self._is_off or report.emptied:
            return None
        ours.cut_off = self._counted(ours.cut_off, owners.cut_off)
        ours.left_out = self._counted(ours.left_out, owners.left_out)
        sick = (ours.cut_off >= LOOKS) | (ours.left_out >= LOOKS)
        if report.update < LASTING or not sick.any():
            return healthy(len(sick))
        nothing = np.zeros(len(sick))
        return DetectorResult(sick, self._layers.is_weight.astype(float), nothing, nothing)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        names = names_of([self._layers.names[each] for each in covered])
        count = count_of(len(covered), "layer has", "layers have")
        measured = f"{count} had no gradient in {count_of(report.update + 1, 'update', 'updates')}: {names}."
        if self._state.cut_off[column] >= LOOKS:
            cause = (
                "The model uses what they compute, but as numbers without a graph: detach(), no_grad(), .data or a new "
                "tensor cuts them off from the loss."
            )
        else:
            cause = (
                "A loss is computed from them and left out: no backward pass begins at it, or it is added to the loss "
                "that is trained without its graph (item(), detach())."
            )
        return Evidence(measured, (cause,), ("not owned", "not reached"), "it has never had a gradient")

    def _counted(self, looks: NDArray[np.int64], seen: Iterable[int]) -> NDArray[np.int64]:
        is_seen = np.zeros(len(looks), dtype=bool)
        is_seen[list(seen)] = True
        return np.where(is_seen & ~self._state.reached, looks + 1, 0)
