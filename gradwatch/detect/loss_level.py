"""A running level of the loss, and whether the loss rises above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from gradwatch.detect.loss_evidence import Reach

__all__ = ["LossLevel", "loss_suffers", "runs_away"]

HORIZON = 30  # steps that the level remembers
RISE = 0.5  # a loss suffers from half its level above it ...
SPREADS = 4.0  # ... and from four of its usual deviations, so that a noisy loss must rise further
FIRST_STEPS = 10
NEGLIGIBLE = 1e-2  # share of the largest of the first steps: where a loss has converged, its rises are none
RUNAWAY = 10.0  # times the largest of the first steps, below zero: an error ascended, not a likelihood that improves


@dataclass
class LossLevel:
    """The level of a loss: running means, and the largest of its first values.

    Attributes:
        count: finite losses so far.
        mean: running mean over about 30 of them.
        spread: running mean of their distance from it.
        largest: the largest absolute value of the first ten.
        latest: the latest finite loss.
        change: from the finite loss before it.
        beyond: the part of this change that lies beyond the reach of the updates.
    """

    VERSION: ClassVar[int] = 2

    count: int = 0
    mean: float = 0.0
    spread: float = 0.0
    largest: float = 0.0
    latest: float = 0.0
    change: float = 0.0
    beyond: float = 0.0


def loss_suffers(level: LossLevel, loss: float, reach: Reach) -> bool:
    """Return True if ``loss`` rises above its level; then take it into the level, in place.

    A loss that is NaN or Inf suffers and is not taken in. A loss that runs away below zero suffers, too. A loss below a
    hundredth of its first values does not suffer: Adam near a minimum leaps and settles by turns. A loss that suffers
    is taken in only as far as it may rise without suffering, so that a spike does not become the new normal while a
    lasting change slowly does.

    The part of a change that lies beyond the ``reach`` of the updates came with the data. A batch that is harder than
    the last one does no harm, so the level moves with it; and the spread grows, because what the updates make must
    stand out from what the data makes.
    """
    if not math.isfinite(loss):
        return True
    if level.count == 0:
        level.count, level.mean, level.largest, level.latest = 1, loss, abs(loss), loss
        return False
    change, level.latest = loss - level.latest, loss
    beyond = change - max(-reach.fall, min(change, reach.rise))
    level.change, level.beyond = change, beyond
    level.mean += beyond
    if level.count < FIRST_STEPS and abs(loss) < RUNAWAY * level.largest:
        level.largest = max(level.largest, abs(loss))
    allowed = max(RISE * abs(level.mean), SPREADS * level.spread)
    deviation = loss - level.mean
    suffers = deviation > allowed and abs(loss) > NEGLIGIBLE * level.largest
    rate = 1 / min(level.count + 1, HORIZON)
    taken = max(-allowed, min(deviation, allowed)) if allowed > 0 else deviation
    level.mean += rate * taken
    level.spread += rate * (abs(taken) + abs(beyond) - level.spread)
    level.count += 1
    return suffers or runs_away(level, loss)


def runs_away(level: LossLevel, loss: float) -> bool:
    """Return True if ``loss`` is not finite, or further below zero than ten times the largest of its first values."""
    return not math.isfinite(loss) or -loss > RUNAWAY * level.largest
