"""The half of the walk beside the device: an update is about to be made; measure it, then clip, skip or raise."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.clip import Policy
from gradwatch.detect.wording import names_of
from gradwatch.explain.update_origin import LastUpdate
from gradwatch.findings import NonFiniteError, Thresholds
from gradwatch.hooks.clearing import LoopOrder
from gradwatch.hooks.guard import Guard, observing, otherwise, without_collecting
from gradwatch.hooks.logger import logger
from gradwatch.hooks.losses import LossFinder
from gradwatch.hooks.optimizers import parameters_of
from gradwatch.measure import statistics
from gradwatch.measure.activation_figures import Activations
from gradwatch.measure.backward import BackwardPass, EndMagnitudes
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement, StepPlan
from gradwatch.ranks.group import has_process_group
from gradwatch.recover.flight_recorder import FlightRecorder
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.cadence import Cadence
from gradwatch.watcher.diagnosis import Diagnosis
from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.optimizer_tracks import OptimizerTracks
from gradwatch.watcher.options import OnNonFinite
from gradwatch.watcher.origin_finder import OriginFinder
from gradwatch.watcher.ownership_survey import OwnershipSurvey
from gradwatch.watcher.plain_way import act_plainly, begin_plainly, clip_plainly
from gradwatch.watcher.policy_acts import (
    keep_weights,
    leaves_spike_out,
    refuse_policy_that_cannot_act,
    shorten_update,
    take_flag_back,
)
from gradwatch.watcher.rank_exchange import RankExchange
from gradwatch.watcher.replica_check import ReplicaCheck
from gradwatch.watcher.report_processor import ReportProcessor, SentStep
from gradwatch.watcher.state import TrackState

__all__ = ["Steps"]

IN_USE = 64
"""Steps since its latest update after which an optimizer is not waited for any more."""

MOST_BEHIND = 64
"""Updates that wait behind one which waits for the other ranks, where others' optimizers step before they tell."""


def _filled(attempt: Attempt) -> list[Tensor]:
    """Return the gradients of an update, with an empty one where there is none."""
    home = attempt.device
    return [torch.zeros(0, device=home) if each is None else each for each in attempt.gradients]


def _are_changed_in_place(gradients: Sequence[Tensor]) -> bool:
    """Return whether any gradient was changed since it was made; not asked of ranks, which average in place."""
    is_asked = not has_process_group()
    return is_asked and any(not each.is_inference() and _torch.version_of(each) > 0 for each in gradients)


def _scale_at_end(attempt: Attempt) -> Tensor | None:
    """Return the () loss scale that the gradients held where their backward pass ended."""
    if attempt.scaler is None or not attempt.has_scaler:
        return None
    return _torch.scale_of(attempt.scaler).to(attempt.parameters[0].device, non_blocking=True)


def _scale_of(attempt: Attempt) -> Tensor | None:
    """Return the () loss scale of the step's backward pass; a copy, for a scaler changes its own in place."""
    if attempt.scaler is None or not attempt.has_scaler:
        return attempt.scale
    return _torch.scale_of(attempt.scaler).clone()


