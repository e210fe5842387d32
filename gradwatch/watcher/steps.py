"""The half of the walk beside the device: an update is about to be made; measure it, then clip, skip or raise."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.clip import Policy
from gradwatch.explain.update_origin import LastUpdate
from gradwatch.findings import NonFiniteError, Thresholds
from gradwatch.hooks.clearing import LoopOrder
from gradwatch.hooks.guard import Guard, otherwise, without_collecting
from gradwatch.hooks.logger import logger
from gradwatch.hooks.losses import LossFinder
from gradwatch.hooks.optimizers import parameters_of
from gradwatch.measure import statistics
from gradwatch.measure.activation_figures import Activations
from gradwatch.measure.backward import BackwardPass, EndMagnitudes
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement, StepPlan
from gradwatch.watcher import plain_acts
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.cadence import Cadence
from gradwatch.watcher.diagnosis import Diagnosis
from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.options import OnNonFinite
from gradwatch.watcher.origin_finder import OriginFinder
from gradwatch.watcher.ownership_survey import OwnershipSurvey
from gradwatch.watcher.report_processor import ReportProcessor, SentStep
from gradwatch.watcher.state import TrackState

__all__ = ["Steps", "begin_plainly"]


def begin_plainly(steps: Steps, attempt: Attempt, *, again: bool = False) -> None:
    """Act on an update whose step could not be begun: count it if nobody has, then skip it, raise or clip."""
    losses = _losses_of_failed_step(steps, again=again)
    track = steps._by_hand if attempt.optimizer is None else steps._tracks.get(attempt.optimizer)
    _act_plainly(steps, track, attempt, losses, again=again)


def _act_plainly(
    steps: Steps,
    track: OptimizerTrack | None,
    attempt: Attempt,
    losses: Sequence[Tensor | float],
    *,
    again: bool = False,
) -> None:
    """Skip an update, raise or clip, without any of our measurements."""
    current = None if track is None else track.current
    may_refuse = not again or steps.on_nonfinite == "raise"  # a later evaluation cannot be skipped
    if may_refuse and plain_acts.must_not_update(attempt, losses, steps.on_nonfinite):
        if current is None:
            steps.processor.skipped_steps += not again
        else:
            _note(steps, current.mark_skipped)
        if steps.on_nonfinite == "raise":
            raise _plain_error(steps, attempt)
        for parameter in attempt.parameters:
            parameter.grad = None
    else:
        _clip_plainly(steps, track, attempt, current)


def _clip_plainly(steps: Steps, track: OptimizerTrack | None, attempt: Attempt, current: Measurement | None) -> None:
    """Clip as torch does; a policy of the user's own may fail at that, too, and then nothing is clipped."""
    policy = steps.policy if track is None else track.policy
    if policy is None:
        return
    if current is not None:
        _note(steps, current.forget_clipped_total)
    try:
        plain_acts.clip_attempt_plainly_(attempt, policy)
    except Exception as error:
        steps.warn_once(
            "unclipped",
            f"clip={policy.description} failed ({type(error).__name__}: {error}): the gradients of step "
            f"{steps.count - 1} are not clipped, and those of later steps neither where it fails again.",
        )


def _note(steps: Steps, note: Callable[[], None]) -> None:
    """Note a plain act in the figures of its step; the act does not depend on it."""
    try:
        note()
    except Exception:
        steps.guard.note_fault("noting a plain act")


def _plain_error(steps: Steps, attempt: Attempt) -> NonFiniteError:
    sick, step = plain_acts.first_nonfinite(attempt), steps.count - 1
    names = [name for name, tensor in zip(steps.layers.names, steps.layers.tensors, strict=True) if tensor is sick]
    where = f"the gradient of {names[0]}" if names else "a gradient or the loss"
    return NonFiniteError("".join(names), step, f"{where} is NaN or Inf at step {step}.")


def _losses_of_failed_step(steps: Steps, *, again: bool) -> Sequence[Tensor | float]:
    """Return the losses of the step that failed, which is counted from here on."""
    if again:
        steps.losses = []
        return ()
    losses, steps.undecided = steps.undecided, None
    if losses is None:  # it failed before it was counted
        losses = steps.losses or [*steps.found_losses]
        steps.losses, steps.found_losses = [], []
        steps.count += 1
        steps.guard.step += 1
    return losses


