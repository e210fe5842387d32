"""The half of the walk beside the device: an update is about to be made; measures, clips, decides."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from gradwatch.clip import Policy
from gradwatch.detect import Detectors
from gradwatch.explain.origin import inferred_origin
from gradwatch.explain.replay import Replay
from gradwatch.explain.trace import Trace
from gradwatch.findings import Clue, Kind, NonFiniteError, Thresholds
from gradwatch.hooks.guard import harmless, without_collecting
from gradwatch.measure import statistics
from gradwatch.measure.activations import Activations
from gradwatch.measure.backward import BackwardPass
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement
from gradwatch.measure.report import Origin
from gradwatch.remedies import Case, advise
from gradwatch.sinks.log import logger
from gradwatch.watcher.optimizer_track import Cadence, OptimizerTrack
from gradwatch.watcher.options import OnNonFinite
from gradwatch.watcher.report_processor import ReportProcessor

__all__ = ["Steps"]


class Steps:
    """Attempted updates of every optimizer, in one count.

    Args:
        layers: the table.
        backward: what the backward pass tells.
        processor: takes each step once it was measured.
        cadence: what to measure when.
        policy: how to clip; each optimizer gets its own copy.
        on_nonfinite: as in ``gradwatch.watch``.
        thresholds: what counts as sick.

    Attributes:
        count: of steps so far.
        losses: observed for the coming step.
        saw_loss: whether any step had one.
        scaler: decides about updates, if there is one.
        modules: those without parts, as ``gradwatch.measure.layers.leaf_modules`` names them.
        activations: looks at the forward passes of sampled steps.
        replay: can run a step again.
        trace: looks at every module, if that is wanted.
    """

    def __init__(
        self,
        layers: Layers,
        backward: BackwardPass,
        processor: ReportProcessor,
        cadence: Cadence,
        policy: Policy | None,
        on_nonfinite: OnNonFinite,
        thresholds: Thresholds,
    ) -> None:
        self.count = 0
        self.losses: list[Tensor | float] = []
        self.saw_loss = False
        self.scaler: GradScaler | None = None
        self.modules: tuple[tuple[str, bool], ...] = ()
        self.activations: Activations | None = None
        self.replay: Replay | None = None
        self.trace: Trace | None = None
        self.broken: set[str] = set()
        self._layers, self._backward, self._processor, self._cadence = layers, backward, processor, cadence
        self._policy, self._on_nonfinite, self._thresholds = policy, on_nonfinite, thresholds
        self._updates: dict[int | None, OptimizerTrack] = {}
        self._restored: deque[dict[str, Any]] = deque()
        self._said: set[str] = set()

    def updates_of(self, key: int | None) -> OptimizerTrack:
        """What lives across the updates of one optimizer, None for a loop without one; made at first sight."""
        if key not in self._updates:
            detectors = Detectors(self._layers, self._thresholds, self._advise)
            policy = None if self._policy is None else self._policy.renew()
            updates = self._updates[key] = OptimizerTrack(len(self._updates), detectors, policy)
            self._processor.follow(updates)
            if self._restored:
                updates.restore(self._restored.popleft())
        return self._updates[key]

    def known(self, key: int | None) -> OptimizerTrack | None:
        """As ``updates_of``, None where it was not seen yet."""
        return self._updates.get(key)

    @harmless
    def take_in_by_hand(self, gradients: dict[int, Tensor]) -> None:
        """A step of a loop without an optimizer: {column: gradient}; its update is seen at the next one."""
        parameters = [self._layers.tensors[column] for column in gradients]
        self.begin(None, parameters, list(gradients.values()), False)
        if (updates := self.known(None)) is not None:
            updates.earlier = updates.current
            self.finish(updates, is_made=False)

    @harmless
    @without_collecting
    def begin(
        self,
        key: int | None,
        parameters: list[Tensor],
        gradients: list[Tensor] | None,
        again: bool,
        scale: Tensor | None = None,
        has_scaler: bool = False,
        rate: float | None = None,
    ) -> None:
        updates = self.updates_of(key)
        updates.use(parameters, self._layers)
        all_gradients = [p.grad for p in parameters] if gradients is None else gradients
        placement = updates.placement(all_gradients, self._layers)
        gradients = [gradient for gradient in all_gradients if gradient is not None]
        if again and updates.current is not None:
            self.losses = []  # the step has its loss, that of the first evaluation
            self._evaluate_again(updates, gradients, placement)
            return
        self.finish(updates)
        is_changed, at_end = self._backward.before_change(updates.watched, has_cycled=updates.is_settled)
        if is_changed:
            self._say_that_the_loop_clips(updates.policy, is_seen_past=at_end is not None)
        updates.is_settled = updates.is_settled or self._backward.settle(updates.watched)
        is_clipped = is_changed and at_end is None
        plan = updates.plan(self.count, self._cadence, has_scaler, is_clipped, rate)
        updates.current = Measurement(
            plan,
            self._layers,
            placement,
            gradients,
            self.losses,
            scale,
            updates.earlier,
            at_end,
            None if at_end is None or not has_scaler else self._loss_scale(gradients),
        )
        self._trace_back(updates, updates.current)
        self._look_at_activations(updates, updates.current)
        self.saw_loss = self.saw_loss or bool(self.losses)
        self.losses = []
        self.count += 1
        updates.count += 1
        self._decide(updates, updates.current)

    @harmless
    @without_collecting
    def finish(self, updates: OptimizerTrack, is_made: bool = True) -> None:
        """The update is made, or soon will be: sends the figures to the host, and reads those that have arrived."""
        current, updates.current = updates.current, None
        if current is None:
            return
        if is_made:
            current.follow_update()
        current.send()
        self._processor.add(updates, current)

    @harmless
    def drain(self) -> None:
        """Finishes what is under way, and waits for the device."""
        for updates in self._updates.values():
            self.finish(updates)
        self._processor.drain()

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {
            "step": self.count,
            "updates": [updates.state() for updates in self._updates.values()] + list(self._restored),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned; optimizers take their own in the order of first sight."""
        self.count = state["step"]
        self._restored = deque(state["updates"])
        for updates in self._updates.values():
            if self._restored:
                updates.restore(self._restored.popleft())

    def _evaluate_again(self, updates: OptimizerTrack, gradients: list[Tensor], placement: GradientColumns) -> None:
        """A closure was evaluated once more within one update: its gradients are clipped, or raise."""
        if not gradients or (updates.policy is None and self._on_nonfinite != "raise"):
            return
        magnitudes = statistics.measure(gradients)
        if self._on_nonfinite == "raise" and bool(magnitudes.nonfinite.any()):
            counts = placement.spread(magnitudes.nonfinite.numpy(force=True).astype(float), absent=0)
            sick = np.flatnonzero(counts).tolist()
            layer = self._layers.names[max(sick, key=lambda c: self._layers.depth[c])] if sick else ""
            message = f"a later evaluation of the closure of step {self.count - 1} made NaN or Inf in {layer}."
            raise NonFiniteError(layer, self.count - 1, message)
        if updates.policy is not None:
            updates.policy.clip_(gradients, magnitudes)

    @harmless
    def _look_at_activations(self, updates: OptimizerTrack, current: Measurement) -> None:
        """Those of this step's forward pass, if it was sampled; from now on those of the next one, if it will be."""
        if self.activations is not None:
            if current.plan.sampled:
                current.add_activations(self.activations.take() or {})
            if self._cadence.is_sampled(current.plan.update + 1):
                self.activations.begin()

    @harmless
    def _trace_back(self, updates: OptimizerTrack, current: Measurement) -> None:
        """Where a NaN or Inf came from: from running the step again where the update can wait, else from the trace."""
        can_wait = current.device.type == "cpu" or self._on_nonfinite != "report"
        if self.replay is not None:
            if can_wait and not current.is_finite and not current.is_overflow and updates.begins_to_be_sick():
                current.trace_back(self.replay.origin, now=True)
            self.replay.forget(was_seen_whole=updates.is_settled)
        if self.trace is not None:
            current.trace_back(partial(self.trace.origin, self.trace.take() or ()), now=False)
        current.trace_back(partial(self._infer, current.device), now=False)

    def _infer(self, device: torch.device, loss: float | None, sick_layers: list[str]) -> Origin:
        return inferred_origin(self._layers, self.modules, self._how_to_see(device), loss, sick_layers)

    def _how_to_see(self, device: torch.device) -> str:
        """What would name the module, where it could not be observed."""
        if self.trace is None and self.replay is not None and not self.replay.was_called:
            return "not seen: this loop calls parts of the model, which are looked at from its second step on"
        if self.trace is not None:
            return "not seen: what is compiled, scripted or sharded is not looked at; run it as it is to be told"
        if self.replay is not None and device.type == "cpu":
            return "not seen: the step could not be run again as it was; trace_nonfinite=True looks at every call"
        return 'not seen: trace_nonfinite=True, or on_nonfinite="skip", looks at every module'

    def _decide(self, updates: OptimizerTrack, current: Measurement) -> None:
        """Whether the update is made, and how far."""
        skips_itself = current.plan.has_scaler  # a scaler that finds no gradients ends the run with an error
        if self._on_nonfinite != "report" and not skips_itself and not current.is_finite:
            current.mark_skipped()
            if self._on_nonfinite == "raise":
                self.finish(updates)
                self._processor.drain()
                self._processor.raise_nonfinite(current.plan.step)
            for parameter in updates.parameters:
                parameter.grad = None
        elif updates.policy is not None:
            current.clip_(updates.policy.clip_)

    def _advise(self, kind: Kind, columns: list[int], rate: float | None, clues: frozenset[Clue]) -> tuple[str, ...]:
        return advise(Case(kind, self._layers, columns, self._policy is not None, rate, clues))

    def _loss_scale(self, gradients: list[Tensor]) -> Tensor | None:
        return None if self.scaler is None else self.scaler.scale(gradients[0].new_ones((), dtype=torch.float32))

    def _say_that_the_loop_clips(self, policy: Policy | None, *, is_seen_past: bool) -> None:
        """Once, where both clip; once, where the gradients before the loop's clipping are not known."""
        if policy is not None and "both" not in self._said:
            self._said.add("both")
            logger.warning(
                "gradwatch: this loop changes its gradients between backward() and step() (clip_grad_norm_?), and "
                "clip=%s clips what is left. Keep one of them.",
                policy.description,
            )
        if not is_seen_past and policy is None and "missed" not in self._said:
            self._said.add("missed")
            logger.warning(
                "gradwatch: the gradients of step %d were already clipped, or changed otherwise, between backward() "
                "and step(); its figures are those after (history['already_clipped']). Use clip=… here instead.",
                self.count,
            )
