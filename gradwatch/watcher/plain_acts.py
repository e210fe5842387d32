"""Clip, skip or raise with torch alone, where the way through our own measurements has failed.

What the user asked for outlives our faults. This may wait for the device, and it reads every gradient once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.clip import Policy, clip_plainly_
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.options import OnNonFinite

__all__ = ["clip_attempt_plainly_", "first_nonfinite", "must_not_update"]


def first_nonfinite(attempt: Attempt) -> Tensor | None:
    """Return the first parameter whose gradient holds NaN or Inf; None where all are finite."""
    for parameter, gradient in zip(attempt.parameters, attempt.gradients, strict=True):
        if gradient is None:
            continue
        entries = gradient.coalesce().values() if gradient.is_sparse else gradient
        if not bool(torch.isfinite(entries).all()):
            return parameter
    return None


def must_not_update(attempt: Attempt, losses: Sequence[Tensor | float], on_nonfinite: OnNonFinite) -> bool:
    """Return whether no update is to be made: the user asked for that, and a gradient or a loss is not finite."""
    if on_nonfinite == "report" or attempt.has_scaler:
        return False
    return not all(math.isfinite(float(loss)) for loss in losses) or first_nonfinite(attempt) is not None


def clip_attempt_plainly_(attempt: Attempt, policy: Policy | None) -> None:
    """Clip the gradients of ``attempt`` in place, if a ``policy`` was asked for."""
    if policy is not None:
        gradients = [gradient for gradient in attempt.gradients if gradient is not None]
        clip_plainly_(policy, gradients, attempt.scale)
