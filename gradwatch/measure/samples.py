"""Take a few fixed entries of each tensor: to see how far an update moved it, and to draw histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradwatch.measure.statistics import all_plain
from gradwatch.ranks.shards import held_entries, local_part, size_of_whole

__all__ = [
    "SAMPLED_ENTRIES",
    "EntrySample",
    "PartPlaces",
    "WeightSample",
    "entries_of",
    "evenly_spaced",
    "relative_change",
    "sample",
    "sample_means",
    "sample_sums",
    "sample_weights",
    "update_ratios",
    "update_sums",
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
        parts: which entries were taken, where this rank holds parts of the weights; None where it holds all.
    """

    weights: Sequence[Tensor]
    entries: Tensor
    unseen: Sequence[int]
    parts: PartPlaces | None = None


@dataclass(frozen=True)
class PartPlaces:
    """The places of sampled entries of w weights in the parts that this rank holds.

    All ranks together sample the entries that a single process would.

    Attributes:
        indices: of each weight, in the part that this rank holds, flattened.
        lengths: (w,) how many they are.
        shares: (w,) how many entries of the whole each of them stands for.
    """

    indices: Sequence[Tensor]
    lengths: Tensor
    shares: Tensor

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> PartPlaces:
        """Look up where this rank holds entries of ``weights``; where that is not known it samples its part alone."""
        indices, shares = [], []
        for weight in weights:
            size = size_of_whole(weight)
            held = held_entries(weight, _places(size))
            if held is None:
                size = local_part(weight).numel()
                held = _places(size)
            indices.append(held.to(local_part(weight).device))
            shares.append(size / max(_count(size, SAMPLED_ENTRIES), 1))
        lengths = torch.tensor([len(each) for each in indices], dtype=torch.int64)
        home = indices[0].device if indices else torch.device("cpu")
        return cls(indices, lengths.to(home), torch.tensor(shares, dtype=torch.float64).to(home))

    @torch.no_grad()
    def sample(self, parts: Sequence[Tensor]) -> Tensor:
        """Return (N,) the entries of ``parts`` in one row, as a copy on the device of the first of them."""
        found = [each.reshape(-1)[index] for each, index in zip(all_plain(parts), self.indices, strict=True)]
        if not found:
            return torch.zeros(0)
        entries = torch.cat([each.to(found[0].device, non_blocking=True) for each in found])
        return entries.float() if entries.dtype in (torch.float16, torch.bfloat16) else entries


class EntrySample(NamedTuple):
    """Some entries of a tensor at one time, to see whether it has changed since.

    Attributes:
        tensor: itself.
        entries: (n,) a copy of some of its entries.
    """

    tensor: Tensor
    entries: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> EntrySample:
        """Take a sample of what this rank holds of ``tensor``."""
        return cls(tensor, sample([local_part(tensor)]))

    def equals(self, before: EntrySample | None) -> bool:
        """Return True if ``before`` is of the same tensor, and no entry differs. Waits for the device."""
        return before is not None and before.tensor is self.tensor and torch.equal(before.entries, self.entries)


def sample_weights(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], parts: PartPlaces | None = None
) -> WeightSample:
    """Take a sample of ``weights`` before they are updated by ``gradients``.

    Args:
        weights: w tensors.
        gradients: one for each.
        parts: which entries to take, where this rank holds parts of the weights.
    """
    unseen = [
        place
        for place, gradient in enumerate(gradients)
        if gradient.layout is torch.sparse_coo and gradient.numel() > SAMPLED_ENTRIES
    ]
    return WeightSample(weights, sample(weights) if parts is None else parts.sample(weights), unseen, parts)


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


def sample_sums(before: WeightSample) -> Tensor:
    """Return (w,) what this rank's part of the sample adds to an estimate of the sum of all entries of each weight."""
    if before.parts is None or not before.weights:
        return torch.zeros(0)
    return _rows(before.entries, before.parts.lengths).sum(dim=1) * before.parts.shares


def update_sums(before: WeightSample) -> tuple[Tensor, Tensor]:
    """Return (w,) what this rank adds to estimates of ‖w‖² and ‖Δw‖² of the update made since ``before`` was taken.

    Both are 0 where the update cannot be seen.
    """
    parts = before.parts
    if parts is None or not before.weights:
        return torch.zeros(0), torch.zeros(0)
    size = _norms(before.entries, parts.lengths).double().square() * parts.shares
    moved = parts.sample(before.weights) - before.entries
    change = _norms(moved, parts.lengths).double().square() * parts.shares
    for place in before.unseen:
        size[place] = change[place] = 0.0
    return size, change


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


def _places(size: int) -> Tensor:
    """Return the places of the entries that ``entries_of`` takes of a tensor of ``size`` entries, flattened."""
    return torch.arange(0, size, _stride(size, SAMPLED_ENTRIES))


def _stride(size: int, limit: int) -> int:
    return -(-size // limit) or 1


def _count(size: int, limit: int) -> int:
    return -(-size // _stride(size, limit))
