"""Find out from the graph of a loss which tensors lie after which: whose gradients pass through whose operations.

Gradients fade along a path: from the loss through the operation of one weight, then through that of the next. Two
networks that only meet in the loss (actor and critic, two towers, two heads) lie beside each other, in whatever order
their gradients arrive.

A tensor is *used* where its own branch of the graph, which holds nothing but tensors of the model (a transpose, a cast,
a weight normalisation), joins another branch. All that this operation leads to lies before the tensor. An operation
that adds, stacks or chooses passes a gradient on as it is: nothing lies before a tensor that is only added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradwatch.hooks.graph import LEAF, inputs_first, operation_of
from gradwatch.measure.layers import Layers

__all__ = ["PathFinder"]

MOST_COLUMNS = 2_000
"""Tensors of a table whose paths are kept: a bool for each pair of them takes 4 MB."""
MOST_IN_VAIN = 3
"""Graphs that are walked although they lead to nothing new: some tensors of a model are never used."""

PASSES_ON = {"add", "sub", "rsub", "cat", "stack", "where", "minimum", "maximum"}
MEETS_DATA = {"convolution", "embedding", "embeddingbag", "index", "indexselect", "gather"}
"""Operations that one operand of is data even where the graph shows none of it, because it needs no gradient."""
PRODUCTS = {"addmm", "mm", "bmm", "baddbmm", "addbmm", "linear"}
"""Operations that meet data where one of their operands is not in the graph."""


class _Branch(NamedTuple):
    """The part of a graph upstream of one node: the tensors in it, as bits, and whether there is data in it."""

    leads_to: int
    has_data: bool


class PathFinder:
    """The paths of a model, gathered from the graphs of its first losses.

    Args:
        layers: the table; ``connect`` is called on it whenever more is known.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._chances = MOST_IN_VAIN if len(layers) <= MOST_COLUMNS else 0
        self._before = [0] * len(layers)  # for each column, bits of the columns before it
        self._met = 0  # bits of the columns that any graph has led to
        self._awaited = sum(1 << column for column, tensor in enumerate(layers.tensors) if tensor.requires_grad)

    def observe_loss(self, loss: Tensor) -> None:
        """Walk the graph of a loss before its backward pass, as long as there are tensors that no graph has led to."""
        if self._chances <= 0 or loss.grad_fn is None or not self._awaited & ~self._met:
            return
        nodes, met = inputs_first(loss.grad_fn), self._met
        if nodes is not None:
            self._follow(nodes)
        if self._met != met:
            self._layers.connect(*self._as_arrays())
        else:
            self._chances -= 1

    def _follow(self, nodes: Sequence[Any]) -> None:
        """Take in the nodes of one graph, each of which comes after all those that it leads to."""
        branches: dict[Any, _Branch] = {}
        for node in nodes:
            inputs = [following for following, _ in node.next_functions]
            parts = [branches[each] for each in inputs if each is not None]
            branches[node] = branch = self._branch(node, inputs, parts)
            if operation_of(node) not in PASSES_ON:
                self._use(_union(part.leads_to for part in parts if not part.has_data), branch.leads_to)
        self._met |= branches[nodes[-1]].leads_to

    def _branch(self, node: Any, inputs: Sequence[Any], parts: Sequence[_Branch]) -> _Branch:
        leads_to = self._own(node) | _union(part.leads_to for part in parts)
        return _Branch(leads_to, _meets_data(operation_of(node), inputs) or any(part.has_data for part in parts))

    def _use(self, used: int, leads_to: int) -> None:
        """Note that an operation uses the columns ``used`` and leads to ``leads_to``."""
        while used:
            bit = used & -used
            used ^= bit
            self._before[bit.bit_length() - 1] |= leads_to & ~bit

    def _own(self, node: Any) -> int:
        """Return the bit of the tensor whose gradient a leaf of the graph takes; 0 for any other node."""
        column = self._layers.column(node.variable) if node.name() == LEAF else None
        return 0 if column is None else 1 << column

    def _as_arrays(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (P, P), whether the second column lies after the first; and (P,), whether a graph has led to it."""
        count = len(self._layers)
        before = np.stack([_bits(each, count) for each in self._before])
        return np.ascontiguousarray(before.T), _bits(self._met, count)


def _meets_data(operation: str, inputs: Sequence[Any]) -> bool:
    """Return True if an operation takes data that no branch of the graph shows."""
    return operation in MEETS_DATA or (operation in PRODUCTS and None in inputs)


def _union(bits: Iterable[int]) -> int:
    """Return the union of sets of bits."""
    union = 0
    for each in bits:
        union |= each
    return union


def _bits(bits: int, count: int) -> NDArray[np.bool_]:
    """Return (count,) the lowest bits of a number."""
    packed = np.frombuffer(bits.to_bytes(-(-count // 8), "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").astype(bool)
