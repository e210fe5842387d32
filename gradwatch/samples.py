"""A few fixed entries of each tensor: by how much an update moved it, and what a histogram is drawn from.

Enters: tensors. Leaves: evenly spaced entries, and norms of their change. Knows nothing of steps or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.stats import all_plain

__all__ = ["SAMPLED_ENTRIES", "Samples", "evenly_spaced"]

SAMPLED_ENTRIES = 256
"""Entries a tensor that estimate how far an update moved it: their relative error is about 1/sqrt(2·256) = 4 %."""


@torch.no_grad()
def evenly_spaced(tensors: Sequence[Tensor], limit: int) -> list[Tensor]:
    """At most ``limit`` fixed, evenly spaced entries of each tensor, of shape (n,): views where that is possible."""
    flat = (tensor.detach().reshape(-1) for tensor in all_plain(tensors))
    return [part[:: -(-part.numel() // limit) or 1] for part in flat]


class Samples:
    """The same entries of the same tensors again and again.

    Args:
        tensors: P tensors; where one is given other memory (``p.data = …``), that is seen.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._views: list[Tensor] = []
        self._memory: list[int] = []  # where the entries of each tensor lie; empty: the views must be made anew

    @torch.no_grad()
    def take(self) -> Tensor:
        """(N,) the entries of all, one after the other, as a copy on the first one's device."""
        if not self._tensors:
            return torch.zeros(0)
        memory = [t.data_ptr() if t.layout is torch.strided else 0 for t in self._tensors]
        if memory != self._memory:
            self._views = evenly_spaced(self._tensors, SAMPLED_ENTRIES)
            # a tensor that cannot be seen as one row was copied: its view tells of no later step
            are_views = all(view.data_ptr() == at for view, at in zip(self._views, memory, strict=True) if len(view))
            self._memory = memory if are_views else []
        home = self._views[0].device
        return torch.cat([_single(view.to(home, non_blocking=True)) for view in self._views])

    def relative_change(self, before: Tensor, after: Tensor) -> Tensor:
        """(P,) ‖after − before‖ / ‖before‖ of each tensor, both as ``take`` gave them.

        NaN where ‖before‖ is 0, because a share of nothing means nothing.
        """
        size, change = self._norms(before), self._norms(after - before)
        return torch.where(size > 0, change / size, torch.nan)

    def _norms(self, entries: Tensor) -> Tensor:
        """(P,) from (N,)."""
        if not self._views:
            return torch.zeros(0)
        lengths = torch.tensor([view.numel() for view in self._views]).to(entries.device, non_blocking=True)
        is_filled = torch.arange(SAMPLED_ENTRIES, device=entries.device) < lengths.unsqueeze(1)
        rows = torch.zeros(is_filled.shape, dtype=entries.dtype, device=entries.device)
        return torch.linalg.vector_norm(rows.masked_scatter_(is_filled, entries), dim=1)


def _single(tensor: Tensor) -> Tensor:
    """A difference of bfloat16 numbers, rounded to bfloat16 again, is off by up to 0.4 %."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
