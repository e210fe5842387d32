"""One watcher: the walk of one gradient, from the step hook to the sinks."""

from __future__ import annotations

import atexit
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from typing_extensions import TypedDict

from gradwatch import checkpoint, stats
from gradwatch.backward import BackwardPass
from gradwatch.clip import Policy, policy_of
from gradwatch.detect import Detectors
from gradwatch.findings import Finding, NonFiniteError, Thresholds
from gradwatch.layers import Layers
from gradwatch.measurement import Measurement
from gradwatch.optimizers import StepHooks, follow_scaler
from gradwatch.remedies import advise
from gradwatch.report import StepReport
from gradwatch.sinks import Sink
from gradwatch.sinks.log import logger
from gradwatch.sinks.memory import History
from gradwatch.sinks.tensorboard import LAYER_TAGS, layer_tags
from gradwatch.watcher.harmless import harmless
from gradwatch.watcher.outlets import Outlets
from gradwatch.watcher.updates import Updates

__all__ = ["OnNonFinite", "Options", "Watcher"]

OnNonFinite = Literal["report", "skip", "raise"]


class Options(TypedDict, total=False):
    """The keywords that every way of watching shares; ``gradwatch.watch`` says what each means."""

    clip: float | str | Policy | None
    on_nonfinite: OnNonFinite
    log_every_n_steps: int
    thresholds: Thresholds | None
    layer_scalars: bool | Sequence[str]
    histograms: bool
    history: int
    on_finding: Callable[[Finding], None] | None


