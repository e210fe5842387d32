"""Figures of single layers beyond the norms of their gradients, for sampled and logged steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.measure import statistics
from gradwatch.measure.report import Floats
from gradwatch.measure.samples import evenly_spaced
from gradwatch.measure.statistics import Magnitudes

__all__ = [
    "ENTRY_FIGURES",
    "HISTOGRAM_ENTRIES",
    "WatchedGradients",
    "activation_figures",
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


def activation_figures(
    figures: Mapping[str, tuple[list[int], Tensor]], columns: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """Arrange figures of activations by the layers of a step.

    Args:
        figures: name to (n columns, their (n,) values).
        columns: w columns of the table.
        device: where the result is to be.

    Returns:
        Name to (w,); NaN where a layer has no value. A figure of other layers only is left out.
    """
    place_of = {column: place for place, column in enumerate(columns)}
    arranged: dict[str, Tensor] = {}
    for name, (of, values) in figures.items():
        known = [position for position, column in enumerate(of) if column in place_of]
        if not known:
            continue
        row = torch.full((len(place_of),), torch.nan, device=device)
        places = torch.tensor([place_of[of[position]] for position in known], device=device)
        values = values if len(known) == len(of) else values[known]
        arranged[name] = row.index_copy_(0, places, values.to(device, row.dtype))
    return arranged


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
