"""Take a few fixed entries of each tensor: to see how far an update moved it, and to draw histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradwatch.measure.segments import Segments
from gradwatch.measure.statistics import all_plain
from gradwatch.ranks.shards import held_entries, local_part, size_of_whole

__all__ = [
    "SAMPLED_ENTRIES",
    "EntrySample",
    "PartPlaces",
    "WeightSample",
    "coprime_stride",
    "entries_of",
    "evenly_spaced",
    "relative_change",
    "sample",
    "sample_means",
    "sample_segments",
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
        rows: (w, n) a copy of at most 256 entries of each, filled up with zeros.
        segments: how many entries of each.
        unseen: indices of weights with sparse gradients: the rows sampled may not be those that the update touches.
        parts: which entries were taken, where this rank holds parts of the weights; None where it holds all.
    """

    weights: Sequence[Tensor]
    rows: Tensor
    segments: Segments
    unseen: Sequence[int]
    parts: PartPlaces | None = None


@dataclass(frozen=True)
class PartPlaces:
    """The places of sampled entries of w weights in the parts that this rank holds.

    All ranks together sample the entries that a single process would.

    Attributes:
        indices: of each weight, in the part that this rank holds, flattened.
        segments: how many of each.
        shares: (w,) how many entries of the whole each of them stands for.
    """

    indices: Sequence[Tensor]
    segments: Segments
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
        home = indices[0].device if indices else torch.device("cpu")
        segments = Segments([len(each) for each in indices], home)
        return cls(
            indices, segments, torch.tensor(shares, dtype=torch.float64, device="cpu").to(home, non_blocking=True)
        )

    @torch.no_grad()
    def sample(self, parts: Sequence[Tensor]) -> Tensor:
        """Return (w, n) the entries of ``parts``, a row for each."""
        taken = [each.reshape(-1)[index] for each, index in zip(all_plain(parts), self.indices, strict=True)]
        return self.segments.rows(_joined(taken))


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
    weights: Sequence[Tensor], gradients: Sequence[Tensor], segments: Segments, parts: PartPlaces | None = None
) -> WeightSample:
    """Take a sample of ``weights`` before they are updated by ``gradients``.

    Args:
        weights: w tensors.
        gradients: one for each.
        segments: of the weights, see ``sample_segments``.
        parts: which entries to take instead, where this rank holds parts of the weights.
    """
    unseen = [
        place
        for place, gradient in enumerate(gradients)
        if gradient.layout is torch.sparse_coo and gradient.numel() > SAMPLED_ENTRIES
    ]
    if parts is not None:
        return WeightSample(weights, parts.sample(weights), parts.segments, unseen, parts)
    entries = sample(weights)
    if len(entries) != sum(segments.lengths) + 1:  # the loop has put a tensor of another size into a parameter
        segments = sample_segments(weights)
    return WeightSample(weights, segments.rows(entries), segments, unseen)


def update_ratios(before: WeightSample) -> Tensor:
    """Return (w,) ‖Δw‖/‖w‖ of the update that was made since ``before`` was taken; NaN where it cannot be seen."""
    ratios = relative_change(before.rows, before.segments.rows(sample(before.weights)))
    for place in before.unseen:
        ratios[place] = torch.nan
    return ratios


def sample_means(before: WeightSample) -> Tensor:
    """Return (w,) means of the sampled entries of each weight; NaN for an empty one."""
    return before.rows.sum(dim=1) / before.segments.counts


def sample_sums(before: WeightSample) -> Tensor:
    """Return (w,) what this rank's part of the sample adds to an estimate of the sum of all entries of each weight."""
    if before.parts is None or not before.weights:
        return torch.zeros(0, device="cpu")
    return before.rows.sum(dim=1) * before.parts.shares


def update_sums(before: WeightSample) -> tuple[Tensor, Tensor]:
    """Return (w,) what this rank adds to estimates of ‖w‖² and ‖Δw‖² of the update made since ``before`` was taken.

    Both are 0 where the update cannot be seen.
    """
    parts = before.parts
    if parts is None or not before.weights:
        return torch.zeros(0, device="cpu"), torch.zeros(0, device="cpu")
    rows = before.rows, parts.sample(before.weights) - before.rows
    size, change = (torch.linalg.vector_norm(each, dim=1).double().square() * parts.shares for each in rows)
    for place in before.unseen:
        size[place] = change[place] = 0.0
    return size, change


@torch.no_grad()
def evenly_spaced(tensors: Sequence[Tensor], limit: int) -> list[Tensor]:
    """Return at most ``limit`` fixed, evenly spaced entries of each tensor, of shape (n,): views where possible."""
    return [entries_of(tensor.detach(), limit) for tensor in all_plain(tensors)]


@torch.no_grad()
def sample(tensors: Sequence[Tensor]) -> Tensor:
    """Return at most 256 entries of each of P tensors in one row, as a copy on the first tensor's device.

    Returns:
        (N + 1,): the entries, and a 0 that ``Segments.rows`` fills up rows with.
    """
    return _joined([entries_of(tensor, SAMPLED_ENTRIES) for tensor in all_plain(tensors)])


def sample_segments(tensors: Sequence[Tensor]) -> Segments:
    """Return how many entries ``sample`` takes of each tensor."""
    lengths = [_count(tensor.numel(), SAMPLED_ENTRIES) for tensor in all_plain(tensors)]
    return Segments(lengths, tensors[0].device if tensors else torch.device("cpu"))


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Return (P,) ‖after − before‖ / ‖before‖ of each row of (P, n) entries, as ``Segments.rows`` lays them out.

    It is NaN where ‖before‖ is 0, because a share of nothing means nothing.
    """
    size, change = (torch.linalg.vector_norm(rows, dim=1) for rows in (before, after - before))
    return (change / size).masked_fill_(size == 0, torch.nan)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return (N + 1,) the entries of all parts, and a 0, on the device of the first part."""
    if not parts:
        return torch.zeros(1, device="cpu")
    home = parts[0].device
    if any(part.device != home for part in parts):
        parts = [part.to(home, non_blocking=True) for part in parts]
    entries = torch.cat([*parts, parts[0].new_zeros(1)])
    # a difference of bfloat16 numbers, rounded to bfloat16 again, is off by up to 0.4 %
    return entries.float() if entries.dtype in (torch.float16, torch.bfloat16) else entries


def entries_of(tensor: Tensor, limit: int) -> Tensor:
    """Return (n,) at most ``limit`` evenly spaced entries of one strided tensor: a view where possible."""
    stride = _stride(tensor.numel(), limit)
    if tensor.is_contiguous():  # in one call where three would do the same; there may be thousands
        return tensor.as_strided((_count(tensor.numel(), limit),), (stride,))
    return tensor.reshape(-1)[::stride]


def _places(size: int) -> Tensor:
    """Return the places of the entries that ``entries_of`` takes of a tensor of ``size`` entries, flattened."""
    return torch.arange(0, size, _stride(size, SAMPLED_ENTRIES), device="cpu")


def coprime_stride(size: int, limit: int, period: int) -> int:
    """Return a stride that leaves at most ``limit`` of ``size`` entries, and meets each place of a ``period`` alike."""
    stride = _stride(size, limit)
    while math.gcd(stride, period) > 1:
        stride += 1
    return stride


def _stride(size: int, limit: int) -> int:
    return -(-size // limit) or 1


def _count(size: int, limit: int) -> int:
    return -(-size // _stride(size, limit))
