"""Understand what the user wrote as ``clip=``."""

from __future__ import annotations

import math
from typing import Literal

from gradwatch.clip.by_limit import by_norm
from gradwatch.clip.by_optimizer import auto
from gradwatch.clip.policy import Policy

__all__ = ["policy_of"]


def policy_of(clip: float | Literal["auto"] | Policy | None) -> Policy | None:
    """Return the policy that the user wrote as ``clip=``; a number is a global L2 norm.

    Raises:
        TypeError, ValueError: naming ``clip``, what was found and what is understood.
    """
    if clip is None or isinstance(clip, Policy):
        return clip
    if clip == "auto":
        return auto()
    if isinstance(clip, (int, float)) and not isinstance(clip, bool):
        if not math.isfinite(clip) or clip <= 0:
            raise ValueError(f"clip={clip!r}: expected a positive, finite norm, or None not to clip.")
        return by_norm(float(clip))
    kind = ValueError if isinstance(clip, str) else TypeError
    raise kind(f'clip={clip!r}: expected None, a number (global L2 norm), "auto", or a policy from gradwatch.clip.')
