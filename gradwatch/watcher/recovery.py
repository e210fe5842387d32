"""Let a run save itself: take snapshots, leave updates out, go back, or give up.

What changes the training stands outside of every guard: it happens, or the user gets an error. What only prepares it
(taking a snapshot, reading findings) is guarded, and tried again at the next step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.findings import Finding, Kind, RecoveryError
from gradwatch.hooks.guard import Guard
from gradwatch.hooks.logger import logger
from gradwatch.hooks.optimizers import optimizers_within
from gradwatch.ranks.shards import local_part
from gradwatch.recover.random_state import RandomState, accelerators_of, random_state
from gradwatch.recover.rewind import Rewind, Stateful
from gradwatch.recover.rewind_policy import Decision, RewindPolicy, Symptoms
from gradwatch.recover.rewind_rates import LoweredRates
from gradwatch.recover.rewind_shelf import SnapshotShelf
from gradwatch.recover.rewind_snapshot import take_snapshot
from gradwatch.watcher import checkpoint
from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.steps import Steps

__all__ = ["Recovery"]

TRIGGERS: tuple[Kind, ...] = ("exploding", "nonfinite")
"""Kinds of findings that make a run go back: the others neither wreck the weights nor pass by going back."""

MOST_ACTIONS = 20
"""Actions that are kept for the story of an error: more make a text that nobody reads."""


class Recovery:
    """The recovery of one run. It acts once in each iteration, after the update of its last optimizer.

    Args:
        plan: what the user asked for.
        models: {name: module}, as watched.
        optimizers: those that were given; None where they are found as they step.
        steps: the updates.
        scaler_of: returns the scaler of an optimizer, if one is known.
        guard: takes the faults of what only prepares.

    Attributes:
        actions: what was done so far, a sentence each; the latest ones.
        rewinds: how often the run has gone back.
    """

    def __init__(
        self,
        plan: Rewind,
        models: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer] | None,
        steps: Steps,
        scaler_of: Callable[[Optimizer], GradScaler | None],
        guard: Guard,
    ) -> None:
        self.actions: list[str] = []
        self.rewinds = 0
        self._plan, self._models, self._steps, self._guard = plan, models, steps, guard
        self._scaler_of = scaler_of
        self._policy, self._rates, self._shelf = RewindPolicy(plan), LoweredRates(), SnapshotShelf(plan.path)
        self._drawn: dict[int, list[int]] = {}  # steps of a snapshot → batches that each loader had handed out
        self._last: weakref.ref[Optimizer] | None = None  # the optimizer whose update ends an iteration
        if optimizers is not None and len(optimizers) == 1:
            self._last = weakref.ref(optimizers[0])
        self._latest: weakref.ref[Optimizer] | None = None
        self._first: weakref.ref[Optimizer] | None = None
        self._unattached: list[tuple[int, str]] = []
        self._is_resting, self._acted_at = False, 0
        parameters = [parameter for model in models.values() for parameter in model.parameters()]
        self._devices = accelerators_of(parameters)
        self._buffers: list[tuple[Tensor, Tensor]] = []  # each, and what it was after the last update
        self._random: RandomState | None = None
        guard.run("noting buffers", self._note_before)

    def before_update(self, optimizer: Optimizer) -> None:
        """Lower the rates of the coming update, if the run has gone back lately."""
        if self._first is None:
            self._first = weakref.ref(optimizer)
        elif self._last is None and self._first() is optimizer:
            self._last = self._latest  # the one that stepped before a new iteration began
        if self._policy.rate_factor != 1:
            self._rates.lower([optimizer, *optimizers_within(optimizer)], self._policy.rate_factor)

    def after_update(self, optimizer: Optimizer) -> None:
        """Take a snapshot, put back what a refused update has left, or go back.

        Raises:
            RecoveryError: where the run can be saved no more.
        """
        self._rates.put_back()
        self._latest = weakref.ref(optimizer)
        if self._is_resting or self._last is None or self._last() is not optimizer:
            return
        opened = self._guard.run("recovery", self._steps.processor.take_opened) or []
        symptoms = self._symptoms_of_all(self._symptoms(optimizer, opened))
        self._acted_at = symptoms.steps
        decision = self._policy.decide(symptoms)
        if decision.action != "nothing":
            self._act(decision, symptoms, opened, optimizer)
        self._guard.run("attaching actions to findings", self._attach)
        if self._policy.is_due(symptoms.steps):
            self._guard.run("taking a snapshot", self._take, symptoms.steps)
        self._guard.run("noting buffers", self._note_before)

    def release(self) -> None:
        """Let go of the model, of snapshots in memory, and of the objects in ``Rewind.state``; what was done stays."""
        self._is_resting = True
        self._models, self._buffers = {}, []
        self._plan, self._shelf = replace(self._plan, state=(), skip=0), SnapshotShelf(None)

    def _symptoms(self, optimizer: Optimizer, opened: Sequence[Finding]) -> Symptoms:
        steps = self._steps.count
        is_refused = self._steps.last_refused >= self._acted_at
        scaler = self._scaler_of(optimizer)
        counts = TRIGGERS if scaler is not None and scaler.is_enabled() else TRIGGERS[:1]
        # what a refused update has shown, no weight has taken in
        onsets = [each.step for each in opened if each.kind in counts and each.step != self._steps.last_refused]
        if is_refused and not self._weights_are_finite():
            onsets.append(self._steps.last_refused)
        can_go_on = not is_refused and all(finding.kind == "exploding" for finding in opened)
        is_open = self._steps.processor.has_open(TRIGGERS)
        return Symptoms(steps, min(onsets, default=None), is_refused, can_go_on, is_open)

    def _symptoms_of_all(self, own: Symptoms) -> Symptoms:
        """Return the symptoms of all ranks together; where there are no others, ``own``."""
        onset = own.steps if own.onset is None else own.onset  # the number of steps is later than any of them
        sent = [-float(onset), float(own.is_refused), float(not own.can_go_on), float(own.is_open)]
        largest = self._steps.exchange.largest(sent)
        if largest is None:
            return own
        if not largest:
            self._rest()
            return Symptoms(own.steps)
        first = -int(largest[0])
        onset_of_all = first if first < own.steps else None
        return Symptoms(own.steps, onset_of_all, bool(largest[1]), not largest[2], bool(largest[3]))

    def _rest(self) -> None:
        """Do nothing from now on: replicas that go back one by one would drift apart."""
        self._is_resting = True
        logger.warning(
            "gradwatch: recover= rests from step %d on, because not every rank takes part: one does not watch this "
            "model with the same keywords, has stopped, or trains within join().",
            self._steps.count - 1,
        )

    def _act(self, decision: Decision, symptoms: Symptoms, opened: Sequence[Finding], optimizer: Optimizer) -> None:
        latest = symptoms.steps - 1
        if decision.action == "skip":
            self._put_back_what_was_before()
            self._note(latest, f"step {latest}: the update was left out, because {self._steps.refused_because}")
        elif decision.action == "stay":
            self._note(latest, f"step {latest}: the run could not go back: {decision.reason}")
        elif decision.action == "give up":
            raise self._error(latest, decision.reason, opened)
        else:
            self._go_back(decision, opened, optimizer)

    def _go_back(self, decision: Decision, opened: Sequence[Finding], optimizer: Optimizer) -> None:
        latest, target = self._steps.count - 1, decision.snapshot
        assert target is not None
        self._guard.run("processing", self._steps.drain)
        try:
            snapshot = self._shelf.get(target)
            if not snapshot.is_finite:
                raise ValueError("the snapshot is not finite")
            scaler = self._scaler_of(optimizer)
            if scaler is not None:
                _torch.forget_overflow(scaler)
            drawn = self._drawn.get(target, [])
            handed_out = [each.drawn for each in self._loaders()]
            snapshot.restore_(self._models, self._optimizers(), self._state(optimizer))
            batches = [now - then for now, then in zip(handed_out, drawn, strict=True)]
            self._leave_batches_out(decision, latest, batches)
        except Exception as error:
            raise self._error(latest, f"going back has failed ({type(error).__name__}: {error})", opened) from error
        self._shelf.keep_only([each.steps for each in self._policy.snapshots])
        self.rewinds += 1
        rate = self._policy.rate_factor
        lowered = "" if rate == 1 else f", with {rate:.3g} times the learning rate"
        action = f"step {latest}: the run went back to the snapshot after step {target - 1}{lowered}"
        self._note(latest, action)
        self._guard.run("going back to what was learned", self._go_back_to_learned, snapshot.learned, action)

    def _leave_batches_out(self, decision: Decision, latest: int, drawn: Sequence[int]) -> None:
        """Leave out as many batches as the user named, else those of the sick steps.

        A run that goes back to one snapshot again leaves out all since: it cannot know which of them were sick before.
        """
        for loader, batches in zip(self._loaders(), drawn, strict=True):
            if self._plan.skip:
                loader.leave_out(self._plan.skip)
                continue
            healthy = self._healthy_batches(decision, latest, batches)
            loader.leave_out(batches - healthy, after=healthy)

    def _healthy_batches(self, decision: Decision, latest: int, batches: int) -> int:
        """Return how many of the batches since the snapshot came before the sick ones; 0 where that is not known."""
        assert decision.snapshot is not None
        assert decision.onset is not None
        each, rest = divmod(batches, latest + 1 - decision.snapshot)
        return 0 if rest else each * max(decision.onset - decision.snapshot, 0)

    def _go_back_to_learned(self, learned: Mapping[str, Any], action: str) -> None:
        """Let detectors and clipping go on from what they had learned; end the findings that have opened since."""
        tracks: dict[str, dict[str, Any]] = checkpoint.unpack(dict(learned))
        known = {str(track.index): track for track in self._tracks()}
        restores = [(known[index], saved) for index, saved in tracks.items() if index in known]

        def restore() -> None:
            for track, saved in restores:
                track.restore_learned(saved)

        self._steps.processor.go_back(restore, action, TRIGGERS)
        for track in self._tracks():
            track.outliers.forget()
        self._unattached.clear()

    def _take(self, steps: int) -> None:
        self._steps.processor.drain()
        learned = {str(track.index): checkpoint.pack(track.learned()) for track in self._tracks()}
        last = None if self._last is None else self._last()
        snapshot = take_snapshot(steps, self._models, self._optimizers(), self._state(last), learned)
        self._shelf.put(snapshot)
        self._drawn[steps] = [each.drawn for each in self._loaders()]
        self._policy.note_taken(steps)
        self._shelf.keep_only([each.steps for each in self._policy.snapshots])

    def _note_before(self) -> None:
        """Note the buffers and the random state, so that a batch that is left out leaves nothing behind."""
        if not self._buffers:
            found = [buffer for model in self._models.values() for buffer in model.buffers()]
            found = [] if any(map(is_lazy, found)) else found  # they have no entries before the first forward pass
            self._buffers = [(buffer, torch.empty_like(local_part(buffer))) for buffer in found]
        with torch.no_grad():
            for buffer, noted in self._buffers:
                noted.copy_(local_part(buffer))
        self._random = random_state(self._devices)

    def _put_back_what_was_before(self) -> None:
        with torch.no_grad():
            for buffer, noted in self._buffers:
                local_part(buffer).copy_(noted)
        if self._random is not None:
            self._random.restore()

    def _weights_are_finite(self) -> bool:
        weights = [parameter for model in self._models.values() for parameter in model.parameters()]
        return all(bool(torch.isfinite(local_part(weight.detach())).all()) for weight in weights)

    def _note(self, step: int, action: str) -> None:
        self.actions = [*self.actions, action][-MOST_ACTIONS:]
        self._unattached.append((step, action))
        logger.warning("gradwatch: %s.", action)

    def _attach(self) -> None:
        """Write the actions into the findings that they answer, as soon as these have opened."""
        latest = self._steps.count - 1
        left = []
        for step, action in self._unattached:
            is_attached = self._steps.processor.add_action(step, action, TRIGGERS)
            if not is_attached and latest - step < 2:  # off the CPU a finding opens a step later
                left.append((step, action))
        self._unattached = left

    def _error(self, step: int, reason: str, opened: Sequence[Finding]) -> RecoveryError:
        findings = self._guard.run("recovery", self._steps.processor.findings) or []
        sick = [each for each in (*opened, *reversed(findings)) if each.kind in TRIGGERS]
        return RecoveryError(step, reason, tuple(self.actions), sick[0] if sick else None)

    def _tracks(self) -> list[OptimizerTrack]:
        return [track for optimizer in self._optimizers() if (track := self._steps.tracks.get(optimizer)) is not None]

    def _optimizers(self) -> list[Optimizer]:
        """Return all optimizers that have stepped, and those inside them, in the order of first sight."""
        found: dict[Optimizer, None] = {}
        tracks = self._steps.tracks.by_optimizer
        for optimizer in sorted(tracks, key=lambda each: tracks[each].index):
            found |= dict.fromkeys([optimizer, *optimizers_within(optimizer)])
        return list(found)

    def _state(self, optimizer: Optimizer | None) -> list[Stateful]:
        """Return the user's objects, and the scaler, which need not be among them."""
        scaler = None if optimizer is None else self._scaler_of(optimizer)
        given = list(self._plan.state)
        return given if scaler is None or any(each is scaler for each in given) else [*given, scaler]

    def _loaders(self) -> list[Any]:
        return [each for each in self._plan.state if hasattr(each, "leave_out")]
