"""Look up, at a few updates of a run, who updates what: which weights no optimizer holds, and what it holds instead."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.hooks.guard import Guard
from gradwatch.hooks.optimizers import parameters_of
from gradwatch.hooks.owners import held_by_living_optimizers
from gradwatch.measure.layers import Layers, parameters_by_name
from gradwatch.measure.report import Ownership
from gradwatch.measure.samples import EntrySample
from gradwatch.measure.untrained import are_new_layers
from gradwatch.ranks.shards import local_part
from gradwatch.watcher.reach_survey import ReachSurvey

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
        models: {name: module}, as watched; empty or None for bare tensors.
        guard: takes the faults of following a forward pass.

    Attributes:
        last: what was seen at the last look; None before the first.
    """

    def __init__(self, layers: Layers, models: Mapping[str, nn.Module] | None, guard: Guard) -> None:
        self._layers, self._models = layers, models or {}
        self._names_at_watch = frozenset(parameters_by_name(self._models))
        self._samples: dict[int, EntrySample] = {}  # of the last look, by column
        self._reach = ReachSurvey(layers, self._models, guard)
        self.last: Ownership | None = None

    def release(self) -> None:
        """Hold the model no longer; what was seen stays."""
        self._models, self._samples = {}, {}
        self._reach.release()

    @staticmethod
    def is_due(update: int) -> bool:
        """Return True if ownership is to be looked up at this update."""
        return update in LOOKS

    def newcomers(self, parameters: Iterable[Tensor]) -> list[str]:
        """Return the names of those ``parameters`` that came into the model after it was watched."""
        strange = _ids(parameter for parameter in parameters if self._layers.column(parameter) is None)
        found = [name for name, tensor in parameters_by_name(self._models).items() if id(tensor) in strange]
        left_out = self._names_at_watch - set(self._layers.names)  # by include or exclude
        return [name for name in found if name not in left_out]

    def expect(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Follow the next forward pass, before owners are looked up, if a weight has no gradient now."""
        self._reach.expect(optimizer, parameters)

    def remove(self) -> None:
        """Stop following forward passes."""
        self._reach.remove()

    def look(
        self,
        update: int,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        followed: Sequence[Optimizer],
        *,
        with_unowned: bool,
    ) -> Ownership:
        """Return who updates what. It waits for the device only if a weight seems to belong to nobody.

        Args:
            update: of the optimizer.
            optimizer: the one that is about to update; its gradients are there.
            parameters: all that it updates.
            followed: all optimizers that are watched.
            with_unowned: also look for weights that belong to nobody; not among bare tensors.
        """
        current = parameters_by_name(self._models)
        table = self._layers.tensors
        tensors = [current.get(name, tensor) for name, tensor in zip(self._layers.names, table, strict=True)]
        held = _ids(parameters)
        with_unowned = with_unowned and bool(self._models)
        cut_off, left_out = self._reach.look(update, optimizer, parameters)
        unowned = self._are_unowned(update, tensors, held, followed) if with_unowned else [False] * len(table)
        seen = Ownership(
            held=_row(id(tensor) in held for tensor in table),
            frozen=_row(not tensor.requires_grad for tensor in table),
            unowned=_row(unowned),
            replaced=_row(now is not known for now, known in zip(tensors, table, strict=True)),
            strangers=self._count_strangers(parameters, current.values()),
            others=sum(other is not optimizer for other in followed),
            cut_off=cut_off,
            left_out=left_out,
            unowned_are_new=_are_new(update, tensors, unowned),
        )
        if with_unowned and update >= CONFIRMED:
            self.last = seen
        return seen

    def _count_strangers(self, mine: Iterable[Tensor], current: Iterable[Tensor]) -> int:
        """Return how many of an optimizer's tensors are no parameters of the model and have no gradient."""
        if not self._models:
            return 0
        known = _ids(current) | _ids(self._layers.tensors)
        return sum(id(tensor) not in known and tensor.requires_grad and tensor.grad is None for tensor in mine)

    def _are_unowned(
        self, update: int, tensors: Sequence[Tensor], held: set[int], followed: Sequence[Optimizer]
    ) -> list[bool]:
        """Return which tensors have a gradient, are held by nobody, and have not moved since the last look."""
        held = held | _ids(itertools.chain.from_iterable(map(parameters_of, followed)))
        before = self._samples
        self._samples = {
            column: EntrySample.of(tensor) for column, tensor in enumerate(tensors) if _is_left(tensor, held)
        }
        unmoved = {column for column, now in self._samples.items() if now.equals(before.get(column))}
        if unmoved and update >= CONFIRMED:
            held = held_by_living_optimizers()
        return [column in unmoved and id(tensor) not in held for column, tensor in enumerate(tensors)]


def _are_new(update: int, tensors: Sequence[Tensor], unowned: Sequence[bool]) -> bool:
    """Return True if the weights that belong to nobody are as torch makes them; it waits for the device."""
    left = [tensor for tensor, is_unowned in zip(tensors, unowned, strict=True) if is_unowned and tensor.ndim > 1]
    return update >= CONFIRMED and are_new_layers(map(local_part, left))


def _is_left(tensor: Tensor, held: set[int]) -> bool:
    return tensor.requires_grad and tensor.grad is not None and id(tensor) not in held


def _ids(tensors: Iterable[Tensor]) -> set[int]:
    return {id(tensor) for tensor in tensors}


def _row(flags: Iterable[bool]) -> NDArray[np.bool_]:
    return np.fromiter(flags, dtype=bool)
