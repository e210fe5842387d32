"""Slow, obvious float64 twins of what gradwatch computes in batches, and the tensors that both are tried on.

The twins take and return Python floats, and use nothing of gradwatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers every time; no imaginary parts."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def sparse() -> Tensor:
    """With one place stored twice, as an embedding's gradient has it."""
    entries = torch.tensor([3.0, 4.0, 2.0])
    return torch.sparse_coo_tensor([[0, 4, 0], [1, 2, 1]], entries, (5, 3), check_invariants=True)


def finite_cases() -> dict[str, list[Tensor]]:
    """Lists of tensors by what is remarkable in them; new ones at each call, since clipping writes to them."""
    return {
        **{str(dtype).removeprefix("torch."): [randn(7, 5, dtype=dtype), randn(300, dtype=dtype)] for dtype in DTYPES},
        "0-dim": [torch.tensor(-3.0), torch.tensor(2.0, dtype=torch.float16)],
        "empty": [torch.empty(0), torch.empty(3, 0, dtype=torch.float64)],
        "empty beside full": [torch.empty(0), randn(4)],
        "zeros": [torch.zeros(6), torch.tensor([0.0, 1.0, 0.0, -2.0])],
        "non-contiguous": [randn(6, 4).T, randn(20)[::3]],
        "mixed": [randn(9), randn(8, dtype=torch.float16), randn(4, 4, dtype=torch.float64), torch.tensor(1.0)],
        "sparse": [sparse(), randn(2)],
        "sparse, coalesced": [sparse().coalesce()],
        "conjugated": [(randn(5) * (1 + 2j)).conj()],
        "largest of float16": [torch.full((9,), 65504.0, dtype=torch.float16)],
    }


def values(tensor: Tensor) -> list[float]:
    """Every entry: of a sparse tensor the stored ones, of a complex one real and imaginary parts."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    numbers = tensor.detach().flatten().tolist()
    return [x for number in numbers for x in ([number.real, number.imag] if tensor.is_complex() else [number])]


def l2_norm(entries: Sequence[float]) -> float:
    squares = 0.0
    for entry in entries:
        squares += entry * entry
    return math.sqrt(squares)


def total_norm(tensors: Sequence[Sequence[float]]) -> float:
    return l2_norm([entry for entries in tensors for entry in entries])


def nonfinite_count(entries: Sequence[float]) -> int:
    count = 0
    for entry in entries:
        count += not math.isfinite(entry)
    return count


def largest(entries: Sequence[float]) -> float:
    if not entries or any(math.isnan(entry) for entry in entries):
        return math.nan
    return max(abs(entry) for entry in entries)


def mean(entries: Sequence[float]) -> float:
    return sum(entries) / len(entries) if entries else math.nan


def std(entries: Sequence[float]) -> float:
    """With Bessel's correction; 0 for a single entry."""
    if not entries:
        return math.nan
    middle = mean(entries)
    squares = sum((entry - middle) * (entry - middle) for entry in entries)
    return math.sqrt(squares / max(1, len(entries) - 1))


def zero_fraction(entries: Sequence[float]) -> float:
    return sum(entry == 0 for entry in entries) / len(entries) if entries else math.nan


def relative_change(before: Sequence[float], after: Sequence[float]) -> float:
    size = l2_norm(before)
    return l2_norm([new - old for old, new in zip(before, after, strict=True)]) / size if size else math.nan


def norms_before_change(now: Sequence[float], at_end: Sequence[float], positions: Sequence[int]) -> list[float]:
    """The norms of P gradients before the loop changed them; ``positions`` are −1 where ``at_end`` has none."""
    before = [at_end[position] for position in positions if position >= 0]
    after = [norm for norm, position in zip(now, positions, strict=True) if position >= 0]
    ratio = l2_norm(before) / l2_norm(after)
    halvings = math.log2(ratio)
    if abs(halvings - round(halvings)) < 1e-5:  # a loss scale was divided out
        return list(now)
    return [at_end[position] if position >= 0 else norm * ratio for norm, position in zip(now, positions, strict=True)]


def root_mean_square(entries: Sequence[float]) -> float:
    return l2_norm(entries) / math.sqrt(len(entries))


def saturated_share(slopes: Sequence[float], steepest: float) -> float:
    """The share of entries at which a squashing function has less than a twentieth of its largest slope."""
    return sum(slope < 0.05 * steepest for slope in slopes) / len(slopes)


def dead_share(samples: Sequence[Sequence[Sequence[float]]]) -> float:
    """The share of units whose slope was at most 0.001 on every row of each of the last five samples.

    Args:
        samples: absolute slopes by sample, row and unit.
    """
    if len(samples) < 5:
        return 0.0
    rows = [row for sample in samples[-5:] for row in sample]
    units = list(zip(*rows, strict=True))
    return sum(max(unit) <= 1e-3 for unit in units) / len(units)


