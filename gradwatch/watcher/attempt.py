"""One attempted update, as a loop hands it over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

__all__ = ["Attempt"]


class Attempt(NamedTuple):
    """An update that is about to be made.

    Attributes:
        optimizer: None in a loop without one.
        parameters: all that it updates.
        gradients: of each, None where it has none.
        scale: () a loss scale that the gradients still hold, or None.
        has_scaler: whether a gradient scaler leaves the update out by itself where a gradient is not finite.
        scaler: the scaler, where it is known.
        learning_rates: that of each group; empty where it has none.
    """

    optimizer: Optimizer | None
    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    scale: Tensor | None = None
    has_scaler: bool = False
    scaler: GradScaler | None = None
    learning_rates: tuple[float, ...] = ()
