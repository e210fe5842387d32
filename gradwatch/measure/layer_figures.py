"""Figures of single layers beyond the norms of their gradients, for sampled and logged steps."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradwatch.measure import statistics
from gradwatch.measure.report import Floats
from gradwatch.measure.samples import evenly_spaced
from gradwatch.measure.statistics import Magnitudes

__all__ = [
    "ENTRY_FIGURES",
    "HISTOGRAM_ENTRIES",
    "LayerValues",
    "WatchedGradients",
    "entry_figures",
    "factors_left",
    "histogram_entries",
    "weight_figures",
]

HISTOGRAM_ENTRIES = 4096
"""Entries a tensor from which a histogram is drawn: the share of a bin is then known to about 1 %."""

ENTRY_FIGURES = frozenset({"grad_max", "grad_mean", "grad_std", "grad_zero_fraction"})


@dataclass(frozen=True)
class WatchedGradients:
    """The w watched gradients of a step, as they are now.

    Attributes:
        gradients: w tensors.
        l2: (w,) their norms as reported.
        factors: (w,) by what the tensors differ from what is reported, see ``factors_left``.
    """

    gradients: Sequence[Tensor]
    l2: Tensor
    factors: Tensor


@dataclass(frozen=True)
class LayerValues:
    """One figure of some layers, still on the device. Where a layer has several values, their mean is its figure.

    Attributes:
        columns: n columns of the table; one may come again.
        values: (n,), on the host where they are known there.
        divisors: (n,) by which the values are to be divided; None for 1.
    """

    columns: Sequence[int]
    values: Tensor | Floats
    divisors: Floats | None = None

    def placed(self, arrived: Floats | None, wanted: Sequence[int], size: int) -> Floats | None:
        """Return (size,) over the table, NaN where a layer has no value; None where no wanted layer has one.

        Args:
            arrived: (n,) the values, if they had to come from the device.
            wanted: columns to place; values of others are left out.
            size: columns of the table.
        """
        values = self.values if arrived is None else arrived
        if isinstance(values, Tensor):
            raise TypeError("the values have not arrived on the host")
        values = values if self.divisors is None else values / self.divisors
        columns = np.array(self.columns, dtype=np.int64)
        is_wanted = np.isin(columns, wanted)
        if not is_wanted.any():
            return None
        columns, values = columns[is_wanted], values[is_wanted]
        counts = np.bincount(columns, minlength=size)
        with np.errstate(invalid="ignore"):  # 0/0 is NaN: no value
            return np.bincount(columns, values, minlength=size) / counts


def factors_left(now: Magnitudes, reported: Magnitudes) -> Tensor:
    """Return (n,) the factor between each gradient as it is now and as it is reported.

    It is a loss scale that the gradients still hold, or less than 1 where the loop has clipped them already.
    """
    factors = now.l2.new_ones(())
    if now is not reported:
        factors = torch.where(now.l2 > 0, now.l2 / reported.l2, 1.0)
    if now.scale is not None:
        factors = factors * now.scale
    return factors.expand(now.l2.shape)


def entry_figures(watched: WatchedGradients, wanted: AbstractSet[str]) -> dict[str, Tensor]:
    """Return those of ``ENTRY_FIGURES`` that are ``wanted``, each (w,), in the unit of the reported norms."""
    with_spread = not wanted.isdisjoint(("grad_mean", "grad_std"))
    factors = watched.factors
    found = statistics.entries(watched.gradients, watched.l2 * factors, with_spread=with_spread)
    figures = {
        "grad_max": found.largest / factors,
        "grad_mean": found.mean / factors,
        "grad_std": found.std / factors,
        "grad_zero_fraction": found.zero_fraction,
    }
    return {name: values for name, values in figures.items() if name in wanted}


def weight_figures(weights: Sequence[Tensor], wanted: AbstractSet[str]) -> dict[str, Tensor]:
    """Return ``"weight_norm"`` and ``"weight_std"``, where they are ``wanted``, each (w,)."""
    if wanted.isdisjoint(("weight_norm", "weight_std")):
        return {}
    figures = {"weight_norm": statistics.norms(weights)}
    if "weight_std" in wanted:
        figures["weight_std"] = statistics.entries(weights, figures["weight_norm"]).std
    return {name: values for name, values in figures.items() if name in wanted}


def histogram_entries(tensors: Sequence[Tensor], factors: Tensor | None = None) -> list[Floats]:
    """Return at most ``HISTOGRAM_ENTRIES`` evenly spaced entries of each tensor on the host; waits for the device.

    Args:
        tensors: w tensors.
        factors: (w,) numbers that the entries are divided by.
    """
    parts = [part.float() for part in evenly_spaced(tensors, HISTOGRAM_ENTRIES)]
    if factors is not None:
        parts = [part / factor for part, factor in zip(parts, factors.unbind(), strict=True)]
    return [part.cpu().numpy().copy() for part in parts]
