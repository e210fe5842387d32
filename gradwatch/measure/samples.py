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
    "sample_means",
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


def sample_means(before: WeightSample) -> Tensor:
    """Return (w,) means of the sampled entries of each weight; NaN for an empty one."""
    if not before.weights:
        return torch.zeros(0)
    lengths = _lengths(before.weights, before.entries.device)
    return _rows(before.entries, lengths).sum(dim=1) / lengths


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
    lengths = _lengths(tensors, before.device)
    size, change = _norms(before, lengths), _norms(after - before, lengths)
    return torch.where(size > 0, change / size, torch.nan)


def _lengths(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return (P,) how many entries ``sample`` takes of each tensor."""
    lengths = torch.tensor([_count(tensor.numel(), SAMPLED_ENTRIES) for tensor in all_plain(tensors)])
    return lengths.to(device, non_blocking=True)


def _norms(entries: Tensor, lengths: Tensor) -> Tensor:
    """Return (P,) norms of the consecutive pieces of ``entries`` (N,) that have these ``lengths`` (P,)."""
    return torch.linalg.vector_norm(_rows(entries, lengths), dim=1)


def _rows(entries: Tensor, lengths: Tensor) -> Tensor:
    """Return (P, 256), a row for each of the consecutive pieces of ``entries`` (N,), filled up with zeros."""
    is_filled = torch.arange(SAMPLED_ENTRIES, device=entries.device) < lengths.unsqueeze(1)
    rows = torch.zeros(is_filled.shape, dtype=entries.dtype, device=entries.device)
    return rows.masked_scatter_(is_filled, entries)


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