class Steps:
    """Attempted updates of every optimizer, in one count.

    Args:
        layers: the table.
        backward: what the backward pass has shown.
        processor: takes each step once it was measured.
        cadence: what to measure when.
        policy: how to clip; each optimizer gets its own copy.
        on_nonfinite: as in ``gradwatch.watch``.
        thresholds: what counts as sick.
        origins: notes what a step leaves behind, should its NaN or Inf be asked about.
        activations: measures the forward passes of sampled steps; None where no module is watched.
        finder: knows the losses that nobody has observed; None where they are not looked for.
        survey: looks up who updates what.
        replicas: compares the replicas of the model.
        exchange: what the ranks tell each other about an update.
        guard: takes the faults of what only observes.
        leaves_outliers_out: whether to leave out an update, too, that is far larger than all lately.
        recorder: the black box; None without one.

    Attributes:
        layers, processor, policy, on_nonfinite, activations, survey, exchange, guard: as given.
        leaves_outliers_out, recorder: as given.
        tracks: what lives across the updates of each optimizer.
        count: of steps so far.
        losses: observed for the coming step.
        found_losses: found by an integration for the coming step; they count where none was observed.
        changed_while_scaled: optimizers whose gradients the loop has changed before a scaler unscaled them.
        undecided: the losses of a step that was counted, but neither clipped nor skipped yet; None between steps.
        saw_loss: whether any step had one.
        last_refused: the last step whose update was left out; -1 before there is one.
        refused_because: why it was, in words.
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
        origins: OriginFinder,
        activations: Activations | None,
        finder: LossFinder | None,
        survey: OwnershipSurvey,
        replicas: ReplicaCheck,
        exchange: RankExchange,
        guard: Guard,
        recorder: FlightRecorder | None = None,
        *,
        leaves_outliers_out: bool = False,
    ) -> None:
        self.layers, self.processor, self.guard = layers, processor, guard
        self.policy, self.on_nonfinite, self.leaves_outliers_out = policy, on_nonfinite, leaves_outliers_out
        self.count = 0
        self.losses: list[Tensor | float] = []
        self.found_losses: list[Tensor] = []
        self.changed_while_scaled: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.undecided: list[Tensor | float] | None = None
        self.saw_loss = False
        self.last_refused, self.refused_because = -1, ""
        self.recorder = recorder
        self._backward, self._cadence, self._thresholds = backward, cadence, thresholds
        self._origins, self.activations, self._finder = origins, activations, finder
        self.survey, self.replicas, self.exchange = survey, replicas, exchange
        self.tracks = OptimizerTracks(self._make_track, processor.follow, self._retire)
        self._behind: deque[SentStep] = deque()  # a sampled update that waits for the other ranks, and all after it
        self._warned_about: set[str] = set()

    def expect(self, optimizers: Sequence[Optimizer]) -> None:
        """Number ``optimizers`` in the order given, whichever steps first."""
        for optimizer in optimizers:
            self.tracks.of(optimizer)

    def begin(self, attempt: Attempt, *, again: bool = False) -> None:
        """Measure an update that is about to be made; then skip it, raise or clip, as the user asked.

        Args:
            attempt: the update.
            again: its closure was evaluated once more (LBFGS): it is counted and measured already.

        Raises:
            NonFiniteError: under ``on_nonfinite="raise"``.
        """
        try:
            self._begin(attempt, again=again)
            if not again:
                self._measure_clipped(attempt)
        finally:
            self._end_exchange()

    @otherwise("beginning a step", begin_plainly)
    def _begin(self, attempt: Attempt, *, again: bool = False) -> None:
        track = self.tracks.of(attempt.optimizer)
        if track.use(attempt.parameters, self.layers):
            self._name_newcomers(attempt)
        if track.policy is not None:
            take_flag_back(track, attempt.optimizer)  # the step before may have failed
            refuse_policy_that_cannot_act(track.policy, attempt, again=again)
        if track.are_distributed:
            attempt = self.exchange.localise(attempt)
        if again:
            self._take_losses()  # the step has its loss, that of the first evaluation
            self._evaluate_again(track, attempt)
            return
        self.guard.step += 1
        losses = self.undecided = self._take_losses()
        step, update = self.count, track.count
        self.count += 1
        track.count += 1
        track.latest_step = step
        self.finish(track)
        if self.tracks.is_first(track) and self.replicas.is_due(update):
            self._compare_replicas(update, step)
        track.current = self.guard.run("measuring", self._measure, track, attempt, step, update, losses)
        if self.exchange.is_needed(attempt):
            self._exchange(track, attempt)
        if track.current is not None:
            self._look_closer(track, track.current)
            self._look_up_owners(track, attempt)
        if self.recorder is not None:
            self.guard.run("black box: steps", self._record, self.recorder, step, attempt, track.current)
        self._decide(track, attempt, track.current, self.undecided)
        self.undecided = None

    def _record(self, recorder: FlightRecorder, step: int, attempt: Attempt, current: Measurement | None) -> None:
        """Have the black box keep a step; one that has failed with everything that it needs, if the update can wait."""
        has_failed = current is not None and self._origins.may_wait_for(current)
        gradients = list(zip(attempt.parameters, attempt.gradients, strict=True)) if has_failed else None
        recorder.note_step(step, attempt.optimizer, _scale_of(attempt), gradients)

    @observing("new parameters")
    def _name_newcomers(self, attempt: Attempt) -> None:
        """Warn of parameters that came into the model after it was watched: they have no column in the table."""
        names = self.survey.newcomers(attempt.parameters)
        if names:
            self.warn_once(
                f"newcomers {names}",
                f"{names_of(names)} came into the model after watch() was called, so no figure and no finding is about "
                "them. Call gradwatch.watch() again after a change of the model.",
            )

    @observing("clipped total")
    def _measure_clipped(self, attempt: Attempt) -> None:
        """Measure what the clipping has left, which the ranks exchange whether their own clipping has failed or not."""
        if self.exchange.sums is None:
            return
        track = self.tracks.get(attempt.optimizer)
        policy, current = (self.policy, None) if track is None else (track.policy, track.current)
        self.exchange.measure_clipped(self.exchange.localise(attempt), policy, current)

    @observing("ranks")
    def _end_exchange(self) -> None:
        """Forget what the ranks have exchanged about this update."""
        self.exchange.end()

    def _compare_replicas(self, update: int, step: int) -> None:
        """Compare the replicas of the model, and hand on what is wrong with them."""
        finding = self.guard.run("replicas", self.replicas.look, update, step)
        if finding is not None:
            self.guard.run("replicas", self.processor.add_finding, finding)

    def _exchange(self, track: OptimizerTrack, attempt: Attempt) -> None:
        """Exchange the figures of an update with the other ranks; from now on they are those of all ranks."""
        self.exchange.add_up(track, attempt, track.current, self.undecided or ())
        if track.current is not None and not self.guard.run(
            "figures of all ranks", self.exchange.deliver, track.current
        ):
            track.current = None
        for each in self.tracks:
            if (shown := each.take_shown()) is not None:
                self.guard.run("history", self.processor.add_update_ratios, shown)
        self._send_those_behind()

    def held_columns(self) -> frozenset[int]:
        """Return the columns that the optimizers hold which have stepped."""
        return frozenset(column for track in self.tracks for column in track.watched)

    def finish(self, track: OptimizerTrack, is_made: bool = True) -> None:
        """Send the figures of an update to the host, and process those that have arrived."""
        current, track.current = track.current, None
        if current is None:
            return
        if self._finder is not None:
            self.guard.run("finding the loss", self._finder.leave, track.watched, track.index)
        origin, track.origin = track.origin, None
        if is_made:
            self.guard.run("update ratios", self._follow_update, track, current)
            track.last_made = track.last_made if current.is_skipped else current
            if current.made_nonfinite():
                origin = self.guard.run("origin", self._origins.note_update, current, self._last_updates) or origin
        self._behind.append(SentStep(track, current, origin))
        self._send_those_behind(at_once=len(self._behind) > MOST_BEHIND)

    def _send(self, sent: SentStep) -> None:
        """Send the figures of an update to the host, and process those that have arrived."""
        self.guard.run("copying", sent.measurement.send)
        self.guard.run("processing", self.processor.add, sent)

    def _send_those_behind(self, *, at_once: bool = False) -> None:
        """Send, in their order, the updates that wait for no other rank.

        Args:
            at_once: also one that waits; its update ratios are in the history later, and no detector sees them.
        """
        while self._behind and (at_once or self._behind[0].track.awaiting is not self._behind[0].measurement):
            sent = self._behind.popleft()
            if sent.track.awaiting is sent.measurement:
                sent.track.awaiting, sent.track.shown = None, sent.measurement
            self._send(sent)

    def wait_for_next(self, track: OptimizerTrack) -> None:
        """Send the figures of an update whose making nobody reports: it is seen at the next one."""
        track.earlier = track.current
        self.finish(track, is_made=False)

    def drain(self, *, at_once: bool = True) -> None:
        """Finish what is under way, and wait for the device.

        Args:
            at_once: also healthy updates that wait for the other ranks to say how far they moved the weights.
        """
        for track in self.tracks:
            self.finish(track)
        self._send_those_behind(at_once=at_once or not all(sent.measurement.is_finite for sent in self._behind))
        self.guard.run("processing", self.processor.drain)

    def release(self) -> None:
        """Hold the model no longer; what was learned of it stays. Nothing is under way, and nothing will be."""
        self.activations = self._finder = None
        self.survey.release()
        self.replicas.release()
        for optimizer, track in self.tracks.by_optimizer.items():
            take_flag_back(track, optimizer)
        for track in self.tracks:
            track.release()

    @property
    def finished(self) -> int:
        """Return how many steps are over: of those that another thread is making nothing is known yet."""
        return self.count - sum(track.current is not None for track in self.tracks)

    def restore(self, count: int, tracks: Sequence[TrackState]) -> None:
        """Go on from a cut run.

        Raises:
            ValueError: where one of ``tracks`` cannot be read.
        """
        self.tracks.restore(tracks)
        self.count = count

    def _make_track(self, index: int) -> OptimizerTrack:
        diagnosis = Diagnosis(
            self.layers,
            self._thresholds,
            clips=self.policy is not None,
            guard=self.guard,
            losses=self._origins.losses,
        )
        return OptimizerTrack(index, diagnosis, None if self.policy is None else self.policy.renew())

    def _retire(self, track: OptimizerTrack) -> None:
        self.finish(track)
        self.processor.retire(track)

    def _order_of_loop(self, track: OptimizerTrack) -> LoopOrder:
        if self._finder is None:
            return LoopOrder()
        judge = self._finder.clearing.judge
        return self.guard.run("order of the loop", judge, track.watched, track.index) or LoopOrder()

    def _was_changed_while_scaled(self, attempt: Attempt) -> bool:
        """Return whether the loop changed gradients before ``unscale_``, or those that a fused optimizer unscales."""
        optimizer = attempt.optimizer
        if optimizer is None or optimizer not in self.changed_while_scaled:
            return attempt.scale is not None
        self.changed_while_scaled.discard(optimizer)
        return True

    def note_unscaling(self, optimizer: Optimizer) -> None:
        """Note that a scaler is about to unscale the gradients of ``optimizer``: has the loop changed them before?"""
        parameters = parameters_of(optimizer)
        if self._backward.has_changed({column for p in parameters if (column := self.layers.column(p)) is not None}):
            self.changed_while_scaled.add(optimizer)

    def _found_losses(self, track: OptimizerTrack) -> list[Tensor | float]:
        """Return the losses of the coming update that its backward passes have shown."""
        if self._finder is None:
            return []
        return [*(self.guard.run("finding the loss", self._finder.take, track.watched, track.index) or ())]

    def _take_losses(self) -> list[Tensor | float]:
        """Return the losses that somebody has handed over for the coming step; forget them here."""
        taken = self.losses or [*self.found_losses]
        self.losses, self.found_losses = [], []
        return taken

    @without_collecting
    def _measure(
        self, track: OptimizerTrack, attempt: Attempt, step: int, update: int, losses: Sequence[Tensor | float]
    ) -> Measurement:
        order = self._order_of_loop(track)
        losses = self.undecided = [*losses] or self._found_losses(track)
        self.saw_loss = self.saw_loss or bool(losses)
        columns, gradients = self._gradients_of(track, attempt)
        is_changed, at_end = self.guard.run("clipping of the loop", self._compare_with_backward, track) or (False, None)
        plan = StepPlan(
            step=step,
            optimizer=track.index,
            update=update,
            sampled=self._cadence.is_sampled(update),
            figures=self._cadence.figures(update),
            entries=self._cadence.histograms and self._cadence.is_logged(update),
            has_scaler=attempt.has_scaler,
            already_clipped=is_changed and at_end is None,
            uncleared=order.uncleared,
            emptied=order.emptied,
            misplaced_clips=0 if track.policy is not None else order.misplaced,
            clips_late=order.is_late,
            was_changed_while_scaled=is_changed and self._was_changed_while_scaled(attempt),
            was_changed_by_hand=not track.is_settled and _are_changed_in_place(gradients),
            learning_rates=attempt.learning_rates,
        )
        scale_at_end = None if at_end is None else _scale_at_end(attempt)
        return Measurement(
            plan,
            self.layers,
            columns,
            gradients,
            losses,
            attempt.scale,
            at_end,
            scale_at_end,
            is_part=attempt.is_part,
        )

    def _gradients_of(self, track: OptimizerTrack, attempt: Attempt) -> tuple[GradientColumns, list[Tensor]]:
        """Return the gradients to measure, and their columns."""
        if attempt.is_part:  # those that other ranks have count as well; what this one lacks is empty
            return track.all_columns(self.layers), _filled(attempt)
        gradients = [gradient for gradient in attempt.gradients if gradient is not None]
        return track.columns(attempt.gradients, self.layers), gradients

    def _compare_with_backward(self, track: OptimizerTrack) -> tuple[bool, EndMagnitudes | None]:
        """Return whether the loop changed its gradients since the backward pass, and what they were where it ended."""
        is_changed, at_end = self._backward.before_change(track.watched, has_cycled=track.is_settled)
        if is_changed and at_end is None and track.policy is None:
            self._warn_of_figures_after_clipping()
        track.is_settled = track.is_settled or self._backward.settle(track.watched)
        return is_changed, at_end

    def _look_closer(self, track: OptimizerTrack, current: Measurement) -> None:
        """Measure what is beyond norms; each block by itself, so that one fault leaves the others their figures."""
        earlier, track.earlier = track.earlier, None
        self.guard.run("figures", self._measure_figures, current, earlier)
        self.exchange.exchange_layers(current)
        track.origin = self.guard.run(
            "origin",
            self._origins.note_step,
            current,
            self.undecided or (),
            was_seen_whole=track.is_settled,
            begins_to_be_sick=track.begins_to_be_sick,
            updates=self._last_updates,
        )
        self.guard.run("activations", self._measure_activations, track, current)

    def _look_up_owners(self, track: OptimizerTrack, attempt: Attempt) -> None:
        """Look up who updates what, at a few updates of a run."""
        if track.current is None or attempt.optimizer is None:
            return
        update = track.current.plan.update
        if self.survey.is_due(update):
            is_first = self.tracks.is_first(track)  # what belongs to nobody is looked up once, not for each optimizer
            followed = list(self.tracks.by_optimizer)
            look = self.survey.look
            ownership = self.guard.run(
                "owners", look, update, attempt.optimizer, attempt.parameters, followed, with_unowned=is_first
            )
            if ownership is not None:
                track.current.add_ownership(ownership)
        elif self.survey.is_due(update + 1):
            self.guard.run("owners", self.survey.expect, attempt.optimizer, attempt.parameters)

    def _last_updates(self) -> list[LastUpdate]:
        """Return the latest update of each optimizer that was made of a finite loss. Waits for the device."""
        made = [(optimizer, track.last_made) for optimizer, track in self.tracks.by_optimizer.items()]
        return [
            LastUpdate(optimizer, last.plan.step, last.gradient_norms(), last.plan.learning_rate)
            for optimizer, last in made
            if last is not None and (last.loss is None or math.isfinite(last.loss))
        ]

    @without_collecting
    def _measure_figures(self, current: Measurement, earlier: Measurement | None) -> None:
        current.measure_figures(earlier)

    @without_collecting
    def _measure_activations(self, track: OptimizerTrack, current: Measurement) -> None:
        """Take those of this step's forward passes, if it was sampled; listen on if the next of any optimizer will be.

        The forward passes of two optimizers that take turns may come in any order, so one listens for both.
        """
        if self.activations is None:
            return
        if current.plan.sampled:
            current.add_activations(self.activations.take(track.watched) or {})
        in_use = (each for each in self.tracks if self.count - each.latest_step <= IN_USE)
        if any(self._cadence.is_sampled(each.count) for each in in_use):
            self.activations.begin()
        else:
            self.activations.remove()

    @without_collecting
    def _follow_update(self, track: OptimizerTrack, current: Measurement) -> None:
        if not current.is_part:
            current.follow_update()
            return
        rows = current.update_rows()
        if rows is not None and current.is_of_all_ranks:
            track.update_rows, track.awaiting = rows, current
        elif rows is not None:
            current.take_update_sums(rows)

    def _decide(
        self,
        track: OptimizerTrack,
        attempt: Attempt,
        current: Measurement | None,
        losses: Sequence[Tensor | float],
    ) -> None:
        """Skip the update, raise, or clip. Each acts last, so that whatever fails before has changed nothing."""
        if current is None:
            act_plainly(self, track, attempt, losses)
            return
        is_refused = self.guard.run("finiteness", self._is_refused, track, attempt, current)
        if is_refused is None:
            act_plainly(self, track, attempt, losses)
        elif is_refused:
            self._refuse(track, attempt, current)
        elif (policy := self._policy_of(track)) is not None:
            self._follow_policy(policy, track, attempt, current)

    def _follow_policy(self, policy: Policy, track: OptimizerTrack, attempt: Attempt, current: Measurement) -> None:
        """Clip, leave the update out, or keep the weights so that it can be shortened."""
        if policy.is_spike is not None:
            is_shared = current.has_mean_loss or not self.exchange.has_replicas()
            is_spike = self.guard.run(
                "spikes", leaves_spike_out, policy.is_spike, track, attempt, current, has_loss=is_shared
            )
            if is_spike is None:
                act_plainly(self, track, attempt, self.undecided or ())
                return
            if is_spike:
                current.mark_skipped()
                self._leave_out(attempt)
                return
        self._clip_(track, attempt, current)
        if policy.limit_update_ is not None:
            keep_weights(track, attempt)

    def end_update(self, optimizer: Optimizer) -> None:
        """Shorten the update that ``optimizer`` has made, where the policy asks for that; let the next one be made.

        Raises:
            UnwatchableError: where it keeps weights of its own, which it would go back to.
        """
        track = self.tracks.get(optimizer)
        if track is None:
            return
        take_flag_back(track, optimizer)
        self.guard.run("shortening an update", shorten_update, track, optimizer)

    def _is_refused(self, track: OptimizerTrack, attempt: Attempt, current: Measurement) -> bool:
        """Return whether no update is to be made; waits for the device where the user asked for that."""
        if self.on_nonfinite == "report" or attempt.has_scaler:
            return False  # a scaler that finds no gradients ends the run with an error
        if not self._is_finite(current):
            self.refused_because = "it was not finite"
            return True
        return self.leaves_outliers_out and self._is_outlier(track, current)

    def _is_finite(self, current: Measurement) -> bool:
        if self.exchange.sums is not None:
            return self.exchange.is_finite()
        return current.gradients_are_finite if self.exchange.has_replicas() else current.is_finite

    def _is_outlier(self, track: OptimizerTrack, current: Measurement) -> bool:
        """Return whether the gradients are far larger than all lately; by the total that all ranks have in common."""
        total = float(current.totals()[0])
        times = track.outliers.examine(total)
        if times is not None:
            self.refused_because = f"its gradient norm was {total:.3g}, {times:.3g} times the largest of lately"
        return times is not None

    def _refuse(self, track: OptimizerTrack, attempt: Attempt, current: Measurement) -> None:
        current.mark_skipped()
        self.last_refused = current.plan.step
        if self.recorder is not None:
            self.recorder.note_left_out()
        if self.on_nonfinite == "raise":
            self.finish(track)
            self._send_those_behind(at_once=True)
            self.guard.run("processing", self.processor.drain)
            self.guard.run("notes of other ranks", self.processor.take_last_notes)
            error = self.processor.error_of(current.plan.step)
            self.undecided = None
            raise error
        self._leave_out(attempt)

    def _leave_out(self, attempt: Attempt) -> None:
        """Take the gradients away, so that the update moves nothing. The plain way shares nothing with this one."""
        for parameter in attempt.parameters:
            parameter.grad = None

    @otherwise("clipping", clip_plainly)
    def _clip_(self, track: OptimizerTrack | None, attempt: Attempt, current: Measurement | None) -> None:
        if track is not None and track.policy is not None and current is not None:
            current.clip_(track.policy.clip_, attempt.optimizer)
            if self.exchange.partial:
                self.exchange.write_back()

    def _evaluate_again(self, track: OptimizerTrack, attempt: Attempt) -> None:
        """Clip the gradients of a later evaluation within one update, or raise."""
        gradients = [gradient for gradient in attempt.gradients if gradient is not None]
        if self.exchange.is_needed(attempt):
            self.exchange.add_up(track, attempt, None, ())
            act_plainly(self, track, attempt, (), again=True)
            return
        policy = self._policy_of(track)
        if not gradients or (policy is None and self.on_nonfinite != "raise"):
            return
        magnitudes = statistics.measure(gradients, attempt.scale)
        if self.on_nonfinite == "raise" and not math.isfinite(magnitudes.total):
            columns = track.columns(attempt.gradients, self.layers)
            self._refuse_nonfinite(columns, magnitudes)
        if policy is not None:
            magnitudes = statistics.without_overflow(gradients, magnitudes)
            parameters = track.columns(attempt.gradients, self.layers).parameters
            policy.clip_(gradients, magnitudes, parameters, attempt.optimizer)

    def _policy_of(self, track: OptimizerTrack) -> Policy | None:
        """Return how to clip; None where nobody asked for that, or where it would make replicas differ."""
        return track.policy if self.exchange.may_clip else None

    def _refuse_nonfinite(self, columns: GradientColumns, magnitudes: statistics.Magnitudes) -> None:
        """
        Raises:
            NonFiniteError: where an entry is not finite; the norm alone may have overflowed.
        """
        if not bool(magnitudes.nonfinite.any()):
            return
        counts = columns.spread(magnitudes.nonfinite.numpy(force=True).astype(float), absent=0)
        sick = np.flatnonzero(counts).tolist()
        layer = self.layers.names[max(sick, key=lambda column: self.layers.depth[column])] if sick else ""
        step = self.count - 1
        raise NonFiniteError(
            layer, step, f"a later evaluation of the closure of step {step} made NaN or Inf in {layer}."
        )

    def warn_once(self, about: str, message: str) -> None:
        """Log ``message``, unless something was logged ``about`` the same."""
        if about not in self._warned_about:
            self._warned_about.add(about)
            logger.warning("gradwatch: %s", message)

    def _warn_of_figures_after_clipping(self) -> None:
        """Warn where the gradients before the loop's own clipping are not known.

        In a process group nobody is warned: a loop that averages over ranks by itself changes its gradients, too.
        """
        if not has_process_group():
            self.warn_once(
                "clipped before",
                f"the gradients of step {self.count - 1} were already clipped, or changed otherwise, between "
                "backward() and step(); its figures are those after (history['already_clipped']). "
                "Use clip=… here instead.",
            )
