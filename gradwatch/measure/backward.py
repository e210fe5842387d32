"""Learn from the backward pass how deep each tensor lies, which losses reach it, and what its gradient was before the
loop changed it.

The hooks are on tensors, never on modules, so that scripting, exporting, pickling and compiling a watched model do what
they always did.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from gradwatch import _torch
from gradwatch.hooks.guard import Guard, observing
from gradwatch.hooks.losses import LossFinder
from gradwatch.hooks.module_calls import anything_is_compiled
from gradwatch.measure import statistics
from gradwatch.measure.layers import Layers

__all__ = ["BackwardPass", "EndMagnitudes"]

RECURRENT_MODULES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


@dataclass(frozen=True)
class EndMagnitudes:
    """Magnitudes of the watched gradients at the end of a backward pass.

    Attributes:
        columns: (n,) the column of each gradient.
        magnitudes: of n gradients, a loss scale still in them.
    """

    columns: NDArray[np.int64]
    magnitudes: statistics.Magnitudes

    def positions(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (P,) the index of each of ``columns`` among these n, −1 where it is missing."""
        places = np.full(1 + max(self.columns.max(initial=-1), columns.max(initial=-1)), -1, dtype=np.int64)
        places[self.columns] = np.arange(len(self.columns))
        return np.where(columns >= 0, places[columns], -1)

    def without(self, scale: Tensor | None) -> statistics.Magnitudes:
        """Return the magnitudes with a loss scale divided out."""
        held = self.magnitudes
        return held if scale is None else statistics.Magnitudes(held.l2 / scale, held.nonfinite, held.total / scale)


class BackwardPass:
    """A listener on gradients: on every watched tensor until the first update, later on few tensors of each optimizer.

    *Depth.* Autograd runs the backward pass of an eager model in the reverse order of its forward pass, so a gradient
    that arrives first belongs nearest the output. A compiled graph delivers its gradients all at once, in an order that
    means nothing: where anything was compiled by then, the order of registration stays.

    *Change.* A change of a gradient in place raises its version. Where one happens between the backward pass and the
    update (by ``clip_grad_norm_``, most often; a ``GradScaler`` raises no version), the update sees only what is left.
    So the first backward passes are measured at their end, and all of them once such a change was seen.

    Args:
        layers: the table to put in order.
        measures_ends: also measure where a backward pass ends. Never done under ``torch.distributed``, which averages
            afterwards.
        losses: told which gradients a backward pass has reached; None where nobody looks for losses.
        guard: takes the faults.

    Attributes:
        guard: as given.
    """

    def __init__(
        self,
        layers: Layers,
        guard: Guard | None = None,
        *,
        measures_ends: bool = False,
        losses: LossFinder | None = None,
    ) -> None:
        self._layers, self.guard, self._losses = layers, guard or Guard(), losses
        self._arrived: dict[int, int] = {}  # column → version of its gradient, in order of first arrival
        self._handles: dict[int, RemovableHandle] = {}
        self._can_measure = self._measures = measures_ends and not _averages_later()
        self._was_changed = False
        self._is_queued = False
        self._at_end: EndMagnitudes | None = None
        for column, tensor in enumerate(layers.tensors):
            if tensor.requires_grad and tensor.is_leaf and not is_lazy(tensor):
                self._handles[column] = tensor.register_post_accumulate_grad_hook(self._hook_of(column))

    def settle(self, columns: Collection[int]) -> bool:
        """Put ``columns`` in order after their first backward pass, and keep hooks on few of them.

        Returns:
            False if no backward pass was seen, because listening began in the midst of a step.
        """
        mine = [column for column in reversed(self._arrived) if column in columns]
        if not mine:
            return False
        if not anything_is_compiled():
            self._layers.sort(mine)  # in the order in which they ran
            self._sort_recurrent(mine)
        kept = set(mine[:1] if self._can_measure else ())
        if self._losses is not None:
            kept |= self._losses.choose(columns, mine)
        for column in set(columns) - kept:
            if column in self._handles:
                self._handles.pop(column).remove()
                self._arrived.pop(column, None)
        return True

    def _sort_recurrent(self, columns: Sequence[int]) -> None:
        """Put the weights of each recurrent module in order of registration: all of them work at every time step."""
        names, owners = self._layers.names, self._layers.owners
        modules: dict[str, list[int]] = {}
        for column in sorted(columns):
            if owners[column] in RECURRENT_MODULES:
                modules.setdefault(names[column].rpartition(".")[0], []).append(column)
        for together in modules.values():
            self._layers.sort(together)

    def before_change(self, columns: Collection[int], *, has_cycled: bool) -> tuple[bool, EndMagnitudes | None]:
        """Return whether gradients of ``columns`` changed since the backward pass, and then their magnitudes there.

        The magnitudes are None where nothing has changed, or nothing was measured: at the first such change. Under
        ``torch.distributed`` averaging over the ranks changes gradients, too, so changes are not looked for.

        Args:
            columns: the watched ones of the optimizer that is about to update.
            has_cycled: this optimizer has updated before, so that every optimizer of the loop had its turn.
        """
        self._is_queued = False  # a backward pass that failed at its end is followed again
        is_changed = self.has_changed(columns)
        at_end = self._at_end if is_changed else None
        self._was_changed = self._was_changed or is_changed
        self._measures = self._can_measure and (self._was_changed or not has_cycled)
        if not self._measures:
            self._at_end = None
        return is_changed, at_end

    def has_changed(self, columns: Collection[int]) -> bool:
        """Return whether gradients of ``columns`` were changed in place since their backward pass."""
        arrived = () if _averages_later() else [column for column in self._arrived if column in columns]
        return any(map(self._has_changed, arrived))

    def _has_changed(self, column: int) -> bool:
        gradient = self._layers.tensors[column].grad
        return gradient is not None and _torch.version_of(gradient) != self._arrived[column]

    def remove(self) -> None:
        """Remove every hook. Calling it again does nothing."""
        while self._handles:
            self._handles.popitem()[1].remove()

    def _hook_of(self, column: int) -> Callable[[Tensor], None]:
        """Return a hook that does not hold this: the garbage collector would not see that it does."""
        known = weakref.ref(self)

        def note(tensor: Tensor) -> None:
            if (listener := known()) is not None:
                listener._arrive(column, tensor)

        return note

    @observing("backward pass: arrival")
    def _arrive(self, column: int, tensor: Tensor) -> None:
        if tensor.grad is not None:
            self._arrived[column] = _torch.version_of(tensor.grad)
        if self._losses is not None:
            self._losses.arrive(column)
        if self._measures and not self._is_queued:
            self._is_queued = True
            _torch.call_after_backward(self._end)

    @observing("backward pass: end")
    def _end(self) -> None:
        """Measure the gradients. Autograd calls this, and nobody there would catch an exception.

        If measuring fails, the figures are those at the update.
        """
        self._at_end = None
        self._at_end = self._measure()
        self._is_queued = False

    def _measure(self) -> EndMagnitudes:
        gradients = [(column, tensor.grad) for column, tensor in enumerate(self._layers.tensors)]
        present = [(column, gradient) for column, gradient in gradients if gradient is not None]
        columns = np.array([column for column, _ in present], dtype=np.int64)
        return EndMagnitudes(columns, statistics.measure([gradient for _, gradient in present]))


def _averages_later() -> bool:
    """Tell whether gradients may be averaged over ranks after the backward pass has delivered them."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
