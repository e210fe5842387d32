"""A few fixed entries of each tensor: by how much an update moved it, and what a histogram is drawn from.

Enters: tensors. Leaves: evenly spaced entries, and norms of their change. Knows nothing of steps or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.measure.statistics import all_plain

__all__ = ["SAMPLED_ENTRIES", "entries_of", "evenly_spaced", "relative_change", "sample"]

SAMPLED_ENTRIES = 256
"""Entries a tensor that estimate how far an update moved it: their relative error is about 1/sqrt(2·256) = 4 %."""


@torch.no_grad()
def evenly_spaced(tensors: Sequence[Tensor], limit: int) -> list[Tensor]:
    """At most ``limit`` fixed, evenly spaced entries of each tensor, of shape (n,): views where that is possible."""
    return [entries_of(tensor.detach(), limit) for tensor in all_plain(tensors)]


@torch.no_grad()
def sample(tensors: Sequence[Tensor]) -> Tensor:
    """(N,) at most 256 entries of each of P tensors, one after the other, as a copy on the first one's device."""
    if not tensors:
        return torch.zeros(0)
    parts = [entries_of(tensor, SAMPLED_ENTRIES) for tensor in all_plain(tensors)]
    home = parts[0].device
    if any(part.device != home for part in parts):
        parts = [part.to(home, non_blocking=True) for part in parts]
    entries = torch.cat(parts)
    # a difference of bfloat16 numbers, rounded to bfloat16 again, is off by up to 0.4 %
    return entries.float() if entries.dtype in (torch.float16, torch.bfloat16) else entries


def relative_change(before: Tensor, after: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """(P,) ‖after − before‖ / ‖before‖ of each of ``tensors``, from what ``sample`` took of them at two times.

    NaN where ‖before‖ is 0, because a share of nothing means nothing.
    """
    if not tensors:
        return torch.zeros(0)
    lengths = torch.tensor([_count(tensor.numel(), SAMPLED_ENTRIES) for tensor in all_plain(tensors)])
    lengths = lengths.to(before.device, non_blocking=True)
    size, change = _norms(before, lengths), _norms(after - before, lengths)
    return torch.where(size > 0, change / size, torch.nan)


def _norms(entries: Tensor, lengths: Tensor) -> Tensor:
    """(P,) from (N,), of rows as long as ``lengths`` says."""
    is_filled = torch.arange(SAMPLED_ENTRIES, device=entries.device) < lengths.unsqueeze(1)
    rows = torch.zeros(is_filled.shape, dtype=entries.dtype, device=entries.device)
    return torch.linalg.vector_norm(rows.masked_scatter_(is_filled, entries), dim=1)


def entries_of(tensor: Tensor, limit: int) -> Tensor:
    """(n,) at most ``limit`` evenly spaced entries of one strided tensor: a view where that is possible."""
    stride = _stride(tensor.numel(), limit)
    if tensor.is_contiguous():  # in one call where three would do the same; there may be thousands
        return tensor.as_strided((_count(tensor.numel(), limit),), (stride,))
    return tensor.reshape(-1)[::stride]


def _stride(size: int, limit: int) -> int:
    return -(-size // limit) or 1


def _count(size: int, limit: int) -> int:
    return -(-size // _stride(size, limit))
