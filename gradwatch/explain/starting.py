"""Compare weights and biases with where training starts well: a variance that is kept, and biases near 0.

The clues tell values that the run began with from those that training has made, because only the first are a matter of
initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradwatch.explain.clues import Fact
from gradwatch.findings import Clue
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats

__all__ = ["WeightFigures", "bias_facts", "weight_facts"]

FAR_OFF = 3.0  # times the standard deviation that keeps the variance from layer to layer
FAR_OUT = 3.0  # a mean bias beyond it decides by itself where the activation function works
ALIKE = 1e-2  # standard deviation as a share of the root mean square: below it only rounding tells entries apart


@dataclass(frozen=True)
class WeightFigures:
    """Figures of the watched tensors, (P,) each; None where they were not measured.

    Attributes:
        first_norm: L2 norm before any update.
        norm: L2 norm at the latest sample.
        mean: mean of the entries at the latest sample.
    """

    first_norm: Floats | None
    norm: Floats | None
    mean: Floats | None


def weight_facts(layers: Layers, column: int, weights: WeightFigures) -> Iterator[Fact]:
    """Yield what is unusual about the weight at ``column``: entries all alike, or far too small or large."""
    rms, mean = _rms(layers, column, weights.norm), _value(column, weights.mean)
    if not _has_expected_scale(layers, column) or rms is None or mean is None:
        return
    name, std = layers.names[column], math.sqrt(max(rms - mean, 0.0)) * math.sqrt(max(rms + mean, 0.0))
    if std <= ALIKE * rms:
        yield Fact(f"All entries of {name} are {mean:.3g}.", "weights alike")
        return
    kept = (layers.size[column] / layers.tensors[column].shape[0]) ** -0.5  # one over the root of the inputs
    if kept / FAR_OFF <= std <= kept * FAR_OFF:
        return
    first = _rms(layers, column, weights.first_norm)
    is_large = std > kept
    began_so = first is None or (first > kept * FAR_OFF if is_large else first < kept / FAR_OFF)
    then = "" if began_so else f" ({first:.2g} at first)"
    yield Fact(
        f"{name} has standard deviation {std:.2g}{then}, where {kept:.2g} keeps the variance.",
        _clue_of_scale(is_large, began_so),
    )


def bias_facts(layers: Layers, column: int | None, weights: WeightFigures) -> Iterator[Fact]:
    """Yield biases that are far out: the layer's own, and others that began so.

    The bias of the output is left out, unless it is the layer's own, because the output has a unit.
    """
    biases = _biases(layers)
    for bias in biases:
        is_own = column is not None and _module(layers, bias) == _module(layers, column)
        first = _rms(layers, bias, weights.first_norm)
        began_so = is_own if first is None else first > FAR_OUT
        mean = _value(bias, weights.mean) if is_own or (began_so and bias != biases[-1]) else None
        if mean is not None and abs(mean) > FAR_OUT:
            yield _far_out(layers.names[bias], mean, None if began_so else first)


def _has_expected_scale(layers: Layers, column: int) -> bool:
    """Return whether initialisation theory says how large the entries of the tensor at ``column`` should be."""
    return bool(layers.is_weight[column] and layers.size[column] > 1 and layers.owners[column] != "Embedding")


def _biases(layers: Layers) -> list[int]:
    """Return the columns of the biases that have entries, in the layers' order."""
    return [int(c) for c in layers.order if layers.names[c].rpartition(".")[2] == "bias" and layers.size[c]]


def _far_out(name: str, mean: float, first: float | None) -> Fact:
    """Return the fact that a bias is far out; ``first`` is where it began, None if that was far out already."""
    if first is None:
        return Fact(f"{name} is {mean:.3g} on average.", "bias far out")
    return Fact(f"{name} is {mean:.3g} on average ({first:.3g} at first).", "weights grown")


def _clue_of_scale(is_large: bool, began_so: bool) -> Clue | None:
    if is_large:
        return "weights large" if began_so else "weights grown"
    return "weights small" if began_so else None


def _module(layers: Layers, column: int) -> str:
    return layers.names[column].rpartition(".")[0]


def _rms(layers: Layers, column: int, norms: Floats | None) -> float | None:
    """Return the root mean square of a tensor's entries; None where its norm was not measured."""
    norm = _value(column, norms)
    return None if norm is None else float(norm / np.sqrt(layers.size[column]))


def _value(column: int, figures: Floats | None) -> float | None:
    return float(figures[column]) if figures is not None and np.isfinite(figures[column]) else None
