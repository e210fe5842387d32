"""One sick step once more, on the side: which module made its NaN or Inf, and by which operation.

Enters: what every call of the model was given, by reference. Leaves: an ``Origin``, before the update is made. The step
runs again on a replica: it shares the weights, has buffers, random state and gradients of its own, and so changes
nothing of the run.
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

import torch
from torch import Tensor, nn

from gradwatch.explain.operations import (
    FaultyOperation,
    Operations,
    families_of,
    loss_fault,
    loss_operations,
    steep_loss_operations,
)
from gradwatch.explain.origin import origin_of
from gradwatch.explain.repeated_call import LARGEST_GRADIENT, OUTPUT, RecordedCall, entered, note_output, repeat
from gradwatch.explain.replica import UnrepeatableError, as_it_was, replica_of
from gradwatch.explain.trace import Trace
from gradwatch.hooks.guard import harmless
from gradwatch.hooks.module_calls import anything_is_compiled, is_compiled, listen
from gradwatch.measure.report import Origin

__all__ = ["Replay"]

KEPT = 8  # calls whose inputs are held until the update; more micro-batches than that are not all replayed


class Replay:
    """Remembers how ``models`` were called since the last update, and can do it again.

    Args:
        models: {name: module}. Those compiled or scripted are not remembered, nor is anything under
            ``torch.distributed``, where a rank by itself must not run a step.

    Attributes:
        was_called: any of them was.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.broken: set[str] = set()
        self._models = {name: part for root, model in models.items() for name, part in _called(root, model)}
        self._calls: deque[RecordedCall] = deque(maxlen=KEPT)
        self._under_way: RecordedCall | None = None
        self._losses: deque[Any] = deque(maxlen=KEPT)
        self._loss_fault: FaultyOperation | None = None
        self.was_called = False
        self._undo: list[Callable[[], None]] = []
        self._listen()

    def _listen(self) -> None:
        listened = ((m, functools.partial(self._enter, name)) for name, m in self._models.items())
        self._undo = [stop for module, enter in listened if (stop := listen(module, enter, self._leave)) is not None]

    @harmless
    def forget(self, *, was_seen_whole: bool = True) -> None:
        """The update is made.

        Args:
            was_seen_whole: nobody began to watch in the midst of this step, which would then tell nothing.
        """
        # compiled code calls nothing that can be heard, and would be compiled again for other listeners
        if was_seen_whole and not self._calls and not self.was_called and not anything_is_compiled():
            self._descend()
        self.was_called = self.was_called or bool(self._calls)
        self._calls.clear()
        self._losses.clear()
        self._loss_fault = None
        self._under_way = None

    def _descend(self) -> None:
        """The loop called none of them before its update (it calls their parts): listens to those instead."""
        parts = {name: part for root, model in self._models.items() for name, part in _parts(root, model)}
        if parts:
            self.remove()
            self._models = parts
            self._listen()

    def observe_loss(self, loss: Tensor) -> None:
        """Takes the loss of the coming update; by which operations it was made is told where it is at fault."""
        if loss.grad_fn is not None:
            self._losses.append(loss.grad_fn)
            if loss.is_cpu and self._loss_fault is None and not math.isfinite(loss.item()):  # elsewhere this would wait
                self._loss_fault = loss_fault(OUTPUT, loss.grad_fn)

    def remove(self) -> None:
        """Listens no more."""
        for stop in self._undo:
            stop()
        self._undo.clear()
        self._calls.clear()

    @harmless
    def origin(self, loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
        """As ``origin_of``, from running the calls since the last update once more; None where that showed nothing."""
        with contextlib.suppress(UnrepeatableError), as_it_was():
            return self._run(loss, sick_layers)
        return None

    def _run(self, loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
        known: dict[int, Any] = {}
        replicas = {name: replica_of(model, known) for name, model in self._models.items()}
        trace = Trace(replicas, keeps_all=True)
        trace.broken = self.broken  # a fault of its own warns once, not once a replay
        parameters = [p for replica in replicas.values() for p in replica.parameters() if p.requires_grad]
        with Operations(trace.module_under_way) as operations:
            batches = [repeat(call, replicas[call.name], parameters) for call in self._calls]
        origin = origin_of(trace.take() or [], loss, sick_layers)
        del batches  # whose sick rows the origin names
        if origin is None or origin.where != "loss":
            return None if origin is None else self._explain(origin, operations)
        return self._about_the_loss(origin, loss)

    def _explain(self, origin: Origin, operations: Operations) -> Origin:
        explained = operations.explain(origin)
        if explained is not origin or origin.where != "forward":
            return explained
        named = (
            (f"{name}.{path}".strip("."), m)
            for name, model in self._models.items()
            for path, m in model.named_modules()
        )
        buffers = next(module for name, module in named if name == origin.module).named_buffers()
        corrupt = [name for name, buffer in buffers if not bool(torch.isfinite(buffer).all())]
        if not corrupt:
            return origin
        them = ", ".join(f"{origin.module}.{name}".lstrip(".") for name in corrupt)
        return replace(origin, words=f"{origin.words}: its {them} already held NaN or Inf")

    def _about_the_loss(self, origin: Origin, loss: float | None) -> Origin:
        """``origin`` with the operations by which the loss was made, and which of them failed."""
        made_by = loss_operations(OUTPUT, self._losses)
        if not made_by:
            return origin
        steep = steep_loss_operations(OUTPUT, self._losses) if loss is not None and math.isfinite(loss) else []
        fault = "" if self._loss_fault is None else f": {self._loss_fault.words}"
        without_bound = f"; without bound is the derivative of {' and '.join(steep)}" if steep else ""
        made = None if self._loss_fault is None else self._loss_fault.operation
        families = families_of(steep) if made is None else (made,)
        words = f"{origin.words}{fault} (the loss is made by {', '.join(made_by)}{without_bound})"
        return replace(origin, words=words, operations=families)

    @harmless
    def _enter(self, name: str, args: Any, kwargs: Any) -> RecordedCall | None:
        if self._under_way is not None and self._under_way.name != name:
            return None  # a part, called by its whole
        self._under_way = entered(name, args, kwargs)
        return self._under_way

    @harmless
    def _leave(self, call: RecordedCall | None, output: Any) -> None:
        if call is None:
            return
        self._under_way = None
        if output is None:
            return
        self._calls.append(call)
        note_output(call, output, self._hold)

    @harmless
    def _hold(self, held: list[Tensor | None], gradient: Tensor) -> None:
        held.append(gradient if gradient.numel() <= LARGEST_GRADIENT else None)


def _called(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What a loop calls: the model; its parts where it has no forward of its own, and under Lightning."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or is_compiled(model):
        return
    yield name, model
    if inspect.getattr_static(type(model), "forward") is nn.Module.forward or hasattr(model, "training_step"):
        for part, child in _parts(name, model):
            yield from _called(part, child)


def _parts(name: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((f"{name}.{part}".lstrip("."), child) for part, child in model.named_children())
