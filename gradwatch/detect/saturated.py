"""``saturated``: an activation function that is flat almost wherever it is met."""

from __future__ import annotations

import math

import numpy as np

from gradwatch.detect.symptoms import Detector, Symptoms
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


class Saturated(Detector):
    """A sigmoid, tanh or softmax that is flat for four of five entries.

    Confidence is no sickness: a gate, a router or an output may saturate while the run learns. So a layer that became
    flat by training counts only where the loss has not come down, and so do the last function of the model and gates
    (what is multiplied by something), for ten samples. ``value`` is the share of flat entries, those where the slope of
    the function is below a twentieth of its steepest. ``Thresholds.saturated_share`` replaces the share.
    """

    kind = "saturated"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__()
        self._layers = layers
        self._share = thresholds.saturated_share or SHARE
        self.patience = thresholds.patience or PATIENCE
        none = np.zeros(len(layers), dtype=np.int64)
        self._memory = {"trained": none > 0, "output_streak": none, "first": [], "recent": []}

    def examine(self, report: StepReport) -> Symptoms | None:
        self._watch_loss(report.loss)
        is_sampled = "saturated_share" in report.figures or "saturated_output_share" in report.figures
        if not is_sampled or not report.is_finite:
            return None
        hidden = _known(report, "saturated_share", len(self._layers))
        output = _known(report, "saturated_output_share", len(self._layers))
        memory = self._memory
        memory["trained"] = memory["trained"] | (hidden < UNSATURATED) & ~np.isnan(hidden)
        memory["output_streak"] = np.where(output >= self._share, memory["output_streak"] + 1, 0)
        came_down = self._came_down()
        is_flat = (hidden >= self._share) & (~memory["trained"] | (came_down is False))
        is_flat |= (memory["output_streak"] >= OUTPUT_PATIENCE) & (came_down is False)
        share = np.nan_to_num(np.fmax(hidden, output), nan=0.0)
        return Symptoms(
            sick=is_flat,
            badness=share - 1e-6 * self._layers.depth,
            value=share,
            threshold=np.full(len(share), self._share),
        )

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        name = self._layers.names[column]
        share = np.fmax(*(_known(report, f, len(self._layers)) for f in ("saturated_share", "saturated_output_share")))
        measured = (
            f"the activation function behind {name} is flat for {share[column]:.0%} of its entries at step "
            f"{report.step} (normal: less than {self._share:.0%})."
        )
        return "its inputs lie so far out that its slope is below a twentieth of its steepest", measured

    def _watch_loss(self, loss: float | None) -> None:
        if loss is not None and math.isfinite(loss):
            if len(self._memory["first"]) < PATIENCE:
                self._memory["first"] = [*self._memory["first"], loss]
            self._memory["recent"] = [*self._memory["recent"], loss][-RECENT:]

    def _came_down(self) -> bool | None:
        """Whether the loss is below where it began; None where none was observed."""
        if not self._memory["recent"]:
            return None
        first, recent = np.mean(self._memory["first"]), np.mean(self._memory["recent"])
        return bool(recent < first - (1 - IMPROVED) * abs(first))


def _known(report: StepReport, name: str, layers: int) -> Floats:
    return report.figures.get(name, np.full(layers, np.nan))
