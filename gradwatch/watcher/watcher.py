"""One watcher: the walk of one gradient, from the step hook to the sinks."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from typing_extensions import Unpack

from gradwatch import _torch
from gradwatch.clip import policy_of
from gradwatch.explain.replay import Replay
from gradwatch.explain.trace import Trace
from gradwatch.findings import Finding, Thresholds
from gradwatch.hooks.guard import UnwatchableError, harmless
from gradwatch.hooks.optimizers import StepHooks, follow_scaler, learning_rate_of, parameters_of
from gradwatch.measure.activations import Activations
from gradwatch.measure.backward import BackwardPass
from gradwatch.measure.layers import Layers, leaf_modules
from gradwatch.sinks import Sink
from gradwatch.sinks.log import logger
from gradwatch.sinks.tags import layer_tags
from gradwatch.watcher import checkpoint
from gradwatch.watcher.optimizer_track import Cadence
from gradwatch.watcher.options import DEFAULTS, Options, refuse_bad_options
from gradwatch.watcher.report_processor import ReportProcessor
from gradwatch.watcher.sink_dispatcher import SinkDispatcher
from gradwatch.watcher.steps import Steps

__all__ = ["Watcher", "watcher_of"]


class Watcher:
    """Watches every update of a model; made by ``watch`` and ``watch_tensors``.

    Usable as a context manager. Hooks come off, and everything is flushed, at ``close``.

    Attributes:
        history: the last steps, see ``gradwatch.sinks.memory.History``.
        advises: whether ``close`` says what the loop should have handed over; not where nobody is to change the loop.
    """

    def __init__(self, layers: Layers, sinks: Sequence[Sink], **options: Unpack[Options]) -> None:
        wanted: Options = {**DEFAULTS, **options}
        refuse_bad_options(wanted)
        cadence = Cadence(
            wanted["log_every_n_steps"],
            frozenset(layer_tags(wanted["layer_scalars"])) - {"grad_norm"},
            wanted["histograms"],
        )
        self.broken: set[str] = set()
        self.advises = True
        self._layers, self._dispatcher = layers, SinkDispatcher(sinks, wanted["on_finding"])
        self._backward = BackwardPass(layers)
        self._processor = ReportProcessor(layers.names, wanted["history"], self._dispatcher, cadence)
        self.history = self._processor.history
        self._steps = Steps(
            layers,
            self._backward,
            self._processor,
            cadence,
            policy_of(wanted["clip"]),
            wanted["on_nonfinite"],
            wanted["thresholds"] or Thresholds(),
        )
        self._undo: list[Callable[[], None]] = [self._backward.remove]
        self._closed = False
        _open_watchers.add(self)
        weakref.finalize(self, self._dispatcher.close).atexit = False  # dropped unclosed, as in a notebook

    # what users call

    @property
    def findings(self) -> list[Finding]:
        """Snapshots of all findings so far, by onset; waits for figures still on the device."""
        self._steps.drain()
        return self._processor.findings() or []

    def observe_loss(self, loss: Tensor | float) -> None:
        """Takes the loss of the coming update, before or after ``backward``; several are averaged.

        Args:
            loss: a number, or a tensor of one entry on any device. Never synced.

        Raises:
            TypeError: where it is neither.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise TypeError(f"observe_loss: expected a tensor of one entry, found shape {tuple(loss.shape)}.")
            self.follow_loss(loss)
            loss = loss.detach()
        elif not isinstance(loss, int | float | np.number):
            raise TypeError(f"observe_loss: expected a number or a tensor of one entry, found {type(loss).__name__}.")
        self._steps.losses.append(loss)

    def step(self, grads: Mapping[str, Tensor] | None = None, loss: Tensor | float | None = None) -> None:
        """Takes in one attempted update of a loop without a ``torch.optim`` optimizer; call it before the update.

        Args:
            grads: ``{name: gradient}``, each of its tensor's shape; clipped in place where ``clip`` is set. None takes
                every tensor's ``.grad``.
            loss: as for ``observe_loss``.

        Raises:
            KeyError: for a name that is not watched.
            ValueError: for a gradient of another shape.
            NonFiniteError: under ``on_nonfinite="raise"``.
        """
        if loss is not None:
            self.observe_loss(loss)
        if grads is None:
            gradients = {column: t.grad for column, t in enumerate(self._layers.tensors) if t.grad is not None}
        else:
            gradients = {self._column_of(name, gradient): gradient for name, gradient in grads.items()}
        self._steps.take_in_by_hand(gradients)

    def flush(self) -> None:
        """Waits for what is still on the device; everything written so far is safe afterwards."""
        self._steps.drain()
        self._dispatcher.flush()

    def close(self) -> None:
        """Takes every hook off, flushes and closes the sinks; twice is fine."""
        if self._closed:
            return
        self._closed = True
        _open_watchers.discard(self)
        for undo in self._undo:
            undo()
        self._steps.drain()
        if self.advises:
            self._say_what_was_missing()
        self._dispatcher.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        findings = len(self._processor.findings() or ())
        return f"Watcher({len(self._layers)} layers, {self._steps.count} steps, {findings} findings)"

    @harmless
    def _repr_html_(self) -> str:
        """In a notebook: the last steps as a picture, the findings as a table."""
        from gradwatch.watcher.notebook import html_of  # loaded where a notebook asks for it

        self._steps.drain()
        return html_of(self._layers, self._processor)

    def state_dict(self) -> dict[str, Any]:
        """Step numbers, baselines, findings and clip history, as numbers, strings and tensors."""
        self._steps.drain()
        return self._state() or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state_dict``'s value as if never stopped; call it before the first step.

        Raises:
            ValueError: for a state of another model, or once a step was seen.
        """
        if "layers" not in state:
            raise ValueError(f"load_state_dict: expected what state_dict() returned, found the keys {sorted(state)}.")
        saved: dict[str, Any] = checkpoint.unpack(dict(state))
        if self._steps.count:
            raise ValueError(
                f"load_state_dict: call it before the first step; this watcher has seen {self._steps.count}."
            )
        if tuple(saved["layers"]) != self._layers.names:
            differ = sorted(set(saved["layers"]) ^ set(self._layers.names))[:3] or "their order"
            raise ValueError(f"load_state_dict: this state is of another model; what differs: {differ}.")
        self._processor.restore(saved)
        self._steps.restore(saved)

    # what integrations call

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def add_sink(self, sink: Sink) -> None:
        """``sink`` is told what comes from now on."""
        self._dispatcher.add(sink)

    def attach(self, optimizers: Sequence[Optimizer] | None, *, sees_gradients: bool = True) -> None:
        """Hooks the watcher to ``optimizers``; None finds those that own a watched parameter as they step.

        Args:
            sees_gradients: False where the integration itself calls ``before_update``.
        """
        for optimizer in optimizers or ():
            self._steps.updates_of(id(optimizer))  # in the order given, whichever steps first
        self._backward.measure_ends()
        before = self.before_update if sees_gradients else None
        hooks = StepHooks(before, self.after_update, optimizers, self.owns)
        self._undo.append(hooks.remove)

    @harmless
    def before_update(
        self, optimizer: Optimizer, loss: object = None, *, again: bool = False, scale: Tensor | None = None
    ) -> None:
        """The gradients of ``optimizer`` are ready: measures, clips, and decides whether the update is made.

        Args:
            loss: what the optimizer's closure returned; counts where no loss was observed.
            again: the closure was evaluated once more within one update (LBFGS): only clips.
            scale: () a loss scale that the gradients still hold; None looks at ``optimizer.grad_scale``, where a
                ``GradScaler`` leaves it for a fused optimizer.

        Raises:
            NonFiniteError: under ``on_nonfinite="raise"``.
            RuntimeError: inside a backward pass.
        """
        if _torch.in_backward():
            raise UnwatchableError(
                f"gradwatch: this {type(optimizer).__name__} steps inside the backward pass (one optimizer for each "
                "parameter, in a gradient hook), where no step has all its gradients yet. Step after backward(), or "
                "train without gradwatch."
            )
        is_one = loss.numel() == 1 if isinstance(loss, Tensor) else isinstance(loss, float)
        if is_one and not self._steps.losses and not again:
            self.observe_loss(loss)  # type: ignore[arg-type]
        if scale is None:
            scale = _torch.scale_left_on(optimizer)
        scaler = self._steps.scaler
        has_scaler = _torch.uses_scaler(optimizer) or (scaler is not None and scaler.is_enabled())
        rate = learning_rate_of(optimizer)
        self._steps.begin(id(optimizer), parameters_of(optimizer), None, again, scale, has_scaler, rate)

    @harmless
    def after_update(self, optimizer: Optimizer, *, is_made: bool = True) -> None:
        """``optimizer`` has updated, or a scaler has left its update out."""
        if (updates := self._steps.known(id(optimizer))) is not None:
            self._steps.finish(updates, is_made)

    def use_scaler(self, scaler: GradScaler, *, sees_gradients: bool = True) -> None:
        """``scaler`` decides about updates; its loss scale is no fault, and what it leaves out is counted as skipped.

        Args:
            sees_gradients: False where the integration itself calls ``before_update``, also for what is left out.
        """
        self._steps.scaler = scaler
        if sees_gradients:
            self._undo.append(follow_scaler(scaler, self._count, self._leave_out))

    @harmless
    def look_at_activations(self, models: Mapping[str, nn.Module]) -> None:
        """Looks at the forward passes of sampled steps, from the second step on."""
        self._steps.activations = Activations(models, self._layers)
        self._undo.append(self._steps.activations.remove)

    @harmless
    def trace(self, models: Mapping[str, nn.Module], *, every_call: bool) -> None:
        """Names the module that makes a NaN or Inf: a sick step is run again, where its update can wait for that.

        Args:
            every_call: look at what every module is given and returns, too, which needs nothing to wait.
        """
        self._steps.modules = tuple(leaf for root, model in models.items() for leaf in leaf_modules(model, root))
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            self._steps.replay = Replay(models)
            self._undo.append(self._steps.replay.remove)
        if every_call:
            self._steps.trace = Trace(models)
            self._undo.append(self._steps.trace.remove)

    @harmless
    def follow_loss(self, loss: Tensor) -> None:
        """Looks at the graph of ``loss`` before its backward pass: its operations, and where they are flat."""
        for part in (self._steps.replay, self._steps.activations):
            if part is not None:
                part.observe_loss(loss)

    def is_updating(self, optimizer: Optimizer) -> bool:
        """Whether the gradients of ``optimizer`` were taken in and its update has not followed yet."""
        updates = self._steps.known(id(optimizer))
        return updates is not None and updates.current is not None

    def totals(self, optimizer: Optimizer) -> tuple[Tensor, Tensor] | None:
        """() total norms of the update under way, before and after clipping, on the device."""
        updates = self._steps.known(id(optimizer))
        return None if updates is None or updates.current is None else updates.current.totals()

    def owns(self, parameters: Sequence[Tensor]) -> bool:
        """Whether any of ``parameters`` is watched."""
        return any(self._layers.column(parameter) is not None for parameter in parameters)

    # the small things

    @harmless
    def _state(self) -> dict[str, Any]:
        return checkpoint.pack({"layers": list(self._layers.names), **self._steps.state(), **self._processor.state()})

    @harmless
    def _leave_out(self, optimizer: Optimizer) -> None:
        if self.owns(parameters_of(optimizer)):
            self.before_update(optimizer)
            self.after_update(optimizer, is_made=False)

    @harmless
    def _count(self, optimizer: Optimizer) -> int:
        updates = self._steps.known(id(optimizer))
        return 0 if updates is None else updates.count

    def _column_of(self, name: str, gradient: Tensor) -> int:
        if name not in self._layers.names:
            raise KeyError(f"step(grads=…): {name!r} is not watched; watched are {', '.join(self._layers.names[:8])}.")
        column = self._layers.names.index(name)
        shape = self._layers.tensors[column].shape
        if gradient.shape != shape:
            raise ValueError(
                f"step(grads=…): the gradient of {name!r} has shape {tuple(gradient.shape)}, expected {tuple(shape)}."
            )
        return column

    def _say_what_was_missing(self) -> None:
        if self._steps.count == 0:
            logger.warning(
                "gradwatch: no step was seen. Was the optimizer given to watch() the one that steps? "
                "A loop without a torch.optim optimizer calls watcher.step() itself."
            )
        elif not self._steps.saw_loss:
            logger.warning(
                "gradwatch: no loss was seen, so a loss that is NaN, flat or unstable was not looked for. "
                "Call watcher.observe_loss(loss) in the loop."
            )


_open_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
# a forked child has no thread that writes files, and would wait for one for ever; they are its parent's to close
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_open_watchers.clear)


def watcher_of(parameters: Sequence[Tensor]) -> Watcher | None:
    """The open watcher that watches any of ``parameters``."""
    return next((watcher for watcher in list(_open_watchers) if watcher.owns(parameters)), None)


@atexit.register
def _close_open_watchers() -> None:
    """A script that ends without ``close`` loses nothing."""
    for watcher in list(_open_watchers):
        watcher.close()
