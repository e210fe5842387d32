"""Notice that a loop clips gradients by their total norm: ``clip_grad_norm_``, whoever has imported it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gradwatch import _torch
from gradwatch.hooks.followed_function import FollowedFunction

__all__ = ["clipped_parameters", "follow_clipping"]

follow_clipping = FollowedFunction(*_torch.clipping_function(), hides=False).listen
"""Listen to the calls of ``clip_grad_norm_`` in this process; see ``FollowedFunction.listen``."""


def clipped_parameters(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the parameters that a call clips.

    None are returned where the limit is infinite, as in loops that only ask for the norm, or where reading them would
    use up a generator.
    """
    parameters = args[0] if args else kwargs.get("parameters")
    limit = args[1] if len(args) > 1 else kwargs.get("max_norm")
    if isinstance(limit, int | float) and math.isinf(limit):
        return []
    if isinstance(parameters, Tensor):
        return [parameters]
    return [*parameters] if isinstance(parameters, list | tuple) else []
