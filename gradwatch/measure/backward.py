"""Learn from the backward pass how deep each tensor lies, which losses reach it, and what its gradient was before the
loop changed it.

The hooks are on tensors, never on modules, so that scripting, exporting, pickling and compiling a watched model do what
they always did.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
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
from gradwatch.ranks.group import has_process_group
from gradwatch.ranks.shards import is_distributed, local_part

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

    *Process groups.* Ranks average gradients once the backward pass has delivered them, in callbacks of their own that
    ``backward()`` still waits for. So under ``torch.distributed`` the end is where that call returns (``end_call``). A
    loop that averages by itself does so later; what it changes is no clipping, see ``statistics.undo_change``.

    Args:
        layers: the table to put in order.
        measures_ends: also measure where a backward pass ends.
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
        self._can_measure = self._measures = measures_ends
        self._left: dict[int, float] = {}  # column → version of its gradient where a call of ``backward()`` left it
        self._listened = set(range(len(layers)))  # columns of which that is asked
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
            return self._settle_unordered(columns)
        if not anything_is_compiled():
            self._layers.sort(mine)  # in the order in which they ran
            self._sort_recurrent(mine)
        kept = set(mine[:1] if self._can_measure else ())
        self._listened -= set(columns) - kept
        if self._losses is not None:
            kept |= self._losses.choose(columns, mine)
        for column in set(columns) - kept:
            if column in self._handles:
                self._handles.pop(column).remove()
                self._arrived.pop(column, None)
        return True

    def _settle_unordered(self, columns: Collection[int]) -> bool:
        """Keep one of ``columns`` whose gradients reach no hook, as those of FSDP2; return False where there is none.

        Their order stays that of registration.
        """
        mine = [column for column in self._left if column in columns]
        largest = sorted(mine, key=lambda column: -local_part(self._layers.tensors[column]).numel())
        self._listened -= set(columns) - set(largest[:1])
        return bool(mine)

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

        The magnitudes are None where nothing has changed, or nothing was measured: at the first such change.

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
        left: Mapping[int, float] = self._left if has_process_group() else self._arrived
        return any(
            self._version_of(column) not in (None, version) for column, version in left.items() if column in columns
        )

    def _version_of(self, column: int) -> float | None:
        """Return what a change of a gradient in place changes; None where there is none.

        Operations on a ``DTensor`` raise no version. There it is the norm of the part that this rank holds, and off the
        CPU, where one would wait for that, nothing: such changes are not seen.
        """
        gradient = self._layers.tensors[column].grad
        if gradient is None or not is_distributed(gradient):
            return None if gradient is None else _torch.version_of(gradient)
        part = local_part(gradient)
        return float(torch.nan_to_num(torch.linalg.vector_norm(part))) if part.is_cpu else 0.0

    @observing("backward pass: end")
    def end_call(self) -> None:
        """Take in that a call of ``backward()`` has returned, under ``torch.distributed``: all is averaged by now."""
        if not self._can_measure or not has_process_group():
            return
        known = {column: self._version_of(column) for column in sorted(self._listened)}
        self._left = {column: version for column, version in known.items() if version is not None}
        self._at_end = None
        if self._measures:
            self._at_end = self._measure()

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
        if self._measures and not self._is_queued and not has_process_group():
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
        return EndMagnitudes(columns, statistics.measure([local_part(gradient) for _, gradient in present]))
