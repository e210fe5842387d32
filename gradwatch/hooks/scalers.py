"""Notice what gradient scalers do: scale a loss, unscale gradients, make an update or leave it out.

``torch.cuda.amp.GradScaler`` and the scalers of frameworks inherit these methods from ``torch.amp.GradScaler``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.amp import GradScaler
from torch.optim import Optimizer

from gradwatch.hooks.followed_function import FollowedFunction

__all__ = ["ScalerCall", "follow_scale", "follow_scaler_step", "follow_unscale", "scaler_call"]

follow_scale = FollowedFunction(GradScaler, "scale").listen
"""Listen to the calls of ``GradScaler.scale`` in this process; see ``FollowedFunction.listen``."""

follow_unscale = FollowedFunction(GradScaler, "unscale_").listen
"""Listen to the calls of ``GradScaler.unscale_`` in this process; ``GradScaler.step`` calls it where nobody has."""

follow_scaler_step = FollowedFunction(GradScaler, "step").listen
"""Listen to the calls of ``GradScaler.step`` in this process."""


class ScalerCall(NamedTuple):
    """A call of ``unscale_`` or ``step``."""

    scaler: GradScaler
    optimizer: Optimizer


def scaler_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> ScalerCall | None:
    """Return the call of a scaler that scales; None where it is disabled, or has no optimizer of torch's."""
    scaler, optimizer = args[0], args[1] if len(args) > 1 else kwargs.get("optimizer")
    if not isinstance(optimizer, Optimizer) or not scaler.is_enabled():
        return None
    return ScalerCall(scaler, optimizer)