def clip_by_norm(tensors: Sequence[Sequence[float]], max_norm: float) -> list[list[float]]:
    total = total_norm(tensors)
    scale = min(1.0, max_norm / (total + EPSILON)) if math.isfinite(total) else 1.0
    return [[entry * scale for entry in entries] for entries in tensors]


def clip_by_value(tensors: Sequence[Sequence[float]], limit: float) -> list[list[float]]:
    if not math.isfinite(total_norm(tensors)):
        return [list(entries) for entries in tensors]
    return [[min(max(entry, -limit), limit) for entry in entries] for entries in tensors]


def clip_by_layer_norm(tensors: Sequence[Sequence[float]], max_norm: float) -> list[list[float]]:
    if not math.isfinite(total_norm(tensors)):
        return [list(entries) for entries in tensors]
    return [clip_by_norm([entries], max_norm)[0] for entries in tensors]


class Auto:
    """``clip.auto`` as its docstring has it, with the whole history kept: each norm weighs less with its age."""

    def __init__(self, z_threshold: float = 2.5, smoothing: float = 0.97, lowest_spread: float = 0.25) -> None:
        self.z_threshold, self.smoothing, self.lowest_spread = z_threshold, smoothing, lowest_spread
        self.history: list[float] = []

    def clip(self, total: float) -> float:
        """The norm that ``total`` is brought down to."""
        if not math.isfinite(total):
            return total
        ceiling, highest = self._limits(total)
        self.history.append(min(total, highest))
        return total * min(1.0, ceiling / (total + EPSILON))

    def _limits(self, total: float) -> tuple[float, float]:
        if not any(self.history):
            return math.inf, math.inf
        level = self._average(self.history)
        variance = self._average([(norm - level) ** 2 for norm in self.history])
        spread = max(math.sqrt(variance), self.lowest_spread * level)
        z = (total - level) / spread
        if z <= self.z_threshold:
            return math.inf, math.inf
        return level + spread * self.z_threshold**2 / z, level + spread * self.z_threshold

    def _average(self, norms: Sequence[float]) -> float:
        weights = [self.smoothing**age for age in reversed(range(len(norms)))]
        return sum(weight * norm for weight, norm in zip(weights, norms, strict=True)) / sum(weights)


def clip_units(
    rows: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], clipping: float
) -> list[list[float]]:
    """``clip.adaptive`` on a matrix of gradients and its weights, row by row."""
    clipped = []
    for entries, own in zip(rows, weights, strict=True):
        most = clipping * max(l2_norm(own), 1e-3)
        factor = min(1.0, most / max(l2_norm(entries), 1e-6))
        clipped.append([entry * factor for entry in entries])
    return clipped


def shorten_update(before: Sequence[float], after: Sequence[float], max_ratio: float) -> list[float]:
    """``clip.by_update`` on the entries of one tensor."""
    change = [new - old for old, new in zip(before, after, strict=True)]
    most = max_ratio * max(l2_norm(before), 0.01 * math.sqrt(len(before)))
    if not math.isfinite(l2_norm(change)) or l2_norm(change) <= most:
        return list(after)
    return [old + entry * most / l2_norm(change) for old, entry in zip(before, change, strict=True)]


class Percentile:
    """``clip.percentile`` as its docstring has it."""

    def __init__(self, percent: float, window: int) -> None:
        self.percent, self.window = percent, window
        self.history: list[float] = []

    def clip(self, total: float) -> float:
        """The norm that ``total`` is brought down to."""
        self.history.append(total)
        known = sorted(norm for norm in self.history[-self.window :] if math.isfinite(norm))
        if not math.isfinite(total):
            return total
        place = (len(known) - 1) * self.percent / 100
        low, high = known[math.floor(place)], known[math.ceil(place)]
        ceiling = low + (high - low) * (place - math.floor(place))
        return total * min(1.0, ceiling / (total + EPSILON))


class SkipSpikes:
    """``clip.skip_spikes`` as its docstring has it."""

    def __init__(self, deviations: float, window: int) -> None:
        self.deviations, self.window = deviations, window
        self.steps: list[tuple[float, ...]] = []

    def is_spike(self, *figures: float) -> bool:
        """Whether the update of these figures is left out."""
        latest = self.steps[-self.window :]
        spikes = [self._is_high(figure, [step[place] for step in latest]) for place, figure in enumerate(figures)]
        self.steps.append(figures)
        return any(spikes)

    def _is_high(self, figure: float, earlier: Sequence[float]) -> bool:
        known = [each for each in earlier if math.isfinite(each)]
        if len(known) < self.window // 2 or not math.isfinite(figure):
            return False
        mean = sum(known) / len(known)
        deviation = math.sqrt(sum((each - mean) ** 2 for each in known) / (len(known) - 1))
        return figure > mean + self.deviations * max(deviation, 0.01 * abs(mean))
