"""Put figures of the whole together from figures of the part that each rank holds.

Each rank turns its own figures into rows of numbers that can be added up (``ranks/reduction.py``): squares of norms,
counts, sums. From the sums of all ranks every rank then computes the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradwatch.measure import statistics
from gradwatch.measure.samples import WeightSample, sample_sums, update_sums
from gradwatch.measure.statistics import Magnitudes

__all__ = [
    "GRADIENT_ROWS",
    "LAYER_ROWS",
    "UPDATE_ROWS",
    "gradient_rows",
    "layer_figures",
    "layer_rows",
    "update_ratios_of",
    "update_rows",
    "whole_magnitudes",
]

GRADIENT_ROWS = 4
"""Rows of every step: squares and NaN or Inf entries of the gradients, now and at the end of the backward pass."""

UPDATE_ROWS = 2
"""Rows about the latest sampled update: squares of sampled weights, and of how far it moved them."""

LAYER_ROWS = 8
"""Rows of sampled, logged and sick steps: entries, sum and zeros of gradients; entries, squares, sum, sum as sampled,
and NaN or Inf entries of weights."""


def gradient_rows(now: Magnitudes, at_end: Magnitudes | None, positions: Tensor | None) -> Tensor:
    """Return (``GRADIENT_ROWS``, N) float64 of this rank's gradients.

    Args:
        now: magnitudes of N gradients.
        at_end: magnitudes of n gradients at the end of the backward pass; None where they are the same.
        positions: (N,) the index of each of N among these n, −1 where it is missing.
    """
    rows = torch.zeros(GRADIENT_ROWS, len(now.l2), dtype=torch.float64, device=now.l2.device)
    rows[0], rows[1] = now.l2.double().square(), now.nonfinite
    if at_end is not None and positions is not None:
        known = positions >= 0
        rows[2] = torch.where(known, at_end.l2[positions.clamp(min=0)].double().square(), 0.0)
        rows[3] = torch.where(known, at_end.nonfinite[positions.clamp(min=0)], 0)
    return rows


def whole_magnitudes(squares: Tensor, nonfinite: Tensor, like: Magnitudes) -> Magnitudes:
    """Return the magnitudes of N gradients from (N,) sums over all ranks; ``like`` are those of this rank's parts."""
    total = squares.sum().sqrt().to(like.total.dtype)
    return Magnitudes(
        squares.sqrt().to(like.l2.dtype), nonfinite.round().long(), total, like.scale, like.groups, of_whole=True
    )


def update_rows(before: WeightSample) -> Tensor:
    """Return (``UPDATE_ROWS``, w) of this rank's parts, of the update that was made since ``before`` was taken."""
    return torch.stack(update_sums(before)).double()


def update_ratios_of(rows: Tensor) -> Tensor:
    """Return (w,) ‖Δw‖/‖w‖ from the sums of ``update_rows`` over all ranks; NaN where it was not measured."""
    size, change = rows
    return torch.where(size > 0, (change / size).sqrt(), torch.nan)


def layer_rows(
    gradients: Sequence[Tensor],
    factors: Tensor,
    weights: Sequence[Tensor],
    before: WeightSample | None,
    corrupt: NDArray[np.int64] | None,
) -> tuple[Tensor, Tensor]:
    """Return (``LAYER_ROWS``, w) float64 to be added up, and (w,) float64 whose largest is wanted.

    Args:
        gradients: w parts.
        factors: (w,) by what they differ from what is reported.
        weights: w parts.
        before: a sample of the weights; None where none was taken.
        corrupt: (w,) NaN or Inf entries of the weights; None where nobody counted them.
    """
    home = factors.device
    entries = statistics.entries(gradients, statistics.norms(gradients).to(home))
    size = _sizes(gradients, home)
    norms = statistics.norms(weights).to(home)
    of_weights = statistics.entries(weights, norms)
    weight_size = _sizes(weights, home)
    sampled_sum = torch.zeros_like(size) if before is None else sample_sums(before).to(size)
    rows = torch.stack(
        [
            size,
            _product(entries.mean, size) / factors,
            _product(entries.zero_fraction, size),
            weight_size,
            norms.double().square(),
            _product(of_weights.mean, weight_size),
            sampled_sum,
            torch.zeros_like(size) if corrupt is None else torch.from_numpy(corrupt).to(size, non_blocking=True),
        ]
    )
    return rows, torch.where(size > 0, entries.largest / factors, 0.0)


def layer_figures(rows: Tensor, largest: Tensor, l2: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
    """Return {name: (w,)} from the sums of ``layer_rows`` over all ranks, and (w,) NaN or Inf entries of the weights.

    Figures of empty layers are NaN.

    Args:
        rows, largest: over all ranks.
        l2: (w,) the norms of the gradients as reported.
    """
    size, total, zeros, weight_size, weight_squares, weight_total, sampled_sum, corrupt = rows
    mean, std = _mean_and_std(size, total, l2.double().square())
    _, weight_std = _mean_and_std(weight_size, weight_total, weight_squares)
    figures = {
        "grad_max": torch.where(size > 0, largest, torch.nan),
        "grad_mean": mean,
        "grad_std": std,
        "grad_zero_fraction": zeros / size,
        "weight_norm": weight_squares.sqrt(),
        "weight_std": weight_std,
        "weight_mean": sampled_sum / weight_size,
    }
    return figures, corrupt


def _mean_and_std(size: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    mean = total / size
    variance = (squares - size * mean.square()) / (size - 1).clamp(min=1)
    return mean, variance.clamp(min=0).sqrt()


def _sizes(tensors: Sequence[Tensor], home: torch.device) -> Tensor:
    sizes = [tensor.numel() for tensor in statistics.all_plain(tensors)]
    return torch.tensor(sizes, dtype=torch.float64, device="cpu").to(home, non_blocking=True)


def _product(share: Tensor, size: Tensor) -> Tensor:
    return torch.where(size > 0, share * size, 0.0)
