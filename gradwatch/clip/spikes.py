"""Leave out updates whose loss or gradient is a spike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.clip.policy import Policy, refuse_unless_positive
from gradwatch.clip.window import Window
from gradwatch.measure import statistics

__all__ = ["skip_spikes"]

_LEAST_SPREAD = 0.01  # of the mean: a loss that stays the same to its last digit has a deviation of 0


def skip_spikes(deviations: float = 6.0, *, window: int = 128) -> Policy:
    """Leave an update out where its loss or its total norm is a spike against the latest steps.

    A figure is a spike where it exceeds mean + deviations · standard deviation of the latest ``window`` steps, this one
    not among them, once half of them are known: the rule of ``SkipStepOptimizer`` in OLMo-core
    (https://github.com/allenai/OLMo-core). A spike that was left out counts in the history, so that a new level is
    accepted after a few steps. One thing differs: the deviation is at least 1 % of the mean, because a loss that stays
    the same to its last digit has none.

    Gradients are not scaled. Without a known loss the norm alone decides, and so it does where every rank has a loss of
    its own. One flag is read from the device at each step; a fused optimizer takes it there, unread. NaN and Inf are no
    spikes: ``on_nonfinite`` decides there.

    Args:
        deviations: from how many standard deviations on a figure is a spike.
        window: steps that count, at least 4.

    Raises:
        ValueError: where an argument is out of range.
    """
    refuse_unless_positive("deviations", deviations)
    refuse_unless_positive("window", window)
    if window < 4:
        raise ValueError(f"window={window!r}: expected at least 4 steps.")
    description = f"skip_spikes({deviations})"
    latest = Window(int(window), 2, description)

    def clip_(_: Sequence[Tensor], magnitudes: statistics.Magnitudes, *__: object) -> Tensor:
        return magnitudes.total  # gradients stay as they are

    def is_spike(total: Tensor, loss: Tensor | float | None) -> Tensor:
        known_loss = torch.nan if loss is None else loss
        if not isinstance(known_loss, Tensor):
            known_loss = torch.full_like(total, known_loss)
        figures = torch.stack([total, known_loss.to(total, non_blocking=True)])
        rows = latest.rows(figures)
        known = torch.isfinite(rows).sum(dim=0)
        mean = rows.nanmean(dim=0)
        spread = ((rows - mean).square().nansum(dim=0) / (known - 1)).sqrt()
        highest = mean + deviations * torch.maximum(spread, _LEAST_SPREAD * mean.abs())
        is_high = torch.isfinite(figures) & (figures > highest) & (known >= len(rows) // 2)
        latest.add(figures)
        return is_high.any()

    return Policy(clip_, description, lambda: skip_spikes(deviations, window=window), memory=latest, is_spike=is_spike)
