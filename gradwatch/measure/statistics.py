"""Measure the magnitudes of tensors on their device, in batched passes, and scale tensors in place.

Gradients or weights go in, vectors of shape (P,) come out. No other module calls torch's batched kernels, those below
``torch.nn.utils.get_total_norm``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradwatch import _torch

__all__ = [
    "EntryStatistics",
    "Magnitudes",
    "all_plain",
    "clamp_",
    "count_nonfinite",
    "entries",
    "measure",
    "norms",
    "scale_",
    "undo_change",
    "without_overflow",
]

_SAME_FACTOR = 1e-2  # bfloat16 rounds a factor by 0.4 %

Groups = list[list[int]]
"""Indices of the tensors of each (device, dtype)."""


@dataclass(frozen=True)
class Magnitudes:
    """Magnitudes of P tensors, still on the device of the first of them.

    Attributes:
        l2: (P,) float32 (float64 where a tensor is), Euclidean norm of each; may overflow to Inf for finite entries.
        nonfinite: (P,) NaN and Inf entries of each: int64 on the CPU, elsewhere bool for "at least one", because
            counting would read every entry again at every step.
        total: () float64, Euclidean norm over all tensors.
        scale: () the loss scale that the tensors still hold. ``l2`` and ``total`` are without it.
        groups: indices of the tensors of each (device, dtype); None where some are sparse or complex.
        of_whole: these are magnitudes of whole tensors, of which a rank holds parts only.
    """

    l2: Tensor
    nonfinite: Tensor
    total: Tensor
    scale: Tensor | None = None
    groups: Groups | None = None
    of_whole: bool = False


SMALL, TOGETHER = 2**12, 2**10
"""Entries of a tensor that is counted together with others, and how many are: at most 16 MB of float32 are copied."""


@dataclass(frozen=True)
class EntryStatistics:
    """Statistics of the entries of P tensors, each (P,) float64 on the first tensor's device; NaN for empty tensors.

    Attributes:
        largest: largest absolute entry.
        mean: arithmetic mean.
        std: standard deviation with Bessel's correction; 0 for a single entry.
        zero_fraction: share of entries that are exactly 0.
    """

    largest: Tensor
    mean: Tensor
    std: Tensor
    zero_fraction: Tensor


@torch.no_grad()
def measure(tensors: Sequence[Tensor], scale: Tensor | None = None) -> Magnitudes:
    """Return norms, finiteness and total of ``tensors``, with no host sync off the CPU.

    A loss scale that the tensors still hold is divided out of the figures. The tensors stay as they are.

    Finiteness is judged by the entries, never by the norm alone: 3e19 in float32 has an infinite norm.
    Squares are accumulated in float32 at least, because float16 overflows at 65,504.
    """
    plain = all_plain(tensors)
    groups = _groups(plain)
    l2 = _gather(plain, groups, _squares)
    total = _total(l2)
    nonfinite = _count_nonfinite(plain, groups, l2, total)
    known = groups if plain is tensors else None
    if scale is None:
        return Magnitudes(l2, nonfinite, total, groups=known)
    scale = scale.to(l2.device, non_blocking=True)
    return Magnitudes(l2 / scale, nonfinite, total / scale, scale, known)


@torch.no_grad()
def without_overflow(tensors: Sequence[Tensor], magnitudes: Magnitudes) -> Magnitudes:
    """Return the ``magnitudes`` of P ``tensors`` with true norms where the squares of finite entries have overflowed.

    Off the CPU, where a look would wait for the device, and of tensors that are parts, they are returned as they are.
    """
    total, l2 = magnitudes.total, magnitudes.l2
    if magnitudes.of_whole or not total.is_cpu or math.isfinite(total) or bool(magnitudes.nonfinite.any()):
        return magnitudes
    exact = l2.double()
    for place in torch.isinf(l2).nonzero().flatten().tolist():
        entries = _plain(tensors[place]).double() / (1.0 if magnitudes.scale is None else magnitudes.scale)
        largest = entries.abs().amax()
        exact[place] = largest * torch.linalg.vector_norm(entries / largest)
    return replace(magnitudes, l2=exact, total=_total(exact))


@torch.no_grad()
def undo_change(now: Magnitudes, at_end: Magnitudes, positions: Tensor, *, only_of_all: bool = False) -> Magnitudes:
    """Return the magnitudes of P gradients before the loop changed them. No host sync.

    Where the total changed by a power of two, the loop divided out a loss scale, as figures should be: then the
    magnitudes of now are returned.

    Args:
        only_of_all: undo only what made all gradients smaller by the same factor, as clipping by their total norm does.
            A loop that averages over ranks by itself changes each by another factor, and that is to stay.
        now: magnitudes of P gradients.
        at_end: magnitudes of n gradients before the change. Gradients that are missing here are taken to have changed
            by the same factor as the others.
        positions: (P,) int64, the index of each of P among the n, −1 where it is missing.
    """
    known = positions >= 0
    earlier = torch.where(known, at_end.l2[positions.clamp(min=0)], 0.0)
    ratio = _total(earlier) / _total(torch.where(known, now.l2, 0.0))
    halvings = torch.log2(ratio)
    is_scale = (halvings - halvings.round()).abs() < 1e-5
    if only_of_all:
        factors = torch.where(known & (earlier > 0), now.l2 / earlier, 1 / ratio)
        is_of_all = (factors * ratio - 1).abs().amax() < _SAME_FACTOR
        is_scale = is_scale | (torch.isfinite(ratio) & ~is_of_all)
    l2 = torch.where(is_scale, now.l2, torch.where(known, earlier, (now.l2 * ratio).to(now.l2.dtype)))
    # one NaN spreads to every gradient when the total scales them, so the counts before the change hold
    counted = torch.where(known, at_end.nonfinite[positions.clamp(min=0)], now.nonfinite)
    nonfinite = torch.where(counted.sum() > 0, counted, now.nonfinite)
    return Magnitudes(l2, nonfinite, _total(l2), now.scale)


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return (P,) Euclidean norms, by one batched call for each (device, dtype)."""
    plain = all_plain(tensors)
    return _gather(plain, _groups(plain), _squares)