class Watcher:
    """Watches every update of a model; made by ``watch`` and ``watch_tensors``.

    Usable as a context manager. Hooks come off, and everything is flushed, at ``close``.

    Attributes:
        history: the last steps, see ``gradwatch.sinks.memory.History``.
    """

    def __init__(
        self,
        layers: Layers,
        sinks: Sequence[Sink],
        *,
        clip: float | str | Policy | None = None,
        on_nonfinite: OnNonFinite = "report",
        log_every_n_steps: int = 50,
        thresholds: Thresholds | None = None,
        layer_scalars: bool | Sequence[str] = LAYER_TAGS[:3],
        histograms: bool = False,
        history: int = 512,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        _refuse_bad_options(on_nonfinite, log_every_n_steps, history, thresholds)
        self.history = History(layers.names, history)
        self.broken: set[str] = set()
        self._layers, self._outlets = layers, Outlets(sinks, on_finding)
        self._policy, self._on_nonfinite = policy_of(clip), on_nonfinite
        self._log_every, self._histograms = log_every_n_steps, histograms
        self._row_figures = frozenset(layer_tags(layer_scalars)) - {"grad_norm"}
        self._thresholds = thresholds or Thresholds()
        self._updates: dict[int | None, Updates] = {}
        self._restored: deque[dict[str, Any]] = deque()
        self._losses: list[Tensor | float] = []
        self._saw_loss = self._said_that_both_clip = False
        self._scaler: GradScaler | None = None
        self._step = self._skipped_steps = 0
        self._ended: list[Finding] = []
        self._under_way: deque[tuple[Updates, Measurement]] = deque()
        self._backward = BackwardPass(layers)
        self._undo: list[Callable[[], None]] = [self._backward.remove]
        self._closed = False
        _open_watchers.add(self)
        weakref.finalize(self, self._outlets.close).atexit = False  # dropped unclosed, as in a notebook

    # what users call

    @property
    def findings(self) -> list[Finding]:
        """Snapshots of all findings so far, by onset; waits for figures still on the device."""
        self._drain()
        return self._findings()

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
            loss = loss.detach()
        elif not isinstance(loss, int | float | np.number):
            raise TypeError(f"observe_loss: expected a number or a tensor of one entry, found {type(loss).__name__}.")
        self._losses.append(loss)

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
            self._update_by_hand(
                {column: t.grad for column, t in enumerate(self._layers.tensors) if t.grad is not None}
            )
        else:
            self._update_by_hand({self._column_of(name, gradient): gradient for name, gradient in grads.items()})

    def flush(self) -> None:
        """Waits for what is still on the device; everything written so far is safe afterwards."""
        self._drain()
        self._outlets.flush()

    def close(self) -> None:
        """Takes every hook off, flushes and closes the sinks; twice is fine."""
        if self._closed:
            return
        self._closed = True
        _open_watchers.discard(self)
        for undo in self._undo:
            undo()
        self._drain()
        self._say_what_was_missing()
        self._outlets.close()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Watcher({len(self._layers)} layers, {self._step} steps, {len(self._findings())} findings)"

    def state_dict(self) -> dict[str, Any]:
        """Step numbers, baselines, findings and clip history, as numbers, strings and tensors."""
        self._drain()
        return checkpoint.pack(
            {
                "layers": list(self._layers.names),
                "step": self._step,
                "skipped_steps": self._skipped_steps,
                "ended": [finding.as_dict() for finding in self._ended],
                "updates": [updates.state() for updates in self._updates.values()] + list(self._restored),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state_dict``'s value as if never stopped; call it before the first step.

        Raises:
            ValueError: for a state of another model, or once a step was seen.
        """
        state = checkpoint.unpack(dict(state))
        if self._step:
            raise ValueError(f"load_state_dict: call it before the first step; this watcher has seen {self._step}.")
        if tuple(state["layers"]) != self._layers.names:
            differ = sorted(set(state["layers"]) ^ set(self._layers.names))[:3] or "their order"
            raise ValueError(f"load_state_dict: this state is of another model; what differs: {differ}.")
        self._step, self._skipped_steps = state["step"], state["skipped_steps"]
        self._ended = [Finding.from_dict(saved) for saved in state["ended"]]
        self._outlets.go_on()
        self._restored = deque(state["updates"])
        for updates in self._updates.values():
            if self._restored:
                updates.restore(self._restored.popleft())

    # what integrations call

    def attach(self, optimizers: Sequence[Optimizer] | None, *, sees_gradients: bool = True) -> None:
        """Hooks the watcher to ``optimizers``; None finds those that own a watched parameter as they step.

        Args:
            sees_gradients: False where the integration itself calls ``before_update``.
        """
        for optimizer in optimizers or ():
            self._updates_of(id(optimizer))  # in the order given, whichever steps first
        if sees_gradients:
            self._backward.measure_ends()
        before = self.before_update if sees_gradients else None
        hooks = StepHooks(before, self.after_update, optimizers, self.owns)
        self._undo.append(hooks.remove)

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
            RuntimeError: inside a backward pass.
        """
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"gradwatch: this {type(optimizer).__name__} steps inside the backward pass (one optimizer for each "
                "parameter, in a gradient hook), where no step has all its gradients yet. Step after backward(), or "
                "train without gradwatch."
            )
        is_one = loss.numel() == 1 if isinstance(loss, Tensor) else isinstance(loss, float)
        if is_one and not self._losses and not again:
            self.observe_loss(loss)  # type: ignore[arg-type]
        if scale is None:
            scale = getattr(optimizer, "grad_scale", None)
        has_scaler = hasattr(optimizer, "found_inf") or (self._scaler is not None and self._scaler.is_enabled())
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._begin(id(optimizer), parameters, None, again, scale, has_scaler)

    def after_update(self, optimizer: Optimizer) -> None:
        """``optimizer`` has updated."""
        updates = self._updates.get(id(optimizer))
        if updates is not None:
            self._finish(updates)

    def use_scaler(self, scaler: GradScaler, *, sees_gradients: bool = True) -> None:
        """``scaler`` decides about updates; its loss scale is no fault, and what it leaves out is counted as skipped.

        Args:
            sees_gradients: False where the integration itself calls ``before_update``, also for what is left out.
        """
        self._scaler = scaler
        if sees_gradients:
            self._undo.append(follow_scaler(scaler, self._steps_of, self._leave_out))

    def is_updating(self, optimizer: Optimizer) -> bool:
        """Whether the gradients of ``optimizer`` were taken in and its update has not followed yet."""
        updates = self._updates.get(id(optimizer))
        return updates is not None and updates.current is not None

    def totals(self, optimizer: Optimizer) -> tuple[Tensor, Tensor] | None:
        """() total norms of the update under way, before and after clipping, on the device."""
        updates = self._updates.get(id(optimizer))
        return None if updates is None or updates.current is None else updates.current.totals()

    def _steps_of(self, optimizer: Optimizer) -> int:
        updates = self._updates.get(id(optimizer))
        return 0 if updates is None else updates.count

    def _leave_out(self, optimizer: Optimizer) -> None:
        """The scaler made no update from the gradients of ``optimizer``."""
        if self.owns(optimizer):
            self.before_update(optimizer)
            updates = self._updates.get(id(optimizer))
            if updates is not None:
                self._finish(updates, is_made=False)

    # the walk of one gradient

    def _update_by_hand(self, gradients: dict[int, Tensor]) -> None:
        parameters = [self._layers.tensors[column] for column in gradients]
        self._begin(None, parameters, list(gradients.values()), False)
        updates = self._updates.get(None)
        if updates is not None:
            updates.earlier = updates.current
            self._finish(updates, is_made=False)

    @harmless
    def _begin(
        self,
        key: int | None,
        parameters: list[Tensor],
        gradients: list[Tensor] | None,
        again: bool,
        scale: Tensor | None = None,
        has_scaler: bool = False,
    ) -> None:
        updates = self._updates_of(key)
        updates.use(parameters, self._layers)
        columns = updates.columns
        if gradients is None:
            gradients = [g for p in parameters if (g := p.grad) is not None]
            if len(gradients) < len(parameters):
                has_gradient = [p.grad is not None for p in parameters]
                parameters = [p for p, has in zip(parameters, has_gradient, strict=True) if has]
                columns = columns[np.array(has_gradient, dtype=bool)]
        if again and updates.current is not None:
            self._losses = []  # the step has its loss, that of the first evaluation
            self._evaluate_again(updates, gradients, columns)
            return
        self._finish(updates)
        at_end = self._backward.before_change(updates.watched, has_cycled=updates.is_settled)
        if at_end is not None and updates.policy is not None:
            self._say_that_both_clip(updates.policy)
        if not updates.is_settled:
            self._backward.settle(updates.watched)
            updates.is_settled = True
        moment = updates.moment(self._step, self._log_every, self._row_figures, self._histograms, has_scaler)
        updates.current = Measurement(
            moment,
            self._layers,
            parameters,
            gradients,
            columns,
            self._losses,
            scale,
            updates.earlier,
            at_end,
            None if at_end is None or not has_scaler else self._loss_scale(gradients),
        )
        self._saw_loss = self._saw_loss or bool(self._losses)
        self._losses = []
        self._step += 1
        updates.count += 1
        self._decide(updates, updates.current)

    def _evaluate_again(self, updates: Updates, gradients: list[Tensor], columns: NDArray[np.int64]) -> None:
        """A closure was evaluated once more within one update: its gradients are clipped, or raise."""
        if not gradients or (updates.policy is None and self._on_nonfinite != "raise"):
            return
        magnitudes = stats.measure(gradients)
        if self._on_nonfinite == "raise" and bool(magnitudes.nonfinite.any()):
            sick = [column for column in columns[magnitudes.nonfinite.numpy(force=True) > 0].tolist() if column >= 0]
            layer = self._layers.names[max(sick, key=lambda c: self._layers.depth[c])] if sick else ""
            message = f"a later evaluation of the closure of step {self._step - 1} made NaN or Inf in {layer}."
            raise NonFiniteError(layer, self._step - 1, message)
        if updates.policy is not None:
            updates.policy.clip_(gradients, magnitudes)

    def _decide(self, updates: Updates, current: Measurement) -> None:
        """Whether the update is made, and how far."""
        skips_itself = current.moment.has_scaler  # a scaler that finds no gradients ends the run with an error
        if self._on_nonfinite != "report" and not skips_itself and not current.is_finite():
            current.mark_skipped()
            if self._on_nonfinite == "raise":
                self._finish(updates)
                self._drain()
                self._raise_nonfinite(current.moment.step)
            for parameter in updates.parameters:
                parameter.grad = None
        elif updates.policy is not None:
            current.clip_(updates.policy)

    @harmless
    def _finish(self, updates: Updates, is_made: bool = True) -> None:
        """The update is made, or soon will be: sends the figures to the host, and reads those that have arrived."""
        current, updates.current = updates.current, None
        if current is None:
            return
        if is_made:
            current.follow_update()
        current.send()
        self._under_way.append((updates, current))
        while self._under_way and (current.device.type == "cpu" or len(self._under_way) > 1):
            self._take_in(*self._under_way.popleft())

    @harmless
    def _drain(self) -> None:
        for updates in self._updates.values():
            self._finish(updates)
        while self._under_way:
            self._take_in(*self._under_way.popleft())

    def _take_in(self, updates: Updates, measurement: Measurement) -> None:
        """A step has arrived on the host: history, detectors, sinks."""
        report = measurement.report()
        self.history.append(report)
        self._skipped_steps += report.skipped
        self._detect(updates, report)
        self._write(updates, report)

    @harmless
    def _detect(self, updates: Updates, report: StepReport) -> None:
        for event in updates.detectors.observe(report):
            if event.ended:
                self._ended.append(event.finding)
            self._outlets.write_finding(event)

    @harmless
    def _write(self, updates: Updates, report: StepReport) -> None:
        updates.rows.add(report)
        if updates.is_logged(report.update, self._log_every):
            self._outlets.write_row(updates.rows.build(report, self._skipped_steps))

    # the small things

    def _updates_of(self, key: int | None) -> Updates:
        if key not in self._updates:
            detectors = Detectors(self._layers, self._thresholds, self._advise)
            policy = None if self._policy is None else self._policy.renew()
            updates = Updates(len(self._updates), detectors, policy)
            if self._restored:
                updates.restore(self._restored.popleft())
            self._updates[key] = updates
        return self._updates[key]

    def _advise(self, kind: str, columns: list[int]) -> tuple[str, ...]:
        return advise(kind, self._layers, clips=self._policy is not None)

    def _loss_scale(self, gradients: list[Tensor]) -> Tensor | None:
        return None if self._scaler is None else self._scaler.scale(gradients[0].new_ones((), dtype=torch.float32))

    def owns(self, optimizer: Optimizer) -> bool:
        return any(self._layers.column(p) is not None for group in optimizer.param_groups for p in group["params"])

    def _findings(self) -> list[Finding]:
        still_open = [f for updates in self._updates.values() for f in updates.detectors.open_findings()]
        return sorted([*self._ended, *still_open], key=lambda finding: (finding.step, finding.raised_step))

    def _raise_nonfinite(self, step: int) -> None:
        finding = next(f for f in reversed(self._findings()) if f.kind == "nonfinite")
        raise NonFiniteError(finding.layer, step, finding.message)

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

    def _say_that_both_clip(self, policy: Policy) -> None:
        if not self._said_that_both_clip:
            self._said_that_both_clip = True
            logger.warning(
                "gradwatch: this loop changes its gradients between backward() and step() (clip_grad_norm_?), and "
                "clip=%s clips what is left. Keep one of them.",
                policy.description,
            )

    def _say_what_was_missing(self) -> None:
        if self._step == 0:
            logger.warning(
                "gradwatch: no step was seen. Was the optimizer given to watch() the one that steps? "
                "A loop without a torch.optim optimizer calls watcher.step() itself."
            )
        elif not self._saw_loss:
            logger.warning(
                "gradwatch: no loss was seen, so a loss that is NaN, flat or unstable was not looked for. "
                "Call watcher.observe_loss(loss) in the loop."
            )


def _refuse_bad_options(on_nonfinite: str, log_every_n_steps: object, history: object, thresholds: object) -> None:
    if on_nonfinite not in ("report", "skip", "raise"):
        raise ValueError(f'on_nonfinite={on_nonfinite!r}: expected "report", "skip" or "raise".')
    for name, value in (("log_every_n_steps", log_every_n_steps), ("history", history)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of steps, 1 or more.")
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise TypeError(f"thresholds={thresholds!r}: expected gradwatch.Thresholds(…) or None.")


_open_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()


@atexit.register
def _close_open_watchers() -> None:
    """A script that ends without ``close`` loses nothing."""
    for watcher in list(_open_watchers):
        watcher.close()
