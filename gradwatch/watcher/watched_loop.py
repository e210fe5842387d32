"""A training loop as gradwatch sees it: what integrations call. ``Watcher`` is its public face."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.clip import policy_of
from gradwatch.event_files.run import Coverage
from gradwatch.explain.last_words import last_words
from gradwatch.findings import Finding, StateError, Thresholds
from gradwatch.hooks.clearing import LoopOrder
from gradwatch.hooks.clipping_calls import clipped_parameters, follow_clipping
from gradwatch.hooks.guard import Guard, UnwatchableError, observing, otherwise
from gradwatch.hooks.logger import logger
from gradwatch.hooks.losses import FoundLoss, LossFinder, follow_backward, roots_of_backward
from gradwatch.hooks.optimizers import StepHooks, keep_alive, learning_rates_of, parameters_of, updated_by
from gradwatch.hooks.scalers import follow_scale, follow_scaler_step, follow_unscale, scaler_call
from gradwatch.measure.activation_figures import Activations
from gradwatch.measure.backward import BackwardPass
from gradwatch.measure.layers import Layers
from gradwatch.measure.paths import PathFinder
from gradwatch.recover.black_box import black_box_of
from gradwatch.recover.flight_recorder import FlightRecorder
from gradwatch.recover.rewind import Rewind
from gradwatch.sinks import Sink
from gradwatch.sinks.memory import History
from gradwatch.sinks.tags import logged_figures
from gradwatch.watcher import closing_words
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.cadence import Cadence
from gradwatch.watcher.environment import environment_of
from gradwatch.watcher.open_loops import open_loops, will_be_closed
from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.options import DEFAULTS, OnNonFinite, Options, refuse_bad_options
from gradwatch.watcher.origin_finder import OriginFinder
from gradwatch.watcher.ownership_survey import OwnershipSurvey
from gradwatch.watcher.plain_loop import before_update_plainly, observe_loss_plainly, take_in_plainly
from gradwatch.watcher.rank_exchange import RankExchange
from gradwatch.watcher.rank_notes import RankNotes
from gradwatch.watcher.recovery import Recovery
from gradwatch.watcher.replica_check import ReplicaCheck
from gradwatch.watcher.report_processor import ReportProcessor
from gradwatch.watcher.sink_dispatcher import SinkDispatcher
from gradwatch.watcher.state import WatcherState, of_another_model, unreadable, what_differs
from gradwatch.watcher.steps import Steps
from gradwatch.watcher.turns import Turns, in_turn
from gradwatch.watcher.unlearned import notes_on

__all__ = ["WatchedLoop"]


class WatchedLoop:
    """The updates of a loop from the hooks to the sinks; complete, and attached, once it is made.

    Args:
        layers: the table.
        sinks: take rows and findings.
        options: the keywords that every way of watching shares.
        models: {name: module}, as watched; empty for bare tensors.
        optimizers: those to hook; None finds those that own a watched parameter as they step.
        scaler: decides about updates, if there is one.
        trace_nonfinite: observe what every module is given and returns.
        sees_gradients: False where an integration calls ``before_update`` itself, also for what a scaler leaves out.
        measures_ends: also measure where a backward pass ends, for loops that clip by themselves; False where no
            backward pass is expected.
        advises: whether ``close`` says what the loop should have handed over; not where nobody is to change the loop.
        is_dense_at_first: write more rows of the first updates (``Cadence``).
        adds_losses: the losses that the backward passes of an update begin at are shares of one: their sum counts.

    Attributes:
        layers, scaler: as given.
        scalers: those that were found, by optimizer.
        guard: takes the faults of what only observes.
        turns: lets one thread at a time in.
        steps: the half of the walk beside the device.
        processor: the half on the host.
        origins: says where a NaN or Inf came from.
        activations: measures forward passes; None where no module is watched.
        recorder: the black box; None without one.
        recovery: lets the run save itself; None where nobody asked for that.
        is_closed: whether ``close`` was called.
        is_released: whether ``release`` was called: the model may be gone.
    """

    def __init__(
        self,
        layers: Layers,
        sinks: Sequence[Sink],
        options: Options,
        *,
        models: Mapping[str, nn.Module] | None = None,
        optimizers: Sequence[Optimizer] | None = (),
        scaler: GradScaler | None = None,
        trace_nonfinite: bool = False,
        sees_gradients: bool = True,
        measures_ends: bool = True,
        advises: bool = True,
        adds_losses: bool = False,
        is_dense_at_first: bool = False,
    ) -> None:
        known: Mapping[str, nn.Module] = models or {}
        wanted: Options = {**DEFAULTS, **options}
        refuse_bad_options(wanted)
        figures = logged_figures(wanted["layer_scalars"])
        cadence = Cadence(wanted["log_every_n_steps"], figures, wanted["histograms"], is_dense_at_first)
        self.layers, self.guard, self.turns = layers, Guard(), Turns()
        self.scaler = scaler
        self.scalers: weakref.WeakKeyDictionary[Optimizer, GradScaler] = weakref.WeakKeyDictionary()
        self._advises, self.is_closed, self.is_released = advises, False, False
        self._dispatcher = SinkDispatcher(
            sinks,
            wanted["on_finding"],
            has_watcher=advises,
            describe=partial(self.guard.run, "environment", environment_of, layers.tensors),
        )
        self._paths = PathFinder(layers)
        self._finder = LossFinder(layers.tensors, adds_up=adds_losses) if wanted["find_loss"] else None
        self._backward = backward = BackwardPass(layers, self.guard, measures_ends=measures_ends, losses=self._finder)
        self.recorder = self._recorder_of(wanted, known)
        self.origins = OriginFinder(
            layers,
            known,
            traces_calls=trace_nonfinite,
            can_always_wait=_effective_on_nonfinite(wanted) != "report",
            guard=self.guard,
            has_options=advises,
            recorder=self.recorder,
        )
        self.activations = (
            None if not models else self.guard.run("activations", Activations, models, layers, self.guard)
        )
        notes = RankNotes()
        self.processor = ReportProcessor(
            layers.names, wanted["history"], self._dispatcher, cadence, self.origins, notes, self.guard, self.recorder
        )
        policy, recover = policy_of(wanted["clip"]), wanted["recover"]
        on_nonfinite = _effective_on_nonfinite(wanted)
        replicas = ReplicaCheck(layers, known, notes.about)
        self.steps = Steps(
            layers,
            backward,
            self.processor,
            cadence,
            policy,
            on_nonfinite,
            wanted["thresholds"] or Thresholds(),
            self.origins,
            self.activations,
            self._finder,
            OwnershipSurvey(layers, models, self.guard),
            replicas,
            RankExchange(layers, on_nonfinite, policy, models, replicas.wrappers, self.guard, recover=recover),
            self.guard,
            self.recorder,
            leaves_outliers_out=recover is not None,
        )
        self.recovery = self._recovery_of(recover, known, optimizers)
        self._was_followed = False  # the graph of the loss that the coming backward pass begins at
        self._undo: dict[str, Callable[[], object]] = {"backward": backward.remove, "origins": self.origins.remove}
        self._undo |= {} if self.activations is None else {"activations": self.activations.remove}
        self._undo |= {"owners": self.steps.survey.remove, "ranks": self.steps.exchange.leave}
        self.steps.expect(optimizers or ())
        before = self.before_update if sees_gradients else None
        act_plainly = self.act_plainly if sees_gradients else None
        hooks = StepHooks(before, self.after_update, optimizers, self.owns, self.guard, act_plainly)
        self._undo["optimizers"] = hooks.remove
        self._undo |= self._live_as_long_as_the_model(optimizers)
        self._followed = None if optimizers is None else weakref.WeakSet(optimizers)
        self._undo |= self._follow_calls(sees_steps=sees_gradients)
        will_be_closed(self)
        weakref.finalize(self, self._dispatcher.close).atexit = False  # dropped unclosed, as in a notebook

    # an update

    @in_turn
    @otherwise("preparing an update", before_update_plainly)
    def before_update(
        self, optimizer: Optimizer, loss: object = None, *, again: bool = False, scale: Tensor | None = None
    ) -> None:
        """Measure the gradients of ``optimizer``, which are ready; then skip its update, raise or clip, as asked.

        Args:
            optimizer: the one that is about to update.
            loss: what its closure returned; counts where no loss was observed.
            again: the closure was evaluated once more within one update (LBFGS): only clips.
            scale: () a loss scale that the gradients still hold; None asks the optimizer, where a ``GradScaler``
                leaves it for a fused one.

        Raises:
            NonFiniteError: under ``on_nonfinite="raise"``.
            UnwatchableError: inside a backward pass, and where a CUDA graph is captured.
        """
        self.turns.note_training()
        _refuse_what_cannot_be_watched(optimizer)
        if not again and not self.steps.losses and _is_single(loss):
            self.observe_loss(loss)  # type: ignore[arg-type]
        if self.recovery is not None and not again:
            self.recovery.before_update(optimizer)
        self.steps.begin(self._attempt_of(optimizer, scale), again=again)

    @in_turn
    def act_plainly(self, optimizer: Optimizer, loss: object = None, *, again: bool = False) -> None:
        """Skip an update, raise or clip with torch alone, where following it has failed; nothing is measured."""
        before_update_plainly(self, optimizer, loss, again=again)

    @in_turn
    def after_update(self, optimizer: Optimizer, *, is_made: bool = True) -> None:
        """Take in that ``optimizer`` has updated, or that a scaler has left its update out; go back if asked to.

        Raises:
            RecoveryError: where a run that was to save itself cannot.
        """
        self.steps.end_update(optimizer)
        self._finish_update(optimizer, is_made)
        if self.recovery is not None:
            self.recovery.after_update(optimizer)

    @observing("finishing an update")
    def _finish_update(self, optimizer: Optimizer, is_made: bool) -> None:
        if (track := self.steps.tracks.get(optimizer)) is not None:
            if not is_made and self.recorder is not None:
                self.recorder.note_left_out()
            self.steps.finish(track, is_made)

    @in_turn
    @otherwise("preparing an update", take_in_plainly)
    def take_in(self, gradients: Mapping[int, Tensor]) -> None:
        """Take in a step of a loop without an optimizer: {column: gradient}; its update is seen at the next one."""
        if self.is_released:
            self.steps.warn_once("closed", "step() was called after close(): nothing is measured or clipped any more.")
            return
        parameters = [self.layers.tensors[column] for column in gradients]
        self.steps.begin(Attempt(None, parameters, list(gradients.values())))
        self._wait_for_next()

    @in_turn
    @otherwise("observing a loss", observe_loss_plainly)
    def observe_loss(self, loss: Tensor | float) -> None:
        """Take a loss of the coming update, before or after its backward pass; several are averaged."""
        if self.is_released:
            return
        if isinstance(loss, Tensor):
            self.follow_loss(loss)
            self._was_followed = loss.grad_fn is not None
            loss = loss.detach()
        self.steps.losses.append(loss)

    @observing("finding the loss")
    def note_found_losses(self, losses: Sequence[Tensor]) -> None:
        """Take losses of the coming update that an integration has found; ``observe_loss`` overrides them."""
        self.steps.found_losses += [loss.detach() for loss in losses]

    @observing("graph of the loss")
    def follow_loss(self, loss: Tensor) -> None:
        """Look at the graph of ``loss`` before its backward pass: paths, operations, and where they are flat."""
        self.guard.run("origin", self.origins.observe_loss, loss)
        self.guard.run("paths", self._paths.observe_loss, loss)
        if self.activations is not None:
            self.guard.run("activations", self.activations.observe_loss, loss)

    def use_scaler(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Take in that ``scaler`` decides about the updates of ``optimizer``: its loss scale is no fault."""
        self.scalers[optimizer] = scaler

    @observing("updates under way")
    def is_updating(self, optimizer: Optimizer) -> bool:
        """Return whether the gradients of ``optimizer`` were taken in and its update has not followed yet."""
        return self._current_of(optimizer) is not None

    def _attempt_of(self, optimizer: Optimizer, scale: Tensor | None) -> Attempt:
        """Return the update that ``optimizer`` is about to make; ``scale`` as for ``before_update``."""
        scaler = self._scaler_of_optimizer(optimizer)
        has_scaler = _torch.uses_scaler(optimizer) or (scaler is not None and scaler.is_enabled())
        makers, parameters = [optimizer], parameters_of(optimizer)
        if not has_scaler:  # which leaves its scale in the gradients of optimizers inside
            makers, parameters = updated_by(optimizer, self.owns, self._steps_apart)
        return Attempt(
            optimizer,
            parameters,
            [parameter.grad for parameter in parameters],
            _torch.scale_left_on(optimizer) if scale is None else scale,
            has_scaler,
            scaler,
            tuple(rate for maker in makers for rate in learning_rates_of(maker)),
        )

    def _scaler_of_optimizer(self, optimizer: Optimizer) -> GradScaler | None:
        return self.scalers.get(optimizer, self.scaler)

    def _steps_apart(self, optimizer: Optimizer) -> bool:
        """Return whether ``optimizer`` has made an update that counted as its own."""
        track = self.steps.tracks.get(optimizer)
        return track is not None and track.count > 0

    @observing("totals")
    def totals(self, optimizer: Optimizer) -> tuple[Tensor, Tensor] | None:
        """Return the () total norms of the update under way, before and after clipping, on the device."""
        track = self._current_of(optimizer)
        return None if track is None or track.current is None else track.current.totals()

    def owns(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether any of ``parameters`` is watched."""
        return any(self.layers.column(parameter) is not None for parameter in parameters)

    # what was seen

    @in_turn
    @observing("listing findings")
    def findings(self) -> list[Finding]:
        """Return snapshots of all findings so far, by onset; wait for figures still on the device."""
        self.drain(at_once=self.is_closed)
        return self.processor.findings()

    @in_turn
    def history(self) -> History:
        """Return the last steps; wait for figures still on the device."""
        self.drain()
        return self.processor.history

    @in_turn
    @observing("draining")
    def drain(self, *, at_once: bool = True) -> None:
        """Finish what is under way, and wait for the device; an update that another thread is making is left alone.

        Args:
            at_once: also healthy updates of which other ranks know more with the next one.
        """
        if self.turns.is_of_another_thread and not self.is_closed:
            self.processor.drain()
        else:
            self.steps.drain(at_once=at_once)

    @in_turn
    def flush(self) -> None:
        """Write everything that was seen so far, so that it is safe."""
        self.drain()
        self._write_changes()
        self._write_coverage()
        self._flush_sinks()

    @in_turn
    def coverage(self) -> Coverage:
        """Return how many steps there were, and how many of them were measured; wait for figures on the device."""
        self.drain()
        return Coverage(self.steps.finished, self.processor.measured_steps, self.processor.unjudged())

    def add_sink(self, sink: Sink) -> None:
        """Hand to ``sink`` what comes from now on."""
        self._dispatcher.add(sink)

    @in_turn
    @observing("drawing for a notebook")
    def as_html(self) -> str:
        """Return what a notebook shows: the last steps as a picture, the findings as a table."""
        from gradwatch.watcher.notebook import html_of  # loaded where a notebook asks for it

        return html_of(self.layers, self.processor, self.coverage())

    @in_turn
    @observing("notes")
    def notes(self) -> list[str]:
        """Return what is no finding and worth a line: weights without gradients or optimizer, clipping out of place."""
        findings = [each for each in self.processor.findings() if each.kind in ("stalled", "vanishing")]
        told = {name for finding in findings for name in finding.layers}
        held = self.steps.held_columns()
        lines = list(notes_on(self.layers, held, self.processor.reached, self.steps.survey.last, told))
        order = LoopOrder() if self._finder is None else self._finder.clearing.misplaced_now()
        misplaced = closing_words.misplaced_clipping(order.misplaced, is_late=order.is_late)
        return lines if misplaced is None else [*lines, misplaced]

    @in_turn
    @observing("saving the state")
    def state_as_plain(self) -> dict[str, Any]:
        """Return what a resumed run goes on from, as numbers, strings and tensors."""
        self.drain()
        state = WatcherState(
            layers=self.layers.names,
            step=self.steps.count,
            skipped_steps=self.processor.skipped_steps,
            measured_steps=self.processor.measured_steps,
            unjudged=self.processor.unjudged(),
            tracks=self.steps.tracks.state(),
            ended=self.processor.ended,
        )
        return state.as_plain()

    def restore(self, state: WatcherState) -> None:
        """Go on from ``state`` as if never stopped.

        Raises:
            ValueError: where it is one of another model, or a step was seen already.
        """
        if self.steps.count:
            raise ValueError(
                f"load_state_dict: call it before the first step; this watcher has seen {self.steps.count}."
            )
        if state.layers != self.layers.names:
            raise of_another_model(state.layers, self.layers.names)
        try:
            self.steps.restore(state.step, state.tracks)
        except StateError:
            raise
        except Exception as error:  # a part of it is of another form than anyone has checked
            raise unreadable(error) from error
        self.processor.restore(state.skipped_steps, state.measured_steps, state.ended, state.unjudged)

    @observing("resuming")
    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on from what of a checkpoint's state fits; say in one line what does not. For integrations.

        Where other layers are watched than before, step numbers, findings that are over and the averages of
        ``clip="auto"`` go on. What is learned of layers begins anew.
        """
        try:
            state = WatcherState.from_plain(saved)
            if state.layers != self.layers.names:
                logger.warning("gradwatch: %s", what_differs(state.layers, self.layers.names))
                state = state.without_layers(self.layers.names)
            self.restore(state)
        except ValueError as error:
            logger.warning("gradwatch: the checkpoint's state is not used, and watching begins anew. %s", error)

    @in_turn
    def close(self) -> None:
        """Take every hook off, flush and close the sinks; twice is fine."""
        if self.is_closed:
            return
        self.is_closed = True
        open_loops.discard(self)
        for name, undo in self._undo.items():
            try:
                undo()
            except Exception:
                self.guard.note_fault(f"closing: {name}")
        self.drain()
        self._take_last_notes()
        if self._advises:
            self._say_last_lines()
        self._write_changes()
        self._write_coverage()
        self._close_sinks()

    @in_turn
    @observing("letting the model go")
    def release(self) -> None:
        """Hold the model no longer, where nobody calls this any more: findings, history and state outlive it."""
        self._undo.clear()
        self.activations, self.is_released = None, True
        for part in (self.recorder, self.recovery):
            if part is not None:
                part.release()
        self.origins.release()
        self.steps.release()
        self.layers.release()

    @observing("last lines")
    def _say_last_lines(self) -> None:
        has_noted_faults = self.guard.has_noted_faults
        lines = [
            closing_words.missing(self.steps.count, saw_loss=self.steps.saw_loss, has_noted_faults=has_noted_faults),
            closing_words.unmeasured(self.coverage()),
            closing_words.unjudged(self.coverage()),
            *(self.notes() or ()),
        ]
        for line in lines:
            if line is not None:
                logger.warning("gradwatch: %s", line)

    # the small things

    def _recovery_of(
        self, plan: Rewind | None, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] | None
    ) -> Recovery | None:
        if plan is None:
            return None
        return Recovery(plan, models, optimizers, self.steps, self._scaler_of_optimizer, self.guard)

    def _recorder_of(self, wanted: Options, models: Mapping[str, nn.Module]) -> FlightRecorder | None:
        """
        Raises:
            ValueError: for a black box without a model, whose steps nobody could run again.
        """
        options = black_box_of(wanted["black_box"])
        if options is None:
            return None
        if not models:
            raise ValueError(
                f"black_box={wanted['black_box']!r}: a step of bare tensors cannot be run again. Watch a module with "
                "gradwatch.watch, or leave black_box out."
            )
        return FlightRecorder(options, models, self.layers, self.guard)

    def _live_as_long_as_the_model(self, optimizers: Sequence[Optimizer] | None) -> dict[str, Callable[[], object]]:
        """Let the model keep this alive where optimizers are found: those that are given do it by their hooks."""
        return {} if optimizers is not None else {"keeping alive": keep_alive(self, self.layers.tensors)}

    def _follow_calls(self, *, sees_steps: bool) -> dict[str, Callable[[], object]]:
        """Listen to the functions of torch that losses and scalers go through; return how to end that."""
        undo: dict[str, Callable[[], object]] = {"unscaling": follow_unscale(self._begin_unscaling)}
        if sees_steps:
            undo["scalers"] = follow_scaler_step(self._begin_scaler_step, self._end_scaler_step)
        if self._finder is not None:
            undo["losses"] = follow_backward(self._begin_backward, self._end_backward)
            undo["clipping"] = follow_clipping(self._note_clipping)
            undo["scaled losses"] = follow_scale(self._begin_scaling, self._note_scaled)
        return undo

    @observing("flushing the sinks")
    def _flush_sinks(self) -> None:
        self._dispatcher.flush()

    @observing("closing the sinks")
    def _close_sinks(self) -> None:
        self._dispatcher.close()

    @observing("writing open findings")
    def _write_changes(self) -> None:
        self.processor.write_changes()

    @observing("notes of other ranks")
    def _take_last_notes(self) -> None:
        self.processor.take_last_notes()

    @observing("writing how much was measured")
    def _write_coverage(self) -> None:
        self._dispatcher.write_coverage(self.coverage())

    def _current_of(self, optimizer: Optimizer) -> OptimizerTrack | None:
        track = self.steps.tracks.get(optimizer)
        return track if track is not None and track.current is not None else None

    @observing("finishing an update")
    def _wait_for_next(self) -> None:
        if (track := self.steps.tracks.get(None)) is not None:
            self.steps.wait_for_next(track)

    @in_turn
    @observing("finding the loss")
    def _begin_backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FoundLoss | None:
        """Take the loss that ``backward()`` is called on, and look at its graph as long as that is whole."""
        if self._finder is None or _torch.in_backward():  # a checkpoint, within a backward pass
            return None
        roots, is_loss = roots_of_backward(args, kwargs)
        found = self._finder.begin(roots, is_loss=is_loss)
        if not self._was_followed:
            for root in roots:
                self.follow_loss(root)
            found.followed = len(roots)
        self._was_followed = False
        return found

    @in_turn
    @observing("finding the loss")
    def _end_backward(self, found: FoundLoss | None, result: object, has_failed: bool) -> None:
        if self._finder is not None and found is not None:
            self._backward.end_call()
            self._finder.end(found, has_failed=has_failed)
            if not found.reached:
                self.origins.leave_out_losses(found.followed)

    @observing("scaled losses")
    def _begin_scaling(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[GradScaler, Any]:
        """Return the scaler, and what it is to scale."""
        return args[0], args[1] if len(args) > 1 else kwargs.get("outputs")

    @in_turn
    @observing("scaled losses")
    def _note_scaled(self, call: tuple[GradScaler, Any] | None, result: Any, has_failed: bool) -> None:
        if self._finder is not None and call is not None and not has_failed:
            self._finder.note_scaled(*call, result)

    @in_turn
    @observing("clipping of the loop: its time")
    def _note_clipping(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._finder is not None:
            self._finder.clearing.note_clipping(clipped_parameters(args, kwargs))

    @observing("gradient scalers")
    def _begin_unscaling(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = scaler_call(args, kwargs)
        if call is not None and self.owns(parameters_of(call.optimizer)):
            self.steps.note_unscaling(call.optimizer)

    @observing("gradient scalers")
    def _begin_scaler_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Optimizer, int] | None:
        """Find the scaler of an optimizer; return that, and how many steps were seen."""
        call = scaler_call(args, kwargs)
        if call is None or not self._hears(call.optimizer):
            return None
        self.use_scaler(call.scaler, call.optimizer)
        return call.optimizer, self.steps.count

    @observing("updates left out")
    def _end_scaler_step(self, begun: tuple[Optimizer, int] | None, result: object, has_failed: bool) -> None:
        """Count an update that the scaler has left out: it found an Inf, and never called ``optimizer.step``."""
        if begun is not None and not has_failed and self.steps.count == begun[1]:
            self.before_update(begun[0])
            self.after_update(begun[0], is_made=False)

    def _hears(self, optimizer: Optimizer) -> bool:
        """Return whether the steps of ``optimizer`` are followed here."""
        if self._followed is not None:
            return optimizer in self._followed
        return self.owns(parameters_of(optimizer))

    @in_turn
    @observing("black box")
    def note_exception(self, error: BaseException) -> None:
        """Have the black box written, where ``error`` ends the loop."""
        if self.recorder is not None and not self.is_closed:
            self.drain()  # a finding of the last steps says more than the error that they led to
            self.recorder.note_exception(error)

    @observing("last words")
    def say_last_words(self, error: BaseException) -> None:
        """Log what a module was given that held NaN, where the script dies of ``error`` in a forward pass."""
        words = last_words(error)
        if words is not None:
            logger.error("gradwatch: %s", words)


def _effective_on_nonfinite(options: Options) -> OnNonFinite:
    """Return what is done about an update that is not finite: a run that saves itself leaves it out."""
    return options["on_nonfinite"] if options["recover"] is None else "skip"


def _is_single(loss: object) -> bool:
    return loss.numel() == 1 if isinstance(loss, Tensor) else isinstance(loss, float)


def _refuse_what_cannot_be_watched(optimizer: Optimizer) -> None:
    """
    Raises:
        UnwatchableError: inside a backward pass, and where a CUDA graph is captured.
    """
    name = type(optimizer).__name__
    if _torch.in_backward():
        raise UnwatchableError(
            f"gradwatch: this {name} steps inside the backward pass (one optimizer for each "
            "parameter, in a gradient hook), where no step has all its gradients yet. Step after backward(), or "
            "train without gradwatch."
        )
    if _torch.is_capturing():
        raise UnwatchableError(
            f"gradwatch: a CUDA graph captures this step of {name}. Nothing calls gradwatch when the graph is "
            "replayed, so it could neither watch nor clip. Capture the forward and the backward pass alone "
            "(torch.cuda.make_graphed_callables) and call step() outside the graph, or train without gradwatch."
        )
