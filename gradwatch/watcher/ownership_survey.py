"""Look up, at a few updates of a run, who updates what: which weights no optimizer holds, and what it holds instead."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.hooks.optimizers import parameters_of
from gradwatch.hooks.owners import held_by_living_optimizers
from gradwatch.measure.layers import Layers, parameters_by_name
from gradwatch.measure.report import Ownership
from gradwatch.measure.samples import sample

__all__ = ["LOOKS", "OwnershipSurvey"]

LOOKS = frozenset({10, 20, 30, 60, *(90 * 2**doubling for doubling in range(20))})
"""Updates at which it is looked up. Each look walks over all parameters once, so there are few; the later ones are for
optimizers that are made anew, or models that change, in the midst of a run."""

CONFIRMED = 90
"""The first look at which it counts what other optimizers of the process hold. Finding them takes as long as a garbage
collection."""


class OwnershipSurvey:
    """A look, now and then, at what belongs to whom.

    A weight belongs to nobody if it has a gradient, no optimizer of this process holds it, and it has not changed since
    the last look: some loops, and some optimizers that are none of torch's, update weights by themselves.

    Args:
        layers: the table.
        models: {name: module}, as watched; None for bare tensors, of which nothing is looked up.

    Attributes:
        last: what was seen at the last look; None before the first.
    """

    def __init__(self, layers: Layers, models: Mapping[str, nn.Module] | None) -> None:
        self._layers, self._models = layers, models or {}
        self._samples: dict[int, _Sampled] = {}  # of the last look, by column
        self.last: Ownership | None = None

    def is_due(self, update: int) -> bool:
        """Return True if ownership is to be looked up at this update."""
        return update in LOOKS and bool(self._models)

    def look(
        self, update: int, optimizer: Optimizer, followed: Sequence[Optimizer], *, with_unowned: bool
    ) -> Ownership:
        """Return who updates what. It waits for the device only if a weight seems to belong to nobody.

        Args:
            update: of the optimizer.
            optimizer: the one that is about to update; its gradients are there.
            followed: all optimizers that are watched.
            with_unowned: also look for weights that belong to nobody.
        """
        current = parameters_by_name(self._models)
        table = self._layers.tensors
        tensors = [current.get(name, tensor) for name, tensor in zip(self._layers.names, table, strict=True)]
        mine = parameters_of(optimizer)
        held = _ids(mine)
        seen = Ownership(
            held=_row(id(tensor) in held for tensor in table),
            frozen=_row(not tensor.requires_grad for tensor in table),
            unowned=_row(self._are_unowned(update, tensors, followed) if with_unowned else [False] * len(table)),
            replaced=_row(now is not known for now, known in zip(tensors, table, strict=True)),
            strangers=_count_strangers(mine, _ids(current.values()) | _ids(table)),
            others=sum(other is not optimizer for other in followed),
        )
        if with_unowned and update >= CONFIRMED:
            self.last = seen
        return seen

    def _are_unowned(self, update: int, tensors: Sequence[Tensor], followed: Sequence[Optimizer]) -> list[bool]:
        """Return which tensors have a gradient, are held by nobody, and have not moved since the last look."""
        held = _ids(itertools.chain.from_iterable(map(parameters_of, followed)))
        before = self._samples
        self._samples = {column: _Sampled.of(tensor) for column, tensor in enumerate(tensors) if _is_left(tensor, held)}
        unmoved = {column for column, now in self._samples.items() if now.equals(before.get(column))}
        if unmoved and update >= CONFIRMED:
            held = held_by_living_optimizers()
        return [column in unmoved and id(tensor) not in held for column, tensor in enumerate(tensors)]


class _Sampled(NamedTuple):
    """Some entries of a tensor at one look."""

    tensor: Tensor
    entries: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Sampled:
        return cls(tensor, sample([tensor]))

    def equals(self, before: _Sampled | None) -> bool:
        return before is not None and before.tensor is self.tensor and torch.equal(before.entries, self.entries)


def _is_left(tensor: Tensor, held: set[int]) -> bool:
    return tensor.requires_grad and tensor.grad is not None and id(tensor) not in held


def _count_strangers(mine: Iterable[Tensor], known: set[int]) -> int:
    """Return how many of an optimizer's tensors are no parameters of the model and have no gradient."""
    return sum(id(tensor) not in known and tensor.requires_grad and tensor.grad is None for tensor in mine)


def _ids(tensors: Iterable[Tensor]) -> set[int]:
    return {id(tensor) for tensor in tensors}


def _row(flags: Iterable[bool]) -> NDArray[np.bool_]:
    return np.fromiter(flags, dtype=bool)
