"""A running level of the loss, and whether the loss stands out above it."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["loss_suffers", "new_loss_level"]

HORIZON = 30  # steps that the level remembers
RISE = 0.5  # a loss suffers from half its level above it ...
SPREADS = 4.0  # ... and from four of its usual deviations, so that a noisy loss must rise further
FIRST_STEPS = 10
NEGLIGIBLE = 1e-2  # share of the largest of the first steps: where a loss has converged, its rises are none
RUNAWAY = 10.0  # times the largest of the first steps, below zero: an error ascended, not a likelihood that improves


def new_loss_level() -> dict[str, Any]:
    """State of a level that has seen nothing."""
    return {"count": 0, "mean": 0.0, "spread": 0.0, "largest": 0.0}


def loss_suffers(level: dict[str, Any], loss: float) -> bool:
    """Whether ``loss`` stands out above its level; then takes it into the level, in place.

    A loss that is NaN or Inf suffers and is not taken in. One that runs away below zero suffers too; one that is still
    below a hundredth of what it first was does not (Adam near a minimum leaps and settles by turns). One that stands
    out is taken in only as far as it may rise without standing out, so that a spike does not become the new normal
    while a lasting change slowly does.
    """
    if not math.isfinite(loss):
        return True
    if level["count"] == 0:
        level.update(count=1, mean=loss, largest=abs(loss))
        return False
    if level["count"] < FIRST_STEPS and abs(loss) < RUNAWAY * level["largest"]:
        level["largest"] = max(level["largest"], abs(loss))
    allowed = max(RISE * abs(level["mean"]), SPREADS * level["spread"])
    deviation = loss - level["mean"]
    suffers = deviation > allowed and abs(loss) > NEGLIGIBLE * level["largest"]
    rate = 1 / min(level["count"] + 1, HORIZON)
    taken = max(-allowed, min(deviation, allowed)) if allowed > 0 else deviation
    level["mean"] += rate * taken
    level["spread"] += rate * (abs(taken) - level["spread"])
    level["count"] += 1
    return suffers or -loss > RUNAWAY * level["largest"]
