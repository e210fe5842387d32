"""Run a step with a NaN or Inf again, to name the module that made it and the operation.

The step runs before its update is made, on a replica of the model, which shares the weights, has buffers and gradients
of its own, has none of the hooks of others and is not compiled. Where torch has written all that runs, this happens in
this process. Any other step runs in a forked child, so that it changes nothing of the run: whatever its forward pass
reads or counts (a generator, an iterator, a queue, a momentum encoder) is read and counted in the copy.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gradwatch.explain.foreign_state import is_free_of_foreign_state
from gradwatch.explain.forked_child import ChildLostError, can_fork, in_child
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.observed import ObservedOrigin
from gradwatch.explain.origin import conclusion
from gradwatch.explain.recorded_call import LARGEST_GRADIENT, RecordedCall, record_call, record_output
from gradwatch.explain.repeated_step import RepeatedStep, modules_named
from gradwatch.hooks.guard import Guard, observing
from gradwatch.hooks.module_calls import anything_is_compiled, is_compiled, listen
from gradwatch.measure.report import Origin

__all__ = ["Replay", "without_replication"]

MOST_CALLS = 8
"""Calls whose arguments are held until the update. Of more micro-batches than that, only the last are replayed."""

PATIENCE = 5.0  # seconds that a replay may take in any case
SLOWER = 10  # times its calls that it may take beyond: it may go backward, too, and examine every operation


class Replay:
    """A memory of how ``models`` were called since the last update, which can run those calls again.

    Args:
        models: {name: module}. Those compiled or scripted are not remembered.
        guard: takes the faults.
        losses: what the losses of the step show; who observes them forgets them, too.
        note_call: takes each call as it begins.

    Attributes:
        guard: as given.
        was_called: True once any of them was called.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        guard: Guard | None = None,
        losses: LossGraph | None = None,
        note_call: Callable[[RecordedCall], object] | None = None,
    ) -> None:
        self.guard = guard or Guard()
        self._losses, self._note_call = losses or LossGraph(), note_call
        self.was_called = False
        self._models = {name: part for root, model in models.items() for name, part in _called(root, model)}
        self._calls: deque[RecordedCall] = deque(maxlen=MOST_CALLS)
        self._under_way: RecordedCall | None = None
        self._has_descended = False
        self._undo: list[Callable[[], None]] = []
        self._listen()

    @observing("replay: calls")
    def forget(self, *, was_seen_whole: bool = True) -> None:
        """Forget the calls of a step, whose update is now made.

        Args:
            was_seen_whole: False if watching began in the midst of this step, so that its calls may have been missed.
        """
        # compiled code calls nothing that can be heard, and would be compiled again for other listeners
        if was_seen_whole and not self._calls and not self.was_called and not anything_is_compiled():
            self._descend()
        elif self._has_descended and self._calls:
            self._keep_outermost()
        self.was_called = self.was_called or bool(self._calls)
        self._calls.clear()
        self._under_way = None

    @property
    def has_calls(self) -> bool:
        """Return True if the model was called since the last update."""
        return bool(self._calls)

    @property
    def calls(self) -> list[RecordedCall]:
        """Return the calls since the last update."""
        return list(self._calls)

    def remove(self) -> None:
        """Stop listening."""
        for stop in self._undo:
            stop()
        self._undo.clear()
        self._calls.clear()

    @observing("replay")
    def origin(self, loss: float | None, layers_at_fault: Sequence[str]) -> Origin | None:
        """Run the calls since the last update again, and return where their NaN or Inf came from.

        It is None where the calls cannot be repeated, or show nothing. Arguments as for ``observed_origin``.
        """
        models = self._called_models()
        is_free = is_free_of_foreign_state(self._calls, models.values())
        if not is_free and not self._can_run_in_child():
            return None
        step = RepeatedStep(self.calls, models, is_free, self.guard, loss, layers_at_fault)
        found = step.observe() if is_free else self._in_child(step.observe)
        return None if found is None else conclusion(self._with_details(found, loss))

    def _can_run_in_child(self) -> bool:
        return can_fork() and all(call.autocast[0] == "cpu" for call in self._calls)

    def _in_child(self, observe: Callable[[], ObservedOrigin | None]) -> ObservedOrigin | None:
        """Return what ``observe`` returns in a child of this process; None where the child is lost."""
        with contextlib.suppress(ChildLostError):
            return in_child(observe, PATIENCE + SLOWER * sum(call.seconds for call in self._calls))
        return None

    def _with_details(self, found: ObservedOrigin, loss: float | None) -> ObservedOrigin:
        """Return ``found`` with what else explains it where no operation of a module does."""
        if found.where == "loss":
            return self._with_loss(found, loss)
        if found.where == "forward" and found.operation is None:
            return replace(found, corrupt=self._corrupt_buffers(found.module.name))
        return found

    def _called_models(self) -> dict[str, nn.Module]:
        called = {call.name for call in self._calls}
        return {name: model for name, model in self._models.items() if name in called}

    def _with_loss(self, found: ObservedOrigin, loss: float | None) -> ObservedOrigin:
        """Return ``found`` with the operations by which the loss was computed, and the one of them at fault."""
        losses, made_by = self._losses, self._losses.operations()
        if not made_by:
            return found
        is_finite = loss is not None and math.isfinite(loss)
        unbounded = losses.unbounded_operations() if is_finite else ()
        return replace(found, operation=losses.fault, taken=losses.taken, loss_operations=made_by, unbounded=unbounded)

    def _corrupt_buffers(self, module: str) -> tuple[str, ...]:
        """Return the full names of the buffers of ``module`` that hold NaN or Inf."""
        return tuple(
            f"{module}.{buffer}".lstrip(".")
            for part in modules_named(module, self._models)
            for buffer, values in part.named_buffers()
            if not bool(values.isfinite().all())
        )

    def _descend(self) -> None:
        """Listen to all modules below instead, where the loop called none of the models before its update.

        A loop may call parts that lie deep (``flow.coupling.net``). Calls within a call are not recorded.
        """
        below: dict[str, nn.Module] = {}
        for root, model in self._models.items():
            below.update(_below(root, model))
        if below:
            self.remove()
            self._models = below
            self._listen()
            self._has_descended = True

    def _keep_outermost(self) -> None:
        """Listen no more to the modules inside those that the loop was heard to call."""
        heard = {call.name for call in self._calls}
        kept = {
            name: model
            for name, model in self._models.items()
            if not any(name.startswith(f"{part}.") for part in heard)
        }
        if len(kept) < len(self._models):
            calls = list(self._calls)
            self.remove()
            self._models = kept
            self._calls.extend(calls)
            self._listen()
        self._has_descended = False

    def _listen(self) -> None:
        for name, model in self._models.items():
            stop = listen(model, functools.partial(self._enter, name), self._leave, self.guard)
            if stop is not None:
                self._undo.append(stop)

    @observing("replay: calls")
    def _enter(self, name: str, args: Any, kwargs: Any) -> RecordedCall | None:
        if self._under_way is not None and self._under_way.name != name:
            return None  # a child, called by its parent
        self._under_way = record_call(name, type(self._models[name]).__name__, args, kwargs)
        if self._note_call is not None:
            self._note_call(self._under_way)
        return self._under_way

    @observing("replay: calls")
    def _leave(self, call: RecordedCall | None, output: Any) -> None:
        if call is None:
            return
        self._under_way = None
        if output is None:
            return
        self._calls.append(call)
        record_output(call, output, self._hold)

    @observing("replay: calls")
    def _hold(self, held: list[Tensor | None], gradient: Tensor | None) -> None:
        if gradient is not None:  # a function of the user's own may return none
            held.append(gradient if gradient.numel() <= LARGEST_GRADIENT else None)


def without_replication(model: nn.Module) -> nn.Module:
    """Return the model inside ``DistributedDataParallel``, whose names are those of the layers."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _called(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what a loop calls: the model; under Lightning, or without a ``forward``, also its children."""
    model = without_replication(model)  # which it calls
    if isinstance(model, nn.DataParallel) or is_compiled(model):
        return
    yield name, model
    if inspect.getattr_static(type(model), "forward") is nn.Module.forward or hasattr(model, "training_step"):
        for part, child in _children(name, model):
            yield from _called(part, child)


def _below(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module below ``model``, a part after its whole."""
    for part, child in _children(name, model):
        yield part, child
        yield from _below(part, child)


def _children(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for part, child in model.named_children():
        yield f"{name}.{part}".lstrip("."), child
