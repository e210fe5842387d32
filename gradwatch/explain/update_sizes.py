"""Notice that updates keep their size whatever the gradients are, so that clipping by the total norm limits nothing.

Lion and signSGD move each entry by the rate. Muon makes the singular values of each update equal. Multiplying all
gradients by one factor changes the length of none of these updates (KellerJordan/Muon issue 56). No list of names is
needed: ‖Δw‖ ÷ rate of a layer stays the same from sample to sample, while the gradient that its update is made of does
not. Plain descent follows its gradient, and Adam's updates shrink after the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.explain.clues import Fact
from gradwatch.measure.report import Floats, StepReport

__all__ = ["UpdateSizes"]

SAMPLES = 4  # updates 0, 1, 2 and 4: Adam's updates differ by more than the limit by then
SAME = 1.35  # largest ÷ smallest size of updates that are said to have one size: Muon's five iterations are that exact
DIFFERENT = 2.0  # largest ÷ smallest gradient, after clipping, of those that show it
MOST = 0.5  # of these layers: the sign of 0 is 0, so that dead units make the updates of a layer smaller
OFTEN = 0.5  # of the updates that clipping acts at


@dataclass
class UpdateSizes:
    """The smallest and the largest update and gradient of each layer, over all samples.

    Attributes:
        samples: how many there were.
        updates: how many were made.
        clipped: how many of them were made of gradients that had been clipped.
        ranges: {``"move"`` or ``"left"``: (2, P)} smallest and largest ‖Δw‖ ÷ rate, and norm after clipping.
    """

    VERSION: ClassVar[int] = 1

    samples: int = 0
    updates: int = 0
    clipped: int = 0
    ranges: dict[str, Floats] = field(default_factory=dict)

    def add(self, report: StepReport) -> None:
        """Take in one step."""
        total, left = report.grad_norm_total, report.grad_norm_clipped_total
        if report.skipped or not report.gradients_are_finite or not total > 0:
            return
        self.updates += 1
        self.clipped += left < total
        ratios, norms = report.figures.get("update_ratio"), report.figures.get("weight_norm")
        if not report.sampled or not report.learning_rate or ratios is None or norms is None:
            return
        self.samples += 1
        with np.errstate(invalid="ignore", over="ignore"):
            self._widen("move", ratios * norms / report.learning_rate)
            self._widen("left", report.grad_norm * (left / total))

    def facts(self) -> Iterator[Fact]:
        """Yield that clipping limits no update, where it acts often and the sizes of updates show it."""
        if self.samples < SAMPLES or self.clipped < OFTEN * self.updates:
            return
        same, different = self._spread("move"), self._spread("left")
        judged = np.isfinite(same) & (different >= DIFFERENT)
        if not judged.any() or (same[judged] <= SAME).mean() < MOST:
            return
        within, times = same[judged & (same <= SAME)].max() - 1, different[judged].max()
        words = (
            f"Clipping does not limit these updates: their sizes have stayed within {within:.1%}, while clipped "
            f"gradients differed by up to {times:.3g} times. This optimizer divides by the size of the gradient "
            "itself, so that its learning rate alone says how far it goes."
        )
        yield Fact(words, "clipping idle")

    def _widen(self, name: str, values: Floats) -> None:
        positive = np.where(values > 0, values, np.nan).astype(np.float64)
        low, high = self.ranges.get(name, np.stack([positive, positive]))
        self.ranges[name] = np.stack([np.fmin(low, positive), np.fmax(high, positive)])

    def _spread(self, name: str) -> Floats:
        """Return (P,) largest ÷ smallest; NaN where nothing is known."""
        low, high = self.ranges[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            spread: Floats = high / low
        return spread
