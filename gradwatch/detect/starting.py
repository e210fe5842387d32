"""How far weights and biases are from where training starts well: those that keep the variance, and biases near 0.

Enters: the table of layers, and norms as they were before any update. Leaves: facts, whose clues tell what was so when
the run began from what training has made: that is no matter of initialisation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradwatch.detect.clues import Fact
from gradwatch.findings import Clue
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats

__all__ = ["biases", "facts_of"]

FAR_OFF = 3.0  # times the standard deviation that keeps the variance from layer to layer
FAR_OUT = 3.0  # a mean bias beyond it decides by itself where the activation function works


def facts_of(layers: Layers, column: int | None, first_norms: Floats | None) -> Iterator[Fact]:
    """Of the layer of ``column``, and of biases.

    Args:
        layers: the table.
        column: a layer; None for the whole run, of which nothing is said.
        first_norms: (P,) L2 norms before any update; None where they were not measured.
    """
    if column is None:
        return
    name, tensor = layers.names[column], layers.tensors[column].detach()
    if layers.is_weight[column] and layers.size[column] > 1 and layers.owners[column] != "Embedding":
        std, kept = float(tensor.float().std()), (tensor.numel() / tensor.shape[0]) ** -0.5
        if std == 0:
            yield Fact(f"all entries of {name} are {float(tensor.flatten()[0]):.3g}", "weights alike")
        elif std < kept / FAR_OFF or std > kept * FAR_OFF:
            first = _first_rms(layers, column, first_norms)
            began_so = first is None or (first > kept * FAR_OFF if std > kept else first < kept / FAR_OFF)
            then = "" if began_so else f" ({first:.2g} at first)"
            words = f"{name} has standard deviation {std:.2g}{then}, where {kept:.2g} keeps the variance"
            large: Clue = "weights large" if began_so else "weights grown"
            yield Fact(words, large if std > kept else "weights small" if began_so else None)
    yield from biases(layers, column, first_norms)


def biases(layers: Layers, column: int | None, first_norms: Floats | None) -> Iterator[Fact]:
    """The layer's own where it is far out; others that began so, but for the output's: that has a unit."""
    found = [int(c) for c in layers.order if layers.names[c].rpartition(".")[2] == "bias" and layers.size[c]]
    for bias in found:
        is_own = column is not None and _module(layers, bias) == _module(layers, column)
        first = _first_rms(layers, bias, first_norms)
        began_so = is_own if first is None else first > FAR_OUT
        if not is_own and (not began_so or bias == found[-1]):
            continue
        mean = float(layers.tensors[bias].detach().float().mean())
        if abs(mean) > FAR_OUT:
            then = "" if began_so else f" ({first:.3g} at first)"
            clue: Clue = "bias far out" if began_so else "weights grown"
            yield Fact(f"{layers.names[bias]} is {mean:.3g} on average{then}", clue)


def _module(layers: Layers, column: int) -> str:
    return layers.names[column].rpartition(".")[0]


def _first_rms(layers: Layers, column: int, first_norms: Floats | None) -> float | None:
    """Root mean square of a tensor's entries before any update; None where it was not measured."""
    if first_norms is None or not np.isfinite(first_norms[column]):
        return None
    return float(first_norms[column] / np.sqrt(layers.size[column]))
