"""Tell whether the numbers that a run reads are raw: inputs or targets whose size is far from 1.

What it measures, from figures that are there anyway:

- The inputs: the first module that reads numbers, if it is linear or a convolution, returns W·x + b. For weights of
  random signs the mean square of what it returns is (‖W‖² times that of x + ‖b‖²) ÷ rows. Before any activation was
  measured, the gradients of the first step do: that of W is that of b times x, summed over the batch. Where a
  normalisation follows, that of b is nothing but rounding, and tells nothing; so the layer after it must be given large
  numbers, too.
- The targets: the root mean square of what the loss compares the outputs with (``LossGraph.targets``).

A healthy run may read raw numbers, too, with a rate small enough. So this joins the cause of a finding only, and only
where the size is beyond any that a sane preparation leaves: pixels from 0 to 255 are raw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from gradwatch.explain.clues import Fact, module_in_words
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats

__all__ = ["grown_along_depth", "raw_inputs", "raw_targets"]

RAW_INPUTS = 30.0  # root mean square of inputs: the curvature of their weights grows with its square
RAW_TARGETS = 100.0  # of targets; an output of ordinary weights begins near 1
LINEAR = re.compile(r"Linear|Conv[123]d")
GREW = 1e3  # times what the first layer is given: healthy networks reach 52
ORDINARY_GAIN = 1.6  # he has 1.4, which keeps a stack of ReLUs as it is
WITH_ROWS = frozenset({"Linear"})
RANDOM_SIGNS = 0.5  # largest mean of the weights, as a share of their root mean square
MADE_BY_TARGETS = 10.0  # times the size of the outputs: a difference that large is the targets'


def raw_inputs(layers: Layers, first: Mapping[str, Floats]) -> Iterator[Fact]:
    """Yield that the first layer is given large numbers.

    Args:
        layers: the table.
        first: figures of the first sample, before any update.
    """
    column = _first_weight(layers)
    if column is None or not LINEAR.fullmatch(layers.owners[column]) or _is_fed_by_another(layers, column):
        return
    size = _size_by_outputs(layers, first, column)
    if size is None:
        size = _size_by_two_layers(layers, first, column)
    if size is not None and size > RAW_INPUTS:
        name = module_in_words(layers.names[int(layers.order[0])].rpartition(".")[0], begins=True)
        yield Fact(f"{name} is given raw numbers: their root mean square is about {size:.2g}.", "raw inputs")


def raw_targets(layers: Layers, first: Mapping[str, Floats], losses: LossGraph) -> Iterator[Fact]:
    """Yield that the loss compares the outputs with large numbers."""
    size = losses.target_size()
    if size is None or not RAW_TARGETS < size < math.inf:
        return
    if losses.are_targets:
        yield Fact(f"The targets are raw numbers: their root mean square is {size:.2g}.", "raw targets")
        return
    outputs = _figure(first, "activation_rms", _last_weight(layers))
    if outputs is None:  # weights of ordinary size make ordinary outputs of ordinary inputs
        outputs = (
            1.0
            if first and _largest_gain(layers, first) < ORDINARY_GAIN and not any(raw_inputs(layers, first))
            else size
        )
    if size > MADE_BY_TARGETS * outputs:
        yield Fact(f"The targets are raw numbers: the first outputs lay {size:.2g} away from them.", "raw targets")


def grown_along_depth(layers: Layers, first: Mapping[str, Floats]) -> Iterator[Fact]:
    """Yield that what the layers are given grew along depth before any update.

    What a layer with a bias is given follows from its gradients, as above.
    """
    begin, end = _first_weight(layers), _last_weight(layers)
    if begin is None or begin == end or not {layers.owners[begin], layers.owners[end]} <= WITH_ROWS:
        return
    read, reached = (_size_by_gradients(layers, first, column) for column in (begin, end))
    if read and reached and GREW * max(read, 1.0) < reached < math.inf:
        start, last = (module_in_words(layers.names[column].rpartition(".")[0]) for column in (begin, end))
        words = f"Before any update, what {last} is given was {reached / read:.2g} times as large as what {start} is"
        if _largest_gain(layers, first) < ORDINARY_GAIN:
            yield Fact(f"{words}, though every weight is of ordinary size: branches add up.", "branches add up")
        else:
            yield Fact(f"{words}: it grows along depth.", "grows along depth")


def _largest_gain(layers: Layers, first: Mapping[str, Floats]) -> float:
    """Return the largest standard deviation of a weight times the square root of its inputs."""
    norms = first["weight_norm"]
    rows = np.array([tensor.shape[0] if tensor.ndim else 1 for tensor in layers.tensors])
    with np.errstate(invalid="ignore"):
        return float(np.nanmax(np.where(layers.is_weight, norms / np.sqrt(rows), np.nan)))


def _size_by_outputs(layers: Layers, first: Mapping[str, Floats], column: int) -> float | None:
    norm, mean = _figure(first, "weight_norm", column), _figure(first, "weight_mean", column)
    returned = _figure(first, "activation_rms", column)
    if not norm or mean is None or returned is None:
        return None
    if abs(mean) > RANDOM_SIGNS * norm / math.sqrt(layers.size[column]):
        return None
    bias = _bias_of(layers, column)
    of_bias = (_figure(first, "weight_norm", bias) if bias is not None else None) or 0.0
    of_inputs = returned**2 * layers.tensors[column].shape[0] - of_bias**2
    return math.sqrt(max(of_inputs, 0.0)) / norm


def _size_by_two_layers(layers: Layers, first: Mapping[str, Floats], column: int) -> float | None:
    """Return the size of the inputs by gradients, where the next layer is given large numbers, too.

    One bias alone may get little gradient for another reason.
    """
    module = layers.names[column].rpartition(".")[0]
    later = (int(c) for c in layers.order if layers.is_weight[c] and layers.names[c].rpartition(".")[0] != module)
    following = next(later, None)
    if following is None or layers.owners[following] not in WITH_ROWS:
        return None
    handed_on = _size_by_gradients(layers, first, following)
    return _size_by_gradients(layers, first, column) if handed_on and handed_on > RAW_INPUTS else None


def _size_by_gradients(layers: Layers, first: Mapping[str, Floats], column: int) -> float | None:
    module, bias = layers.names[column].rpartition(".")[0], _bias_of(layers, column)
    later = [c for c in layers.order if layers.names[c].rpartition(".")[0] != module]
    if bias is None or (later and "Norm" in layers.owners[later[0]]):
        return None
    of_weight, of_bias = _figure(first, "grad_norm", column), _figure(first, "grad_norm", bias)
    if of_weight is None or not of_bias:
        return None
    return of_weight / of_bias / math.sqrt(layers.size[column] / layers.tensors[column].shape[0])


def _bias_of(layers: Layers, column: int) -> int | None:
    """Return the bias of the module of a weight; None where it has none."""
    module = layers.names[column].rpartition(".")[0]
    bias = f"{module}.bias" if module else "bias"
    return layers.names.index(bias) if bias in layers.names else None


def _first_weight(layers: Layers) -> int | None:
    """Return the weight of the module that comes first; None where that has none."""
    if not len(layers):
        return None
    module = layers.names[int(layers.order[0])].rpartition(".")[0]
    inside = (int(c) for c in layers.order if layers.names[c].rpartition(".")[0] == module)
    return next((column for column in inside if layers.is_weight[column]), None)


def _is_fed_by_another(layers: Layers, column: int) -> bool:
    """Return True if another weight lies before this one: a recurrent matrix is first called with a state of zeros."""
    if layers.after is None:
        return False
    others = layers.is_weight & (np.arange(len(layers)) != column)
    return bool((layers.after[:, column] & others).any())


def _last_weight(layers: Layers) -> int:
    return int([column for column in layers.order if layers.is_weight[column]][-1]) if layers.is_weight.any() else -1


def _figure(figures: Mapping[str, Floats], name: str, column: int) -> float | None:
    values = figures.get(name)
    return float(values[column]) if values is not None and len(values) and np.isfinite(values[column]) else None
