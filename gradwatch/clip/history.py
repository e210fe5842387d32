"""Follow the total norms of a run, and clip by a percentile of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.clip.policy import (
    EPSILON,
    Policy,
    all_finite,
    plain_norms,
    refuse_unless_positive,
    scale_by_,
    scale_plainly_,
)
from gradwatch.clip.window import Window
from gradwatch.measure import statistics

__all__ = ["LargestLevel", "TotalAverages", "percentile"]


@dataclass
class TotalAverages:
    """The exponential averages of the total norm of a run, each () float64 on the device.

    Attributes:
        mean, square: of the total norm and of its square, both from 0 on.
        weight: of all that has entered; Adam's bias correction divides by it.
    """

    mean: Tensor | None = None
    square: Tensor | None = None
    weight: Tensor | None = None

    def of(self, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (mean, square, weight) on the device of ``total``; zeros at first."""
        if self.mean is None or self.square is None or self.weight is None:
            self.mean, self.square, self.weight = (torch.zeros_like(total) for _ in range(3))
        return self.mean, self.square, self.weight

    def limits(self, total: Tensor, z_threshold: float, lowest_spread: float) -> tuple[Tensor, Tensor]:
        """Return () the norm that ``total`` is brought down to, and the most of it that may enter; Inf: as it is."""
        mean, square, weight = self.of(total)
        mean = mean / weight  # 0/0 at the first step: NaN compares false, so nothing is clipped
        spread = (square / weight - mean.square()).clamp(min=0).sqrt()
        spread = torch.maximum(spread, lowest_spread * mean)
        z = (total - mean) / spread
        spike = (z > z_threshold) & (
            mean > 0
        )  # after zeros alone z is infinite, and the run would be held at 0 for ever
        ceiling = torch.where(spike, mean + spread * z_threshold**2 / z, torch.inf)
        highest = torch.where(spike & torch.isfinite(total), mean + spread * z_threshold, torch.inf)
        return ceiling, highest

    def add(self, total: Tensor, smoothing: float) -> None:
        """Let a finite ``total`` enter; all before weigh ``smoothing`` times what they did."""
        known = torch.isfinite(total)
        values = (total, total.square(), torch.ones_like(total))
        for average, value in zip(self.of(total), values, strict=True):
            average.copy_(torch.where(known, torch.lerp(value, average, smoothing), average))


@dataclass
class LargestLevel:
    """The largest level that the total norm of a run has had, each () float64 on the device.

    The level is the geometric mean of the totals, averaged exponentially. A total enters with at most e times the level
    before it, so that one spike of any size raises it by a tenth at most.

    Attributes:
        mean: of the logarithm, from 0 on.
        weight: of all that has entered; the bias correction divides by it.
        largest: logarithm of the largest level; −Inf before the first.
    """

    mean: Tensor | None = None
    weight: Tensor | None = None
    largest: Tensor | None = None

    def after(self, total: Tensor, smoothing: float) -> Tensor:
        """Let a ``total`` enter that is finite and not 0; return () the largest level so far, 0 before the first."""
        if self.mean is None or self.weight is None or self.largest is None:
            self.mean, self.weight = torch.zeros_like(total), torch.zeros_like(total)
            self.largest = torch.full_like(total, -torch.inf)
        is_known = torch.isfinite(total) & (total > 0)
        most = torch.where(self.weight > 0, self.mean / self.weight + 1, torch.inf)  # 0/0 at the first
        entered = torch.minimum(total.log(), most)
        self.mean = torch.where(is_known, torch.lerp(entered, self.mean, smoothing), self.mean)
        self.weight = torch.where(is_known, smoothing * self.weight + (1 - smoothing), self.weight)
        self.largest = torch.where(is_known, torch.maximum(self.largest, self.mean / self.weight), self.largest)
        return self.largest.exp()


def percentile(percent: float = 10.0, *, window: int = 1000) -> Policy:
    """Scale all gradients down to a percentile of the total norms so far: AutoClip.

    g ← g · min(1, c / (‖G‖ + 1e-6)), where c is the percentile of the totals of the latest steps, this one among them
    (Seetharaman et al. 2020, arXiv:2007.14469, who take all steps). It clips nine steps of ten by design, and so acts
    as a lower learning rate does, too. Totals that are not finite neither scale anything nor count.

    Args:
        percent: of the totals that stay as they are, in (0, 100).
        window: steps that count.

    Raises:
        ValueError: where an argument is out of range.
    """
    if not isinstance(percent, (int, float)) or isinstance(percent, bool) or not 0 < percent < 100:
        raise ValueError(f"percent={percent!r}: expected a number between 0 and 100.")
    refuse_unless_positive("window", window)
    description = f"percentile({percent})"
    totals = Window(int(window), 1, description)

    def ceiling_at(total: Tensor) -> Tensor:
        return torch.nanquantile(totals.rows(total[None])[:, 0], percent / 100)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, *_: object) -> Tensor:
        total = magnitudes.total
        totals.add(total[None])
        if total.is_cpu and not math.isfinite(total):
            return total  # a look costs nothing here
        return scale_by_(gradients, magnitudes, ceiling_at(total) / (total + EPSILON))

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None, _: Sequence[Tensor]) -> None:
        norms = plain_norms(gradients, scale) if norms is None else norms
        if totals.count and all_finite(norms):
            total = torch.linalg.vector_norm(norms, dtype=torch.float64)
            scale_plainly_(gradients, [total] * len(gradients), ceiling_at(total))

    return Policy(clip_, description, lambda: percentile(percent, window=window), plain_, totals)
