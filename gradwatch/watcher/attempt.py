"""One attempted update, as a loop hands it over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

__all__ = ["Attempt"]


class Attempt(NamedTuple):
    """An update that is about to be made.

    Attributes:
        optimizer: None in a loop without one.
        parameters: all that it updates, by the optimizers inside it, too.
        gradients: of each, None where it has none; of a ``DTensor`` the part that this rank holds.
        scale: () a loss scale that the gradients still hold, or None.
        has_scaler: whether a gradient scaler leaves the update out by itself where a gradient is not finite.
        scaler: the scaler, where it is known.
        learning_rates: that of each group; empty where it has none.
        is_part: some of the gradients are parts of a ``DTensor``.
    """

    optimizer: Optimizer | None
    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    scale: Tensor | None = None
    has_scaler: bool = False
    scaler: GradScaler | None = None
    learning_rates: tuple[float, ...] = ()
    is_part: bool = False

    def of_parts(self, parts: Sequence[Tensor | None]) -> Attempt:
        """Return the same update with the parts of its gradients that this rank holds."""
        return self._replace(gradients=parts, is_part=True)

    @property
    def device(self) -> torch.device:
        """The device of the first gradient, or of the first parameter where there is none."""
        return next(each.device for each in (*self.gradients, *self.parameters) if each is not None)
