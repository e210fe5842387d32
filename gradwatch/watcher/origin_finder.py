"""Ask ``explain/`` where the NaN or Inf of a step came from, as far as this run allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch.explain.call_summary import ModuleCall
from gradwatch.explain.inferred import Unseen
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.origin import inferred_origin, origin_in_loss
from gradwatch.explain.own_calls import own_origin
from gradwatch.explain.recorded_call import RecordedCall
from gradwatch.explain.replay import Replay, without_replication
from gradwatch.explain.trace import Trace
from gradwatch.explain.update_origin import LastUpdate, update_origin
from gradwatch.hooks.guard import Guard
from gradwatch.hooks.module_calls import anything_is_compiled, is_compiled
from gradwatch.measure import statistics
from gradwatch.measure.layers import Layers, leaf_modules
from gradwatch.measure.measurement import Measurement
from gradwatch.measure.report import Origin, StepReport
from gradwatch.ranks.group import current_group
from gradwatch.ranks.shards import is_distributed, local_part
from gradwatch.recover.flight_recorder import FlightRecorder

__all__ = ["OriginFinder", "StepOrigin"]


class StepOrigin(NamedTuple):
    """The traces of one step, for whoever asks where its NaN or Inf came from.

    Attributes:
        device_type: of the gradients.
        observed: what running the step again has shown; None where it was not run again, or showed nothing.
        in_loss: what the graph of its loss has shown; None where it showed nothing.
        calls: of every module in this step, where they are traced.
        own_calls: of the models in this step, by reference, on one rank of several, whose steps are not run again.
        losses: of this process in this step.
        sick_parts: {column: how many entries were NaN or Inf before the step} of this rank's parts of sharded weights.
    """

    device_type: str
    observed: Origin | None
    in_loss: Origin | None
    calls: Sequence[ModuleCall]
    own_calls: Sequence[RecordedCall] = ()
    losses: Sequence[Tensor | float] = ()
    sick_parts: Mapping[int, int] = {}

    def own_loss(self) -> float | None:
        """Return the mean loss of this process; None where none was seen. Waits for the device."""
        return sum(map(float, self.losses)) / len(self.losses) if self.losses else None


class OriginFinder:
    """The ways to find where a NaN or Inf came from: run the step again, trace every call, or infer it.

    A sick step is run again before its update, where the update can wait for that: on the CPU, and where
    ``on_nonfinite`` reads a flag from the device anyway. One rank of several never runs a step by itself: it might wait
    for the others. There it is asked what this rank alone has seen.

    Args:
        layers: the table.
        models: {name: module}, as watched; empty for bare tensors.
        traces_calls: observe what every module is given and returns, for which no update has to wait.
        can_always_wait: whether the update waits for the device in any case.
        guard: takes the faults.
        has_options: whoever started this can set ``trace_nonfinite`` and ``on_nonfinite``.
        recorder: the black box, which keeps each call of a model; None without one.

    Attributes:
        losses: what the losses of the step show.
        replay, trace: None where the run does not allow the one, or the user does not want the other.
    """

    def __init__(
        self,
        layers: Layers,
        models: Mapping[str, nn.Module],
        *,
        traces_calls: bool,
        can_always_wait: bool,
        guard: Guard,
        has_options: bool = True,
        recorder: FlightRecorder | None = None,
    ) -> None:
        self._has_options = has_options
        self._layers, self._can_always_wait, self._guard = layers, can_always_wait, guard
        self._modules = [leaf for name, model in models.items() for leaf in leaf_modules(model, name)]
        self._models = tuple(models.values())
        self._told: dict[int, frozenset[int]] = {}  # optimizers that are sick now: their columns, and sick weights
        self.losses = LossGraph()
        note_call = None if recorder is None else recorder.note_call
        self.replay = guard.run("replay", Replay, models, guard, self.losses, note_call) if models else None
        inner = {name: without_replication(model) for name, model in models.items()}
        self.trace = guard.run("trace", Trace, inner, guard) if traces_calls else None

    def observe_loss(self, loss: Tensor) -> None:
        """Take the loss before its backward pass: the operations that made it are in its graph."""
        self._guard.run("losses", self.losses.observe, loss)

    def leave_out_losses(self, count: int) -> None:
        """Forget the last ``count`` losses, whose backward passes have reached none of the watched tensors.

        A model that was called since the last update keeps them: its listeners may stand beside the way of the loss.
        """
        if self.replay is None or not self.replay.has_calls:
            self._guard.run("losses", self.losses.leave_out, count)

    def note_step(
        self,
        current: Measurement,
        losses: Sequence[Tensor | float] = (),
        *,
        was_seen_whole: bool,
        begins_to_be_sick: Callable[[int], bool],
        updates: Callable[[], Iterable[LastUpdate]] = tuple,
    ) -> StepOrigin:
        """Return what there is to know of the step that was just measured, and forget it here.

        Args:
            current: the step.
            losses: of this process in the step.
            was_seen_whole: nobody began to watch in the midst of it.
            begins_to_be_sick: notes a sick update of the same optimizer; returns whether its sickness is a new one.
            updates: returns the latest update of each optimizer.
        """
        observed, sick_parts = None, None
        if not self.may_wait_for(current):
            self._told.pop(current.plan.optimizer, None)
        elif begins_to_be_sick(current.plan.update):
            observed = self._guard.run("weights of a sick step", self._origin_in_weights, current, updates)
            if observed is None:
                observed = self._replayed(current)
            if self._is_sharded():
                sick_parts = self._guard.run("weights of a sick step", self._sick_entries)
        own_calls = self._own_calls(current)
        if self.replay is not None:
            self.replay.forget(was_seen_whole=was_seen_whole)
        in_loss = self._guard.run("losses", origin_in_loss, self.losses)
        self.losses.forget()
        calls = [] if self.trace is None else self.trace.take() or []
        return StepOrigin(current.device.type, observed, in_loss, calls, own_calls, losses, sick_parts or {})

    def note_update(self, current: Measurement, updates: Callable[[], Iterable[LastUpdate]]) -> StepOrigin | None:
        """Return what there is to know of an update that has just made NaN or Inf; None where it is not to blame."""
        found = update_origin(self._layers, self._sick_weights(), updates())
        return None if found is None else StepOrigin(current.device.type, found, None, ())

    def origin_of(self, report: StepReport, step: StepOrigin | None) -> Origin:
        """Return where the NaN or Inf of ``report`` came from, by the best evidence that ``step`` holds."""
        sick_layers = [self._layers.names[column] for column in np.flatnonzero(report.nonfinite)]
        if step is not None and current_group() is not None:
            return self._origin_on_rank(report, step, sick_layers)
        if step is not None and step.observed is not None:
            return step.observed
        if step is not None and self.trace is not None:
            traced = self.trace.origin(step.calls, report.loss, sick_layers)
            if traced is not None:
                return traced
        return self._inferred(report.loss, sick_layers, step)

    def _origin_on_rank(self, report: StepReport, step: StepOrigin, sick_layers: Sequence[str]) -> Origin:
        """Return what this rank has seen by itself; else what the gradients show, which are those of all ranks."""
        if step.observed is not None:
            return step.observed
        loss = step.own_loss()
        is_corrupt = report.weight_nonfinite is not None and bool(report.weight_nonfinite.any())
        if is_corrupt and self._is_sharded():  # the forward passes of all ranks are sick then
            return self._origin_in_parts(step.sick_parts) or self._origin_elsewhere(loss, sick_layers)
        # gradients of layers are averaged; those of what modules returned are this rank's own
        traced = None if self.trace is None else self.trace.origin(step.calls, loss, ())
        found = traced or own_origin(step.own_calls, loss, step.in_loss)
        if found is not None:
            return found
        return self._inferred(loss, sick_layers, step) if is_corrupt else self._origin_elsewhere(loss, sick_layers)

    def _origin_elsewhere(self, loss: float | None, sick_layers: Sequence[str]) -> Origin:
        return inferred_origin(self._layers, self._modules, "distributed", loss, sick_layers)

    def _origin_in_parts(self, sick: Mapping[int, int]) -> Origin | None:
        """Return the origin in this rank's parts of sharded weights; None where they are finite."""
        if not sick:
            return None
        first = min(sick, key=lambda column: int(self._layers.depth[column]))
        name, count = self._layers.names[first], sick[first]
        entries = "1 entry" if count == 1 else f"{count:,} entries"
        words = f"{entries} of this rank's part of {name} held NaN or Inf before the step"
        return Origin(name.rpartition(".")[0], "forward", words, "observed")

    def _inferred(self, loss: float | None, sick_layers: Sequence[str], step: StepOrigin | None) -> Origin:
        """Return what gradients and the graph of the loss show; without modules, the graph alone where it can."""
        device_type, in_loss = ("cpu", None) if step is None else (step.device_type, step.in_loss)
        if in_loss is not None and not self._modules:
            return in_loss
        unseen = self._why_unseen(device_type)
        return inferred_origin(self._layers, self._modules, unseen, loss, sick_layers, in_loss)

    def remove(self) -> None:
        """Listen no more; twice is fine."""
        for part in (self.replay, self.trace):
            if part is not None:
                part.remove()

    def release(self) -> None:
        """Listen no more, and hold the model no longer."""
        self.remove()
        self.replay = self.trace = None
        self._models = ()
        self.losses.forget()

    def _is_compiled(self) -> bool:
        """Return whether what the loop calls is compiled: the models, or wrappers around them, with no call heard."""
        was_heard = self.replay is not None and self.replay.was_called
        return not was_heard and (anything_is_compiled() or any(map(is_compiled, self._models)))

    def _origin_in_weights(self, current: Measurement, updates: Callable[[], Iterable[LastUpdate]]) -> Origin | None:
        """Return the origin of what the weights held before the step: an update, or what another finding tells.

        NaN spreads from the weights of one optimizer to the gradients of the others: that is one disease. It is another
        one where the forward pass of this step shows it in a module that holds none of those weights.
        """
        optimizer, sick = current.plan.optimizer, self._sick_weights()
        of_others = frozenset().union(*(columns for other, columns in self._told.items() if other != optimizer))
        if not of_others.isdisjoint(sick):
            observed = self._replayed(current)
            if observed is None or self._holds_any(observed.module, of_others.intersection(sick)):
                return Origin("", "update", "weights of another optimizer were sick before", is_told=True)
            return observed
        self._told[optimizer] = frozenset(sick).union(current.watched_columns)
        return update_origin(self._layers, sick, updates()) if sick else None

    def _replayed(self, current: Measurement) -> Origin | None:
        """Run the step again, and return what it shows; None where it cannot be, or shows nothing."""
        if self.replay is None or not self.replay.has_calls or current_group() is not None or self._is_sharded():
            return None
        return self.replay.origin(current.loss, current.sick_layers())

    def _holds_any(self, module: str, columns: Iterable[int]) -> bool:
        """Tell whether ``module`` or a module in it holds any of the weights at ``columns``."""
        return any(not module or self._layers.names[column].startswith(f"{module}.") for column in columns)

    def _sick_weights(self) -> dict[int, int]:
        """Return {column: count} of the weights that hold NaN or Inf now."""
        return {} if self._is_sharded() else self._sick_entries()  # of a whole shard no rank knows

    def _sick_entries(self) -> dict[int, int]:
        """Return {column: count} of the weights, or of this rank's parts of them, that hold NaN or Inf now."""
        tensors = enumerate(self._layers.tensors)
        parts = {column: local_part(tensor.detach()) for column, tensor in tensors if not is_lazy(tensor)}
        columns = [column for column, part in parts.items() if part.numel()]
        counts = statistics.count_nonfinite([parts[column] for column in columns]).tolist()
        return {column: int(count) for column, count in zip(columns, counts, strict=True) if count}

    def _is_sharded(self) -> bool:
        return any(map(is_distributed, self._layers.tensors))

    def _own_calls(self, current: Measurement) -> Sequence[RecordedCall]:
        """Return the calls of this step on one rank of several, unless it is known without waiting to be healthy."""
        is_healthy = current.device.type == "cpu" and current.is_finite
        return () if self.replay is None or is_healthy or current_group() is None else self.replay.calls

    def may_wait_for(self, current: Measurement) -> bool:
        """Return whether a step is sick of NaN or Inf, and its update waits until somebody has looked at it."""
        can_wait = self._can_always_wait or current.device.type == "cpu"
        return can_wait and not current.is_finite and not current.is_overflow

    def _why_unseen(self, device_type: str) -> Unseen:
        """Return why no call of a module was seen."""
        if not self._modules:
            return "bare tensors"
        return "compiled" if self._is_compiled() else self._why_not_recorded(device_type)

    def _why_not_recorded(self, device_type: str) -> Unseen:
        if self.trace is None and self.replay is not None and not self.replay.was_called:
            return "parts are called"
        if self.trace is not None:
            return "opaque"
        if not self._has_options:
            return "not recorded"
        if self.replay is not None and device_type == "cpu":
            return "not repeatable"
        return "not traced"
