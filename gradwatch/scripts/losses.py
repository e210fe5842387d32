"""Collect the losses of a program that hands none over: the scalars that ``backward()`` is called on.

They come from calls of ``torch.autograd.backward`` (``Tensor.backward`` among them). Calls of ``GradScaler.scale`` tell
what they were before they were scaled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.utils.weak import WeakIdKeyDictionary

from gradwatch import _torch

__all__ = ["Losses"]

MOST_LOSSES = 256
"""Losses between two updates, more than most loops accumulate: a program that never updates must not fill memory."""


class Losses:
    """The losses on which ``backward()`` was called, until an update was made from them.

    Of several optimizers that update after one backward pass, each gets its loss.
    """

    def __init__(self) -> None:
        self._since: deque[Tensor] = deque(maxlen=MOST_LOSSES)
        self._latest: Tensor | None = None
        self._took: set[int] = set()  # optimizers that have updated since the latest backward pass
        self._unscaled = WeakIdKeyDictionary()  # what a scaler returned → what it was given
        self._scaler: GradScaler | None = None  # has scaled something since the latest backward pass

    def note_scaled(self, scaler: GradScaler, given: Any, scaled: Any) -> None:
        """Note that ``scaler`` made ``scaled`` from ``given``."""
        if isinstance(scaled, Tensor) and isinstance(given, Tensor) and scaled is not given:
            self._unscaled[scaled] = given
            self._scaler = scaler

    def note_backward(self, tensors: Any) -> None:
        """Note a call of ``backward()``. Several scalars count as their sum; tensors with more entries are no loss."""
        if _torch.in_backward():  # a checkpoint, within a backward pass
            return
        parts = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        scaler, self._scaler = self._scaler, None
        if not parts or not all(isinstance(part, Tensor) and part.numel() == 1 for part in parts):
            return
        if self._took:
            self._since.clear()
            self._took.clear()
        with torch.no_grad():
            values = [self._value(part, scaler) for part in parts]
            self._since.append(values[0] if len(values) == 1 else torch.stack(values).sum())
        self._latest = parts[-1]

    def take(self, optimizer: object) -> Sequence[Tensor]:
        """Return the () losses since the last update, detached; none if ``optimizer`` has taken them before."""
        if id(optimizer) in self._took:
            return ()
        self._took.add(id(optimizer))
        return tuple(self._since)

    def take_graph(self) -> Tensor | None:
        """Return the latest loss with its graph, and hold it no longer."""
        latest, self._latest = self._latest, None
        return latest

    def _value(self, loss: Tensor, scaler: GradScaler | None) -> Tensor:
        """Return () ``loss`` without its scale: as it was before scaling, or divided where it was computed since."""
        value = loss.detach()
        if (given := self._unscaled.get(loss)) is not None:
            value = given.detach()
        elif scaler is not None:
            value = value / _torch.scale_of(scaler)
        return value.reshape(())
