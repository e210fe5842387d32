"""Rank the rows of a batch by their share of the loss and of the gradient.

Each row is run alone, from the same random state. Its loss is L_i, and the norm of the gradient that it gives to all
parameters together is g_i; its shares are |L_i| / Σ|L_j| and g_i / Σ g_j. Rows depend on each other in a batch
normalisation: there g_i is the norm of row i of the gradient of the loss with respect to what the model returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Row", "ranked", "worst"]

APART = 10.0
"""Times the median gradient of a row, from which a finite row counts as one of the worst."""


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        row: its place in the batch, from 0.
        loss: of the row alone; None where that is not known.
        grad_norm: of the row alone.
        loss_share, gradient_share: of the sums over all finite rows; None for a row that is not finite, and where
            there is no loss.
    """

    row: int
    loss: float | None
    grad_norm: float
    loss_share: float | None
    gradient_share: float | None

    @property
    def is_finite(self) -> bool:
        """Return whether loss and gradient are."""
        return math.isfinite(self.grad_norm) and (self.loss is None or math.isfinite(self.loss))


def ranked(losses: Sequence[float | None], norms: Sequence[float]) -> list[Row]:
    """Return all rows, the worst first: those that are not finite, then by their share of the gradient.

    Args:
        losses: of each row alone; None where they are not known.
        norms: of the gradient of each row alone.
    """
    loss_sum = sum(abs(loss) for loss in losses if loss is not None and math.isfinite(loss))
    norm_sum = sum(norm for norm in norms if math.isfinite(norm))
    rows = [
        Row(place, loss, norm, _share(loss, loss_sum), _share(norm, norm_sum))
        for place, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    return sorted(rows, key=lambda row: (row.is_finite, -(row.gradient_share or 0.0), -(row.loss_share or 0.0)))


def worst(rows: Sequence[Row]) -> list[int]:
    """Return the places of the rows to leave out: all that are not finite; else those far above the median, or one."""
    nonfinite = [row.row for row in rows if not row.is_finite]
    if nonfinite or not rows:
        return nonfinite
    norms = sorted(row.grad_norm for row in rows)
    median = norms[len(norms) // 2]
    return [row.row for row in rows if row.grad_norm > APART * median] or [rows[0].row]


def _share(value: float | None, whole: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return abs(value) / whole if whole > 0 else 0.0
