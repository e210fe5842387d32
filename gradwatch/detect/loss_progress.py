"""How far a loss has come down since the run began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["BEGINNING", "LossProgress"]

BEGINNING = 10  # losses that the beginning is a mean of: one minibatch may be an easy one
RECENT = 50  # losses that the recent loss is a running mean of: noise of one minibatch counts for a seventh


@dataclass
class LossProgress:
    """The beginning of a loss, and its level now.

    Attributes:
        count: finite losses so far.
        first: the first of them.
        beginning: the mean of the first ten.
        recent: running mean of the last fifty.
        lowest, highest: of all of them.
    """

    VERSION: ClassVar[int] = 1

    count: int = 0
    first: float = 0.0
    beginning: float = 0.0
    recent: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, loss: float | None) -> None:
        """Take in the loss of one step, unless it is missing, NaN or Inf."""
        if loss is None or not math.isfinite(loss):
            return
        if self.count == 0:
            self.first = loss
        self.count += 1
        self.lowest, self.highest = min(self.lowest, loss), max(self.highest, loss)
        if self.count <= BEGINNING:
            self.beginning += (loss - self.beginning) / self.count
        self.recent += (loss - self.recent) / min(self.count, RECENT)

    def has_fallen(self, share: float, *, at_once: bool = True) -> bool:
        """Return True if the recent loss lies below its beginning by ``share`` of it, or if there is no loss to judge.

        A loss that changes sign (policy gradients, adversarial games) is no distance and says nothing.

        Args:
            share: of the beginning.
            at_once: whether the loss may have fallen within its first ten steps. The beginning is then the larger of
                the first loss and the mean of the ten, which hides no such fall, and takes noise for one more often.
        """
        if self.count <= BEGINNING or self.lowest < 0 < self.highest:
            return True
        beginning = max(self.first, self.beginning) if at_once else self.beginning
        return beginning - self.recent > share * abs(beginning)
