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

__all__ = [
    "clip_attempt_plainly_",
    "first_nonfinite",
    "is_spike",
    "leave_out",
    "mean_of",
    "must_not_update",
    "squares_and_nonfinite",
]


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


def leave_out(attempt: Attempt) -> None:
    """Take the gradients of ``attempt`` away, so that it moves nothing: AdamW moves weights on gradients of 0, too."""
    for parameter in attempt.parameters:
        parameter.grad = None


def is_spike(attempt: Attempt, policy: Policy | None, losses: Sequence[Tensor | float]) -> bool:
    """Return whether ``policy`` wants the update left out. Waits for the device."""
    if policy is None or policy.is_spike is None:
        return False
    total = squares_and_nonfinite(attempt)[0].sum().sqrt()
    return bool(policy.is_spike(total, mean_of(losses)))


def clip_attempt_plainly_(attempt: Attempt, policy: Policy | None, norms: Tensor | None = None) -> None:
    """Clip the gradients of ``attempt`` in place, if a ``policy`` was asked for.

    Args:
        attempt: the update.
        policy: how to clip.
        norms: (N,) the norms of the whole gradients, where this rank holds parts of them; None where it holds all.
    """
    if policy is None:
        return
    pairs = [
        (torch.zeros(0, device="cpu") if gradient is None else gradient, parameter)
        for gradient, parameter in zip(attempt.gradients, attempt.parameters, strict=True)
        if gradient is not None or norms is not None
    ]
    clip_plainly_(policy, [pair[0] for pair in pairs], attempt.scale, norms, [pair[1] for pair in pairs])


def squares_and_nonfinite(attempt: Attempt) -> Tensor:
    """Return (2, N) float64: of each gradient the sum of the squares, and its NaN and Inf entries; 0 without one.

    A loss scale that the gradients still hold is divided out.
    """
    found = torch.zeros(2, len(attempt.gradients), dtype=torch.float64, device="cpu")
    for place, gradient in enumerate(attempt.gradients):
        if gradient is not None:
            entries = gradient.coalesce().values() if gradient.is_sparse else gradient
            found[0, place] = torch.linalg.vector_norm(entries, dtype=torch.promote_types(entries.dtype, torch.float32))
            found[1, place] = (~torch.isfinite(entries)).sum()
    found[0] = (found[0] if attempt.scale is None else found[0] / attempt.scale.cpu()).square()
    return found


def mean_of(losses: Sequence[Tensor | float]) -> float | None:
    """Return the mean loss; None without any. Waits for the device."""
    return sum(map(float, losses)) / len(losses) if losses else None