def _scale_at_end(attempt: Attempt) -> Tensor | None:
    """Return the () loss scale that the gradients held where their backward pass ended."""
    if attempt.scaler is None or not attempt.has_scaler:
        return None
    return _torch.scale_of(attempt.scaler).to(attempt.parameters[0].device, non_blocking=True)


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
        guard: takes the faults of what only observes.

    Attributes:
        layers, processor, policy, on_nonfinite, activations, survey, guard: as given.
        count: of steps so far.
        losses: observed for the coming step.
        found_losses: found by an integration for the coming step; they count where none was observed.
        changed_while_scaled: optimizers whose gradients the loop has changed before a scaler unscaled them.
        undecided: the losses of a step that was counted, but neither clipped nor skipped yet; None between steps.
        saw_loss: whether any step had one.
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
        guard: Guard,
    ) -> None:
        self.layers, self.processor, self.guard = layers, processor, guard
        self.policy, self.on_nonfinite = policy, on_nonfinite
        self.count = 0
        self.losses: list[Tensor | float] = []
        self.found_losses: list[Tensor] = []
        self.changed_while_scaled: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.undecided: list[Tensor | float] | None = None
        self.saw_loss = False
        self._backward, self._cadence, self._thresholds = backward, cadence, thresholds
        self._origins, self.activations, self._finder = origins, activations, finder
        self.survey = survey
        self._tracks: weakref.WeakKeyDictionary[Optimizer, OptimizerTrack] = weakref.WeakKeyDictionary()
        self._by_hand: OptimizerTrack | None = None  # of a loop without an optimizer
        self._all_tracks: list[OptimizerTrack] = []  # those of optimizers that are gone among them, until they retire
        self._tracks_made = 0
        self._restored: deque[TrackState] = deque()
        self._warned_about: set[str] = set()

    def expect(self, optimizers: Sequence[Optimizer]) -> None:
        """Number ``optimizers`` in the order given, whichever steps first."""
        for optimizer in optimizers:
            self.track_of(optimizer)

    def track_of(self, optimizer: Optimizer | None) -> OptimizerTrack:
        """Return what lives across the updates of ``optimizer``, None for a loop without one; made at first sight."""
        return self.known(optimizer) or self._new_track(optimizer)

    def known(self, optimizer: Optimizer | None) -> OptimizerTrack | None:
        """Return the same, None where it was not seen yet."""
        return self._by_hand if optimizer is None else self._tracks.get(optimizer)

    @otherwise("beginning a step", begin_plainly)
    def begin(self, attempt: Attempt, *, again: bool = False) -> None:
        """Measure an update that is about to be made; then skip it, raise or clip, as the user asked.

        Args:
            attempt: the update.
            again: its closure was evaluated once more (LBFGS): it is counted and measured already.

        Raises:
            NonFiniteError: under ``on_nonfinite="raise"``.
        """
        track = self.track_of(attempt.optimizer)
        if again:
            self._take_losses()  # the step has its loss, that of the first evaluation
            self._evaluate_again(track, attempt)
            return
        self.guard.step += 1
        losses = self.undecided = self._take_losses()
        step, update = self.count, track.count
        self.count += 1
        track.count += 1
        self.finish(track)
        track.current = self.guard.run("measuring", self._measure, track, attempt, step, update, losses)
        if track.current is not None:
            self._look_closer(track, track.current)
            self._look_up_owners(track, attempt)
        self._decide(track, attempt, track.current, self.undecided)
        self.undecided = None

    def held_columns(self) -> frozenset[int]:
        """Return the columns that the optimizers hold which have stepped."""
        return frozenset(column for track in self._all_tracks for column in track.watched)

    def finish(self, track: OptimizerTrack, is_made: bool = True) -> None:
        """Send the figures of an update to the host, and process those that have arrived."""
        current, track.current = track.current, None
        if current is None:
            return
        if self._finder is not None:
            self.guard.run("finding the loss", self._finder.leave, track.watched, track.index)
        origin, track.origin = track.origin, None
        if is_made:
            self.guard.run("update ratios", self._follow_update, current)
            track.last_made = track.last_made if current.is_skipped else current
            if current.made_nonfinite():
                origin = self.guard.run("origin", self._origins.note_update, current, self._last_updates) or origin
        self.guard.run("copying", current.send)
        self.guard.run("processing", self.processor.add, SentStep(track, current, origin))

    def wait_for_next(self, track: OptimizerTrack) -> None:
        """Send the figures of an update whose making nobody reports: it is seen at the next one."""
        track.earlier = track.current
        self.finish(track, is_made=False)

    def drain(self) -> None:
        """Finish what is under way, and wait for the device."""
        for track in self._all_tracks:
            self.finish(track)
        self.guard.run("processing", self.processor.drain)

    def state(self) -> tuple[TrackState, ...]:
        """Return what is known of each optimizer, in order of first sight; those that others replaced are forgotten."""
        return (*(track.state() for track in self._all_tracks), *self._restored)

    def restore(self, count: int, tracks: Sequence[TrackState]) -> None:
        """Go on from a cut run; optimizers take their own in the order of first sight.

        Raises:
            ValueError: where one of ``tracks`` cannot be read.
        """
        for state in tracks:  # some may be taken much later, and are refused now
            self._make_track().restore(state)
        self.count = count
        self._restored = deque(tracks)
        for track in self._all_tracks:
            if self._restored:
                track.restore(self._restored.popleft())

    def _new_track(self, optimizer: Optimizer | None) -> OptimizerTrack:
        self._retire_gone()
        track = self._make_track()
        if self._restored:
            track.restore(self._restored.popleft())
        if optimizer is None:
            self._by_hand = track
        else:
            self._tracks[optimizer] = track
        self._tracks_made += 1
        self._all_tracks.append(track)
        self.processor.follow(track)
        return track

    def _make_track(self) -> OptimizerTrack:
        diagnosis = Diagnosis(
            self.layers,
            self._thresholds,
            clips=self.policy is not None,
            guard=self.guard,
            losses=self._origins.losses,
        )
        return OptimizerTrack(self._tracks_made, diagnosis, None if self.policy is None else self.policy.renew())

    def _retire_gone(self) -> None:
        """Let go of the tracks of optimizers that are gone."""
        living = {id(track) for track in (*self._tracks.values(), self._by_hand)}
        for track in [track for track in self._all_tracks if id(track) not in living]:
            self.finish(track)
            self._all_tracks.remove(track)
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
        track.use(attempt.parameters, self.layers)
        order = self._order_of_loop(track)
        losses = self.undecided = [*losses] or self._found_losses(track)
        self.saw_loss = self.saw_loss or bool(losses)
        columns = track.columns(attempt.gradients, self.layers)
        gradients = [gradient for gradient in attempt.gradients if gradient is not None]
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
            was_changed_while_scaled=is_changed and self._was_changed_while_scaled(attempt),
            learning_rates=attempt.learning_rates,
        )
        scale_at_end = None if at_end is None else _scale_at_end(attempt)
        return Measurement(plan, self.layers, columns, gradients, losses, attempt.scale, at_end, scale_at_end)

    def _compare_with_backward(self, track: OptimizerTrack) -> tuple[bool, EndMagnitudes | None]:
        """Return whether the loop changed its gradients since the backward pass, and what they were where it ended."""
        is_changed, at_end = self._backward.before_change(track.watched, has_cycled=track.is_settled)
        if is_changed:
            self._warn_that_the_loop_clips(track.policy, is_seen_past=at_end is not None)
        track.is_settled = track.is_settled or self._backward.settle(track.watched)
        return is_changed, at_end

    def _look_closer(self, track: OptimizerTrack, current: Measurement) -> None:
        """Measure what is beyond norms; each block by itself, so that one fault leaves the others their figures."""
        earlier, track.earlier = track.earlier, None
        self.guard.run("figures", self._measure_figures, current, earlier)
        track.origin = self.guard.run(
            "origin",
            self._origins.note_step,
            current,
            was_seen_whole=track.is_settled,
            begins_to_be_sick=track.begins_to_be_sick,
            updates=self._last_updates,
        )
        self.guard.run("activations", self._measure_activations, current)

    def _look_up_owners(self, track: OptimizerTrack, attempt: Attempt) -> None:
        """Look up who updates what, at a few updates of a run."""
        if track.current is None or attempt.optimizer is None or not self.survey.is_due(track.current.plan.update):
            return
        is_first = track is self._all_tracks[0]  # what belongs to nobody is looked up once, not for each optimizer
        ownership = self.guard.run(
            "owners",
            self.survey.look,
            track.current.plan.update,
            attempt.optimizer,
            list(self._tracks),
            with_unowned=is_first,
        )
        if ownership is not None:
            track.current.add_ownership(ownership)

    def _last_updates(self) -> list[LastUpdate]:
        """Return the latest update of each optimizer that was made of a finite loss. Waits for the device."""
        made = [(optimizer, track.last_made) for optimizer, track in self._tracks.items()]
        return [
            LastUpdate(optimizer, last.plan.step, last.gradient_norms(), last.plan.learning_rate)
            for optimizer, last in made
            if last is not None and (last.loss is None or math.isfinite(last.loss))
        ]

    @without_collecting
    def _measure_figures(self, current: Measurement, earlier: Measurement | None) -> None:
        current.measure_figures(earlier)

    @without_collecting
    def _measure_activations(self, current: Measurement) -> None:
        """Take those of this step's forward pass, if it was sampled; from now on those of the next, if it will be."""
        if self.activations is None:
            return
        if current.plan.sampled:
            current.add_activations(self.activations.take() or {})
        if self._cadence.is_sampled(current.plan.update + 1):
            self.activations.begin()

    @without_collecting
    def _follow_update(self, current: Measurement) -> None:
        current.follow_update()

    def _decide(
        self,
        track: OptimizerTrack,
        attempt: Attempt,
        current: Measurement | None,
        losses: Sequence[Tensor | float],
    ) -> None:
        """Skip the update, raise, or clip. Each acts last, so that whatever fails before has changed nothing."""
        if current is None:
            _act_plainly(self, track, attempt, losses)
            return
        is_refused = self.guard.run("finiteness", self._is_refused, attempt, current)
        if is_refused is None:
            _act_plainly(self, track, attempt, losses)
        elif is_refused:
            self._refuse(track, attempt, current)
        elif track.policy is not None:
            self._clip_(track, attempt, current)

    def _is_refused(self, attempt: Attempt, current: Measurement) -> bool:
        """Return whether no update is to be made; waits for the device where the user asked for that."""
        if self.on_nonfinite == "report" or attempt.has_scaler:
            return False  # a scaler that finds no gradients ends the run with an error
        return not current.is_finite

    def _refuse(self, track: OptimizerTrack, attempt: Attempt, current: Measurement) -> None:
        current.mark_skipped()
        if self.on_nonfinite == "raise":
            self.finish(track)
            self.guard.run("processing", self.processor.drain)
            error = self.processor.error_of(current.plan.step)
            self.undecided = None
            raise error
        for parameter in attempt.parameters:
            parameter.grad = None

    @otherwise("clipping", _clip_plainly)
    def _clip_(self, track: OptimizerTrack | None, attempt: Attempt, current: Measurement | None) -> None:
        if track is not None and track.policy is not None and current is not None:
            current.clip_(track.policy.clip_)

    def _evaluate_again(self, track: OptimizerTrack, attempt: Attempt) -> None:
        """Clip the gradients of a later evaluation within one update, or raise."""
        gradients = [gradient for gradient in attempt.gradients if gradient is not None]
        if not gradients or (track.policy is None and self.on_nonfinite != "raise"):
            return
        magnitudes = statistics.measure(gradients, attempt.scale)
        if self.on_nonfinite == "raise" and not math.isfinite(magnitudes.total):
            columns = track.columns(attempt.gradients, self.layers)
            self._refuse_nonfinite(columns, magnitudes)
        if track.policy is not None:
            track.policy.clip_(gradients, magnitudes)

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

    def _warn_that_the_loop_clips(self, policy: Policy | None, *, is_seen_past: bool) -> None:
        """Warn where both clip, and where the gradients before the loop's own clipping are not known."""
        if policy is not None:
            self.warn_once(
                "both clip",
                "this loop changes its gradients between backward() and step() (clip_grad_norm_?), and "
                f"clip={policy.description} clips what is left. Keep one of them.",
            )
        elif not is_seen_past:
            self.warn_once(
                "clipped before",
                f"the gradients of step {self.count - 1} were already clipped, or changed otherwise, between "
                "backward() and step(); its figures are those after (history['already_clipped']). "
                "Use clip=… here instead.",
            )