@torch.no_grad()
def entries(tensors: Sequence[Tensor], l2: Tensor, *, with_spread: bool = True) -> EntryStatistics:
    """Return statistics of the entries. It reads each tensor several times, so it is for sampled steps only.

    The standard deviation comes from the sum and the norm, since ``std_mean`` is up to 60 times slower on the CPU:
    std² = (Σx² − n·mean²)/(n−1), in float64.

    Args:
        tensors: P tensors.
        l2: (P,) their norms.
        with_spread: also compute mean and standard deviation, which costs another read; they are NaN otherwise.
    """
    plain, home = all_plain(tensors), l2.device
    count = _on(home, [tensor.numel() for tensor in plain], torch.float64)
    some = count > 0
    zeros = count - _stack([tensor.count_nonzero() for tensor in plain], home)
    lowest, highest = zip(*map(torch.aminmax, _filled(plain)), strict=True) if plain else ((), ())
    largest = torch.maximum(-_stack(lowest, home), _stack(highest, home)).where(some, torch.nan)
    unknown = torch.full_like(count, torch.nan)
    mean, std = _mean_and_std(plain, l2, count) if with_spread else (unknown, unknown)
    return EntryStatistics(largest, mean, std.where(some, torch.nan), zeros / count)


def _mean_and_std(plain: Sequence[Tensor], l2: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    mean = _stack([tensor.sum(dtype=_accumulator(tensor.dtype)) for tensor in plain], l2.device) / count
    variance = (l2.double().square() - count * mean.square()) / (count - 1).clamp(min=1)
    return mean, variance.clamp(min=0).sqrt()  # clamp turns small negative numbers of cancellation into 0, keeps NaN


@torch.no_grad()
def scale_(tensors: Sequence[Tensor], scales: Tensor, groups: Groups | None = None) -> None:
    """Multiply ``tensors`` in place by ``scales``. No host sync off the CPU.

    Args:
        tensors: P tensors.
        scales: () for one scale, (P,) for one each.
        groups: of ``tensors``, where ``measure`` has returned them.
    """
    if scales.is_cpu and (float(scales) == 1 if scales.ndim == 0 else (scales == 1).all()):
        return  # the test costs nothing here, and saves a read and a write of every gradient
    for positions in groups or _groups(tensors):
        group = _members(tensors, positions)
        group = [_real(tensor) for tensor in group] if group[0].is_complex() else group
        # a scale of the group's own type is multiplied three times as fast; in float16 one below 6e-8 would be 0
        dtype = group[0].dtype if group[0].dtype in (torch.float32, torch.float64) else scales.dtype
        here = scales.to(group[0].device, dtype, non_blocking=True)
        # a list as an index would be copied to a GPU, which waits
        _torch.foreach_mul_(group, here if here.ndim == 0 else _members(here.unbind(), positions))


@torch.no_grad()
def clamp_(tensors: Sequence[Tensor], limit: float | Tensor, when: Tensor) -> None:
    """Clamp every entry to [−limit, limit] in place if the () bool ``when`` holds. No host sync off the CPU."""
    if when.device.type == "cpu" and not bool(when):
        return  # the test costs nothing here, and saves a read and a write of every gradient
    wide = _wide(when.device)
    limits = limit.to(wide) if isinstance(limit, Tensor) else torch.full((), limit, dtype=wide, device=when.device)
    bound = limits.where(when, torch.inf)
    for tensor in tensors:
        merged = tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor  # its stored entries add up
        part = _real(merged.values() if merged.layout is torch.sparse_coo else merged)
        here = bound.to(part.device, non_blocking=True)
        part.copy_(torch.minimum(torch.maximum(part, -here), here))
        if merged is not tensor:
            tensor.copy_(merged)


@torch.no_grad()
def count_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """Return (P,) int64, the number of NaN and Inf entries of each tensor. Reads every entry; syncs."""
    parts = [_plain(tensor) for tensor in tensors]
    counts = torch.zeros(len(parts), dtype=torch.int64, device="cpu")
    small = [place for place, part in enumerate(parts) if part.is_cpu and part.numel() <= SMALL]
    for first in range(0, len(small), TOGETHER):
        places = small[first : first + TOGETHER]
        counts[places] = _count_in_one([parts[place] for place in places])
    for place in set(range(len(parts))).difference(small):
        counts[place] = parts[place].numel() - int(torch.isfinite(parts[place]).sum())
    return counts


def _count_in_one(parts: Sequence[Tensor]) -> Tensor:
    """Return the number of NaN and Inf entries of each of some small tensors: one look at a copy of all of them."""
    ends = torch.tensor([part.numel() for part in parts], device="cpu").cumsum(0)
    so_far = (~torch.isfinite(torch.cat([part.flatten() for part in parts]))).cumsum(0)
    return torch.cat([so_far.new_zeros(1), so_far])[ends].diff(prepend=so_far.new_zeros(1))


def _squares(group: list[Tensor]) -> Sequence[Tensor]:
    return _torch.foreach_norm(group, 2, dtype=_accumulator(group[0].dtype))


def _extremes(group: list[Tensor]) -> Sequence[Tensor]:
    return _torch.foreach_norm(_filled(group), math.inf)


def _filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors with a zero in place of each empty one: torch finds no largest entry in those."""
    return [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]


def _count_nonfinite(tensors: Sequence[Tensor], groups: Groups, l2: Tensor, total: Tensor) -> Tensor:
    if l2.device.type == "cpu" and math.isfinite(total):
        return torch.zeros(len(tensors), dtype=torch.int64, device="cpu")
    if l2.device.type != "cpu":
        largest = _gather(tensors, groups, _extremes)
        return (largest - largest) != 0  # Inf − Inf and NaN − NaN are NaN; isfinite() launches four times
    suspects = (~torch.isfinite(l2)).nonzero().flatten()
    counts = torch.zeros(len(tensors), dtype=torch.int64, device="cpu")
    if len(suspects):
        counts[suspects] = count_nonfinite([tensors[i] for i in suspects.tolist()])
    return counts


def _total(l2: Tensor) -> Tensor:
    return torch.linalg.vector_norm(l2, dtype=_wide(l2.device))


def all_plain(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the same entries as dense real tensors: ``tensors`` itself where all are dense and real already."""
    dtypes = {tensor.dtype for tensor in tensors}
    if {tensor.layout for tensor in tensors} <= {torch.strided} and not any(dtype.is_complex for dtype in dtypes):
        return tensors
    return [_plain(tensor) for tensor in tensors]


def _plain(tensor: Tensor) -> Tensor:
    """Return the same entries as a dense real tensor: the stored values of a sparse one, (re, im) of a complex one."""
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _real(tensor: Tensor) -> Tensor:
    """Return the same memory as real numbers where possible, to write to it: Inf · (1+0j) would make a NaN."""
    if not tensor.is_complex() or tensor.layout is not torch.strided:
        return tensor
    return torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _groups(tensors: Sequence[Tensor]) -> Groups:
    return _torch.positions_by_device_and_dtype(tensors) if tensors else []


def _members(tensors: Sequence[Tensor], positions: list[int]) -> list[Tensor]:
    return list(tensors) if len(positions) == len(tensors) else [tensors[i] for i in positions]


def _gather(tensors: Sequence[Tensor], groups: Groups, reduce: Callable[[list[Tensor]], Sequence[Tensor]]) -> Tensor:
    """Return a (P,) vector from a reduction of each group, in the order of ``tensors``."""
    if not groups:
        return torch.zeros(0, device="cpu")
    found = [reduce(_members(tensors, positions)) for positions in groups]
    if len(found) == 1:
        return torch.stack([*found[0]])
    scalars: list[Tensor] = [*tensors]
    for positions, results in zip(groups, found, strict=True):
        for position, result in zip(positions, results, strict=True):
            scalars[position] = result
    home = tensors[0].device
    wide = torch.float64 if any(scalar.dtype is torch.float64 for scalar in scalars) else torch.float32
    return torch.stack([scalar.to(home, wide, non_blocking=True) for scalar in scalars])


def _on(device: torch.device, numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return (n,) numbers of the host on a device, without a wait: ``torch.tensor(…, device=…)`` waits for a GPU."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


def _stack(scalars: Sequence[Tensor], home: torch.device) -> Tensor:
    if not scalars:
        return torch.zeros(0, dtype=torch.float64, device=home)
    if len({(scalar.dtype, scalar.device) for scalar in scalars}) == 1:
        return torch.stack(list(scalars)).to(home, torch.float64)
    return torch.stack([scalar.to(home, torch.float64, non_blocking=True) for scalar in scalars])
