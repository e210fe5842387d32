"""Look up, at a few updates of a run, which weights the loss depends on although its gradients do not reach them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.hooks.guard import Guard
from gradwatch.hooks.living_losses import columns_of_living_losses
from gradwatch.measure.layers import Layers
from gradwatch.measure.samples import EntrySample
from gradwatch.measure.untrained import are_untrained
from gradwatch.measure.value_flow import ValueFlow
from gradwatch.ranks.shards import local_part

__all__ = ["CONFIRMED", "ReachSurvey", "Unreached"]

CONFIRMED = 90
"""The first look at which it counts whether a layer was trained before. Seeing that waits for the device."""


class Unreached(NamedTuple):
    """The columns that gradients miss.

    Attributes:
        cut_off: what they compute came back to the loss without a graph.
        left_out: a loss was computed from them, and no backward pass began at it.
    """

    cut_off: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


class ReachSurvey:
    """A look, now and then, at the weights of an optimizer that have no gradient.

    One of them is *cut off* if what it computes came back to the loss without a graph in the forward pass before the
    look (``measure/value_flow.py``), if it has not changed since the last look, as averages and codebooks do, and if it
    is as it was initialised. It is *left out* if a loss was computed from it that no backward pass began at
    (``hooks/living_losses.py``).

    Args:
        layers: the table.
        models: {name: module}, as watched; empty for bare tensors, of which nothing is looked up.
        guard: takes the faults of following a forward pass.
    """

    def __init__(self, layers: Layers, models: Mapping[str, nn.Module], guard: Guard) -> None:
        self._layers = layers
        self._flow = ValueFlow(models, layers, guard)
        self._samples: dict[int, EntrySample] = {}  # of the last look, by column
        self._latest_loss = 0  # sequence number of the last one at the last look

    def expect(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Follow the next forward pass, which is before a look, if a weight has no gradient now."""
        if any(map(_is_idle, parameters)):
            self._flow.begin(id(optimizer))

    def look(self, update: int, optimizer: Optimizer, parameters: Iterable[Tensor]) -> Unreached:
        """Return which weights gradients miss, of the ``parameters`` that ``optimizer`` updates; gradients are there.

        It waits for the device only if there seem to be some. Where nothing has a gradient, nothing is looked up.
        """
        held = self._watched_of(parameters)
        trained = [column for column, tensor in held.items() if tensor.grad is not None]
        idle = {column for column, tensor in held.items() if _is_idle(tensor)}
        lost = idle.intersection(self._flow.take(id(optimizer), trained))
        if not idle or not trained:
            return Unreached()
        left_out, self._latest_loss = columns_of_living_losses(self._layers.column, idle, self._latest_loss)
        unmoved = self._unmoved(held, lost | left_out)
        cut_off = unmoved & lost
        if update >= CONFIRMED and not self._are_untrained(cut_off):
            cut_off = set()
        return Unreached(tuple(sorted(cut_off)), tuple(sorted(unmoved & left_out - cut_off)))

    def remove(self) -> None:
        """Stop following forward passes."""
        self._flow.remove()

    def release(self) -> None:
        """Hold the model no longer."""
        self._flow.release()

    def _watched_of(self, parameters: Iterable[Tensor]) -> dict[int, Tensor]:
        """Return {column: tensor} of those that are watched."""
        columns = ((self._layers.column(tensor), tensor) for tensor in parameters)
        return {column: tensor for column, tensor in columns if column is not None}

    def _unmoved(self, held: Mapping[int, Tensor], suspects: Iterable[int]) -> set[int]:
        """Return which suspects have not changed since the look before."""
        before = {column: self._samples.pop(column, None) for column in held}
        now = {column: EntrySample.of(held[column]) for column in suspects}
        self._samples.update(now)
        return {column for column, sampled in now.items() if sampled.equals(before[column])}

    def _are_untrained(self, columns: Iterable[int]) -> bool:
        """Return True if the layers that ``columns`` belong to are as they were initialised."""
        by_module: dict[str, list[Tensor]] = {}
        for column in columns:
            module = self._layers.names[column].rpartition(".")[0]
            by_module.setdefault(module, []).append(local_part(self._layers.tensors[column]))
        return are_untrained(by_module.values())


def _is_idle(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.grad is None
