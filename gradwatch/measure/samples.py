"""Take a few fixed entries of each tensor: to see how far an update moved it, and to draw histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.measure.statistics import all_plain

__all__ = [
    "SAMPLED_ENTRIES",
    "WeightSample",
    "entries_of",
    "evenly_spaced",
    "relative_change",
    "sample",
    "sample_weights",
    "update_ratios",
]

SAMPLED_ENTRIES = 256
"""Entries a tensor that estimate how far an update moved it: their relative error is about 1/sqrt(2·256) = 4 %."""


@dataclass(frozen=True)
class WeightSample:
    """Entries of w weights as they were before an update.

    Attributes:
        weights: the w tensors themselves, which the update changes.
        entries: (N,) a copy of some of their entries, as ``sample`` takes it.
        unseen: indices of weights with sparse gradients: the rows sampled may not be those that the update touches.
    """

    weights: Sequence[Tensor]
    entries: Tensor
    unseen: Sequence[int]


def sample_weights(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> WeightSample:
    """Take a sample of ``weights`` before they are updated by ``gradients``."""
    unseen = [
        place
        for place, gradient in enumerate(gradients)
        if gradient.layout is torch.sparse_coo and gradient.numel() > SAMPLED_ENTRIES
    ]
    return WeightSample(weights, sample(weights), unseen)


def update_ratios(before: WeightSample) -> Tensor:
    """Return (w,) ‖Δw‖/‖w‖ of the update that was made since ``before`` was taken; NaN where it cannot be seen."""
    ratios = relative_change(before.entries, sample(before.weights), before.weights)
    for place in before.unseen:
        ratios[place] = torch.nan
    return ratios


@torch.no_grad()
def evenly_spaced(tensors: Sequence[Tensor], limit: int) -> list[Tensor]:
    """Return at most ``limit`` fixed, evenly spaced entries of each tensor, of shape (n,): views where possible."""
    return [entries_of(tensor.detach(), limit) for tensor in all_plain(tensors)]


@torch.no_grad()
def sample(tensors: Sequence[Tensor]) -> Tensor:
    """Return (N,) at most 256 entries of each of P tensors in one row, as a copy on the first tensor's device."""
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
    """Return (P,) ‖after − before‖ / ‖before‖ of each of ``tensors``, from what ``sample`` took at two times.

    It is NaN where ‖before‖ is 0, because a share of nothing means nothing.
    """
    if not tensors:
        return torch.zeros(0)
    lengths = torch.tensor([_count(tensor.numel(), SAMPLED_ENTRIES) for tensor in all_plain(tensors)])
    lengths = lengths.to(before.device, non_blocking=True)
    size, change = _norms(before, lengths), _norms(after - before, lengths)
    return torch.where(size > 0, change / size, torch.nan)


def _norms(entries: Tensor, lengths: Tensor) -> Tensor:
    """Return (P,) norms of the consecutive pieces of ``entries`` (N,) that have these ``lengths`` (P,)."""
    is_filled = torch.arange(SAMPLED_ENTRIES, device=entries.device) < lengths.unsqueeze(1)
    rows = torch.zeros(is_filled.shape, dtype=entries.dtype, device=entries.device)
    return torch.linalg.vector_norm(rows.masked_scatter_(is_filled, entries), dim=1)


def entries_of(tensor: Tensor, limit: int) -> Tensor:
    """Return (n,) at most ``limit`` evenly spaced entries of one strided tensor: a view where possible."""
    stride = _stride(tensor.numel(), limit)
    if tensor.is_contiguous():  # in one call where three would do the same; there may be thousands
        return tensor.as_strided((_count(tensor.numel(), limit),), (stride,))
    return tensor.reshape(-1)[::stride]


def _stride(size: int, limit: int) -> int:
    return -(-size // limit) or 1


def _count(size: int, limit: int) -> int:
    return -(-size // _stride(size, limit))
