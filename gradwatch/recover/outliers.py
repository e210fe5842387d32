"""Find updates that are finite and far larger than all lately: one corrupt batch, or one weight with a flipped bit.

A healthy run leaves a plateau, or meets a hard batch, with gradients that grow within several steps. A hundredfold
within one step is not healthy.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["OUTLIER", "Outliers"]

OUTLIER = 100.0
"""Times the largest total norm of the last steps, beyond which an update is left out."""

_WINDOW = 100  # steps that count as lately
_FIRST_STEPS = 20  # before which nothing is an outlier: the first gradients of a run may be tiny


class Outliers:
    """The total gradient norms of one optimizer's latest updates."""

    def __init__(self) -> None:
        self._totals: deque[float] = deque(maxlen=_WINDOW)

    def examine(self, total: float) -> float | None:
        """Return how many times the largest of the latest totals ``total`` is, if it is an outlier; else learn from it.

        Args:
            total: of the gradients of an update, before clipping.
        """
        if not math.isfinite(total):
            return None
        if len(self._totals) >= _FIRST_STEPS:
            largest = max(self._totals)
            if total > OUTLIER * largest > 0:
                return total / largest
        self._totals.append(total)
        return None

    def forget(self) -> None:
        """Begin anew: what is an outlier twice is the new size of the gradients."""
        self._totals.clear()
