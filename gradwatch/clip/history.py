"""Clip by the run's own history of total norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.clip.policy import (
    EPSILON,
    Policy,
    State,
    all_finite,
    plain_norms,
    refuse_unless_positive,
    scale_by_,
    scale_plainly_,
)
from gradwatch.clip.window import Window
from gradwatch.measure import statistics

__all__ = ["TotalAverages", "auto", "percentile"]


@dataclass
class TotalAverages:
    """The exponential averages of the total norm that ``auto`` remembers, each () float64 on the device.

    Attributes:
        mean, square: of the total norm and of its square, both from 0 on.
        weight: of all that has entered; Adam's bias correction divides by it.
    """

    mean: Tensor | None = None
    square: Tensor | None = None
    weight: Tensor | None = None

    VERSION = 1

    def of(self, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (mean, square, weight) on the device of ``total``; zeros at first."""
        if self.mean is None or self.square is None or self.weight is None:
            self.mean, self.square, self.weight = (torch.zeros_like(total) for _ in range(3))
        return self.mean, self.square, self.weight

    def state(self) -> State:
        """Return copies of the averages by name, and the version; for checkpoints."""
        named = {"mean": self.mean, "square": self.square, "weight": self.weight}
        known = {name: value.clone() for name, value in named.items() if value is not None}
        return {"version": self.VERSION, **known}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: where it is something else.
        """
        names = set(state) - {"version"}
        values = [state.get(name) for name in ("mean", "square", "weight")]
        is_known = state.get("version") == self.VERSION and all(isinstance(value, Tensor) for value in values if names)
        if not is_known or names - {"mean", "square", "weight"}:
            raise ValueError(
                f"expected the averages of clip='auto', version {self.VERSION}, found {sorted(state)} of version "
                f"{state.get('version')!r}. Resume without this state: the averages then begin anew."
            )
        self.mean, self.square, self.weight = (value.clone() if isinstance(value, Tensor) else None for value in values)


def auto(*, z_threshold: float = 2.5, smoothing: float = 0.97, lowest_spread: float = 0.25) -> Policy:
    """Scale down gradients whose total norm is a spike against the run's own recent history.

    Follows ZClip (Kumar et al. 2025, arXiv:2504.02507): with an exponential moving mean μ and deviation σ of the total
    norm (smoothing 0.97) and z = (‖g‖ − μ)/σ, a norm with z > 2.5 is brought down to μ + σ · 2.5²/z: the wilder the
    spike, the less of it is kept. Chosen over a percentile of the whole history (AutoClip, Seetharaman et al. 2020,
    arXiv:2007.14469), which clips nine steps of ten by design and so changes healthy training.

    Two things differ. ZClip lets the clipped norm into its history, by which a lasting rise of ×100 is taken for a
    spike for 8,000 steps (measured, with the σ below); here a spike enters as μ + 2.5·σ: a new level is accepted.
    ZClip leaves its first 25 steps unprotected to learn μ and σ; these averages are corrected for their youth instead,
    as Adam's are, and σ is never below ``lowest_spread``·μ, so that the second step is protected already and a smooth
    run is not clipped for a small wobble. At the first step, and after nothing but gradients of 0, nothing is known and
    nothing is clipped.
    A norm that is NaN or Inf changes neither the gradients nor the history.

    Args:
        z_threshold: from how many deviations on a norm is a spike.
        smoothing: weight of the past in the averages, in (0, 1).
        lowest_spread: least deviation, as a share of the mean.

    Raises:
        ValueError: where an argument is out of range.
    """
    refuse_unless_positive("z_threshold", z_threshold)
    refuse_unless_positive("lowest_spread", lowest_spread)
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing={smoothing!r}: expected a number between 0 and 1.")
    averages = TotalAverages()

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, _: Sequence[Tensor]) -> Tensor:
        total = magnitudes.total
        ceiling, highest = _limits(total, averages, z_threshold, lowest_spread)
        _remember(torch.minimum(total, highest), averages, smoothing)
        if total.is_cpu and not float(ceiling) < float(total) + EPSILON < math.inf:
            return total  # a look costs nothing here, each operation does
        return scale_by_(gradients, magnitudes, ceiling / (total + EPSILON))

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None, _: Sequence[Tensor]) -> None:
        norms = plain_norms(gradients, scale) if norms is None else norms
        if averages.mean is None or not all_finite(norms):
            return
        total = torch.linalg.vector_norm(norms.to(averages.mean))
        ceiling = _limits(total, averages, z_threshold, lowest_spread)[0]
        scale_plainly_(gradients, [total] * len(gradients), ceiling)

    return Policy(
        clip_,
        "auto",
        lambda: auto(z_threshold=z_threshold, smoothing=smoothing, lowest_spread=lowest_spread),
        plain_,
        averages,
    )


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

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, _: Sequence[Tensor]) -> Tensor:
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


def _limits(total: Tensor, averages: TotalAverages, z_threshold: float, lowest_spread: float) -> tuple[Tensor, Tensor]:
    """Return () the norm that ``total`` is brought down to, and the most that enters the averages; Inf: as it is."""
    mean, square, weight = averages.of(total)
    mean = mean / weight  # 0/0 at the first step: NaN compares false, so nothing is clipped
    spread = (square / weight - mean.square()).clamp(min=0).sqrt()
    spread = torch.maximum(spread, lowest_spread * mean)
    z = (total - mean) / spread
    spike = (z > z_threshold) & (mean > 0)  # after zeros alone z is infinite, and the run would be held at 0 for ever
    ceiling = torch.where(spike, mean + spread * z_threshold**2 / z, torch.inf)
    highest = torch.where(spike & torch.isfinite(total), mean + spread * z_threshold, torch.inf)
    return ceiling, highest


def _remember(total: Tensor, averages: TotalAverages, smoothing: float) -> None:
    """Add a finite ``total`` to the averages."""
    known = torch.isfinite(total)
    values = (total, total.square(), torch.ones_like(total))
    for average, value in zip(averages.of(total), values, strict=True):
        average.copy_(torch.where(known, torch.lerp(value, average, smoothing), average))
