"""The half of the walk on the host: a step's figures have arrived, and become history, findings and rows."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import replace
from typing import NamedTuple

from gradwatch.clip import Policy
from gradwatch.detect.rule_faults import added_up
from gradwatch.event_files.run import Coverage
from gradwatch.findings import Finding, Kind, NonFiniteError, UnjudgedSteps
from gradwatch.hooks.guard import Guard
from gradwatch.hooks.logger import logger
from gradwatch.measure.measurement import Measurement
from gradwatch.measure.report import StepReport
from gradwatch.ranks.group import has_process_group
from gradwatch.recover.flight_recorder import FlightRecorder
from gradwatch.sinks.memory import History
from gradwatch.watcher.cadence import Cadence
from gradwatch.watcher.diagnosis import FindingUpdate
from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.origin_finder import OriginFinder, StepOrigin
from gradwatch.watcher.rank_notes import LossLeap, Note, RankNotes
from gradwatch.watcher.sink_dispatcher import SinkDispatcher
from gradwatch.watcher.unlearned import ReachedLayers

__all__ = ["ReportProcessor", "SentStep"]


LONGEST_GRACE = 1.0
"""Seconds that the first rank gives others to say who made a NaN or Inf, as it leaves. They write in milliseconds."""

SAME_TOTAL = 1e-4
"""Relative difference up to which two total norms are one that clipping has set; it adds 1e-6 to a norm and rounds."""

LONGEST_WAIT = 9
"""Steps that may wait to be examined: in a row they cost a third of what they cost one by one, between two steps that
have used the processor's caches for something else. The tenth is sampled, most often. Without waiting a whole step
costs 13 % more where it takes 1 ms (a perceptron of three layers), and 0.6 % more where it takes 27 ms (300 layers)."""


MOST_ACTIONS = 20
"""Actions that a finding keeps: more make a text that nobody reads."""

MOST_OPENED = 64
"""Findings that wait to be taken as they open: nobody takes them where nothing recovers."""


class SentStep(NamedTuple):
    """A step whose figures are on their way to the host.

    Attributes:
        track: of its optimizer.
        measurement: the figures.
        origin: what the step has left behind, should its NaN or Inf be asked about; None where nobody noted it.
    """

    track: OptimizerTrack
    measurement: Measurement
    origin: StepOrigin | None

    def without_origin(self) -> SentStep:
        """Return the step without what it has left behind."""
        return SentStep(self.track, self.measurement, None)


class ReportProcessor:
    """Steps that have arrived on the host: their history, their findings, their rows.

    Off the CPU a step is processed once the next one was sent, so that nobody waits for the device. A step at which
    nothing can open or end, by its total norm and its loss, waits for those after it. Steps are processed in their
    order. Each block is guarded by itself: where detecting fails, rows are still written.

    Args:
        names: of the layers.
        length: of the history.
        dispatcher: takes rows and findings.
        cadence: says which steps are logged.
        origins: says where a NaN or Inf came from.
        notes: what the ranks tell each other.
        guard: takes the faults.
        recorder: the black box; None without one.

    Attributes:
        history: the last steps.
        skipped_steps: how many steps made no update.
        measured_steps: how many steps were measured and judged.
        reached: which layers had gradients.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        length: int,
        dispatcher: SinkDispatcher,
        cadence: Cadence,
        origins: OriginFinder,
        notes: RankNotes,
        guard: Guard,
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.history, self.skipped_steps, self.measured_steps = History(names, length), 0, 0
        self.reached = ReachedLayers(len(names))
        self._dispatcher, self._cadence, self._origins, self._guard = dispatcher, cadence, origins, guard
        self._recorder = recorder
        self._under_way: deque[SentStep] = deque()
        self._waiting: deque[SentStep] = deque()
        self._tracks: list[OptimizerTrack] = []
        self._ended: list[Finding] = []
        self._unjudged: tuple[UnjudgedSteps, ...] = ()  # by rules of optimizers that are gone, or before a resume
        self._opened: deque[Finding] = deque(maxlen=MOST_OPENED)
        self._notes = notes
        self._has_warned_of_two = self._has_warned_of_clipping = False
        self._judged = -1  # the last step that was

    def follow(self, track: OptimizerTrack) -> None:
        """List the findings of ``track``, open ones of a resumed run among them, from now on."""
        self._tracks.append(track)

    def retire(self, track: OptimizerTrack) -> None:
        """End the findings of an optimizer that is gone: no step of it can end them any more."""
        self.drain()
        self._write_changes_of(track)
        self._ended += self._guard.run("open findings", track.diagnosis.open_findings) or []
        self._unjudged += track.diagnosis.unjudged()
        self._tracks.remove(track)

    def add(self, sent: SentStep) -> None:
        """Take a step that was sent to the host, and process those that have arrived."""
        self._under_way.append(sent)
        while self._under_way and (sent.measurement.device.type == "cpu" or len(self._under_way) > 1):
            self._waiting.append(self._under_way.popleft())
            if not self._guard.run("waiting", self._may_wait, self._waiting[-1]):
                self._catch_up()
            elif self._waiting[-1].origin is not None and self._waiting[-1].origin.observed is None:
                self._waiting[-1] = self._waiting[-1].without_origin()  # nothing is sick, and batches are large
        if self._notes.is_due():
            self._look_for_notes()

    def add_update_ratios(self, measurement: Measurement) -> None:
        """Take how far a step moved the weights, where that is known after the step was processed."""
        self.history.amend(measurement.plan.step, "update_ratio", measurement.update_ratios())

    def drain(self) -> None:
        """Process all steps; wait for what is still on the device."""
        self._waiting += self._under_way
        self._under_way.clear()
        self._catch_up()

    def write_changes(self) -> None:
        """Hand on how open findings have gone on since they were handed on last."""
        for track in self._tracks:
            self._write_changes_of(track)

    def findings(self) -> list[Finding]:
        """Return snapshots of all findings that have arrived, by onset."""
        found = list(self._ended)
        for track in self._tracks:
            found += self._guard.run("open findings", track.diagnosis.open_findings) or []
        found += self._notes.elsewhere.values()
        return sorted(found, key=lambda finding: (finding.step, finding.raised_step))

    def take_opened(self) -> list[Finding]:
        """Return the findings that have opened since this was last asked."""
        opened = list(self._opened)
        self._opened.clear()
        return opened

    def has_open(self, kinds: Container[Kind]) -> bool:
        """Return whether a finding of one of ``kinds`` is open."""
        return any(track.diagnosis.has_open(kinds) for track in self._tracks)

    def add_action(self, step: int, action: str, kinds: Container[Kind]) -> bool:
        """Write what was done at a step into the finding of one of ``kinds`` that was about then, if there is one."""
        for finding in reversed(self.findings()):
            if finding.kind in kinds and finding.step <= step <= finding.last_step:
                known = _with_action(finding, action)
                is_over = any(each.identity == finding.identity for each in self._ended)
                self._amend(FindingUpdate(known, ended=is_over, is_new=False, is_amended=True))
                return True
        return False

    def go_back(self, restore: Callable[[], object], action: str, kinds: Container[Kind]) -> None:
        """Let detectors go back to what they knew; end the findings that had not opened then.

        Args:
            restore: makes the detectors go back.
            action: what was done, for the findings of ``kinds``.
            kinds: those that it was done about.
        """
        before = self._all_open()
        restore()
        again = self._all_open()
        self._ended = [each for each in self._ended if each.identity not in again]
        for finding in [each for identity, each in before.items() if identity not in again]:
            if finding.kind in kinds:
                finding = _with_action(finding, action)
            self._ended.append(finding)
            self._dispatcher.write_finding(FindingUpdate(finding, ended=True, is_new=False))

    def _all_open(self) -> dict[tuple[str, str, int], Finding]:
        found = [finding for track in self._tracks for finding in track.diagnosis.open_findings()]
        return {finding.identity: finding for finding in found}

    @property
    def ended(self) -> tuple[Finding, ...]:
        """Return the findings that are over."""
        return tuple(self._ended)

    def error_of(self, step: int, layer: str = "") -> NonFiniteError:
        """Return the error that a sick ``step`` is to raise, from its finding if there is one.

        Args:
            step: the latest one.
            layer: a sick one, where no detector says more.
        """
        for finding in reversed(self._guard.run("open findings", self.findings) or []):
            if finding.kind == "nonfinite":
                return NonFiniteError(finding.layer, step, str(finding))
        where = f"the gradient of {layer}" if layer else "a gradient or the loss"
        return NonFiniteError(layer, step, f"{where} is NaN or Inf at step {step}.")

    def unjudged(self) -> tuple[UnjudgedSteps, ...]:
        """Return how many steps each rule has not judged because it failed or rested; nothing where all have."""
        return added_up([*self._unjudged, *(each for track in self._tracks for each in track.diagnosis.unjudged())])

    def restore(
        self,
        skipped_steps: int,
        measured_steps: int,
        ended: tuple[Finding, ...],
        unjudged: tuple[UnjudgedSteps, ...],
    ) -> None:
        """Go on from a cut run, whose files are continued."""
        self.skipped_steps, self.measured_steps, self._ended = skipped_steps, measured_steps, list(ended)
        self._unjudged = unjudged
        self._dispatcher.go_on()

    def _may_wait(self, sent: SentStep) -> bool:
        plan, waiting = sent.measurement.plan, len(self._waiting)
        if plan.sampled or self._cadence.is_logged(plan.update) or waiting > LONGEST_WAIT:
            return False
        return sent.track.diagnosis.may_wait(waiting, *sent.measurement.outline())

    def _catch_up(self) -> None:
        while self._waiting:
            self._process(self._waiting.popleft())

    def _process(self, sent: SentStep) -> None:
        report = self._guard.run("report", sent.measurement.report)
        if report is None:
            return
        if sent.measurement.plan.was_changed_by_hand:
            report = self._guard.run("clipping of the loop", self._label_clipped, sent.track, report) or report
        if report.clipped_by_loop and sent.track.policy is not None:
            self._guard.run("clipping of the loop", self._warn_of_two_that_clip, sent.track.policy)
        if not report.is_finite or (sent.origin is not None and sent.origin.observed is not None):
            origin = self._guard.run("origin", self._origins.origin_of, report, sent.origin)
            report = replace(report, origin=origin)
        if self._recorder is not None:
            self._recorder.note_report(report)
        self.skipped_steps += report.skipped
        self._guard.run("reached layers", self.reached.add, report)
        self._guard.run("history", self.history.append, report)
        self._guard.run("notes of other ranks", self._note_loss, sent, report)
        self.measured_steps += self._guard.run("detecting", self._detect, sent.track, report) is not None
        self._judged = max(self._judged, report.step)
        self._guard.run("writing", self._write, sent.track, report)

    def _label_clipped(self, track: OptimizerTrack, report: StepReport) -> StepReport:
        """Label gradients that were set by hand and have the total norm of the last update: the loop has clipped them.

        No backward pass has shown what they were before. The first such update is not recognised.
        """
        total = report.grad_norm_total
        last, track.last_total = track.last_total, total
        if last is None or not 0 < total < math.inf or not math.isclose(last, total, rel_tol=SAME_TOTAL):
            return report
        if not self._has_warned_of_clipping:
            self._has_warned_of_clipping = True
            logger.warning(
                "gradwatch: gradients that are set by hand have the same total norm, %.3g, at step %d as before: they "
                "seem to be clipped before step(), and figures are those after (history['already_clipped']). Use "
                "clip=… here instead.",
                total,
                report.step,
            )
        return replace(report, already_clipped=True)

    def _warn_of_two_that_clip(self, policy: Policy) -> None:
        """Warn once. In a process group nobody is warned: a loop that averages by itself changes its gradients, too."""
        if self._has_warned_of_two or has_process_group():
            return
        self._has_warned_of_two = True
        logger.warning(
            "gradwatch: this loop clips its gradients between backward() and step() (clip_grad_norm_?), and "
            "clip=%s clips what is left. Keep one of them.",
            policy.description,
        )

    def _note_loss(self, sent: SentStep, report: StepReport) -> None:
        """Note the loss of this rank alone, where that costs no wait for the device."""
        group = self._notes.group()
        if group is None:
            return
        if not sent.measurement.has_mean_loss:
            self._notes.note_loss(group, report.step, report.loss)
        elif sent.origin is not None and sent.measurement.device.type == "cpu":
            self._notes.note_loss(group, report.step, sent.origin.own_loss())

    def take_last_notes(self) -> None:
        """Take what other ranks have left, before this rank leaves.

        The first rank gives the others a moment where it does not know who made a NaN or Inf: they may be writing it.
        """
        group = self._notes.group()
        if group is not None and group.rank != 0:
            return
        self._look_for_notes(is_last=True)  # where the group is gone, those that came before
        if group is None:
            return
        until = time.monotonic() + LONGEST_GRACE
        while self._notes.are_missing(group, self.findings()) and time.monotonic() < until:
            time.sleep(0.01)
            self._look_for_notes(is_last=True)

    def add_finding(self, finding: Finding) -> None:
        """Take a finding that no detector can see, for it is no figure of a step."""
        update = self._notes.add(finding)
        self._dispatcher.write_finding(update)
        group = self._notes.group()
        if group is not None and update.is_new:
            self._notes.write(group, update.finding, ended=False)

    def _look_for_notes(self, *, is_last: bool = False) -> None:
        judged = None if is_last else self._judged
        for note in self._guard.run("notes of other ranks", self._notes.read, judged) or ():
            self._guard.run("notes of other ranks", self._take_note, note)

    def _take_note(self, note: Note | LossLeap) -> None:
        known = [(finding, False) for track in self._tracks for finding in track.diagnosis.open_findings()]
        known += [(finding, True) for finding in self._ended]
        if isinstance(note, LossLeap):
            updates = self._notes.take_leap(note, known)
        else:
            updates = [update for update in [self._notes.take(note, known)] if update is not None]
        for update in updates:
            self._amend(update)

    def _amend(self, update: FindingUpdate) -> None:
        """Take what is now known of a finding."""
        for track in self._tracks:
            track.diagnosis.amend(update.finding)
        self._ended = [update.finding if each.identity == update.finding.identity else each for each in self._ended]
        self._dispatcher.write_finding(update)

    def _detect(self, track: OptimizerTrack, report: StepReport) -> int:
        """Judge a step; return how many findings open or end at it."""
        events = track.diagnosis.observe(report)
        with contextlib.ExitStack() as telling:  # each of them, whatever fails in another
            for event in reversed(events):
                telling.callback(self._tell, track, report, event)
        return len(events)

    def _tell(self, track: OptimizerTrack, report: StepReport, event: FindingUpdate) -> None:
        """Hand on that a finding opens or ends; it is known here before anything can fail."""
        if event.ended:
            self._ended.append(event.finding)
        event = self._guard.run("notes of other ranks", self._on_rank, track, report, event) or event
        if event.ended:
            self._ended[-1] = event.finding
        elif event.is_again:
            self._ended = [each for each in self._ended if each.identity != event.finding.identity]
        if event.is_new or event.is_again:
            self._opened.append(event.finding)
            if self._recorder is not None:
                self._guard.run("black box: findings", self._recorder.note_finding, event.finding)
        self._dispatcher.write_finding(event)

    def _on_rank(self, track: OptimizerTrack, report: StepReport, event: FindingUpdate) -> FindingUpdate:
        """Return ``event`` with the ranks that its finding began on, where there are several; let rank 0 know of it."""
        group = self._notes.group()
        if group is None:
            return event
        finding = event.finding
        if event.is_new:
            is_own = finding.kind != "nonfinite" or report.origin is None or report.origin.is_own
            finding = self._notes.note_own(group, finding, is_own=is_own)
            track.diagnosis.amend(finding)
        self._notes.write(group, finding, ended=event.ended)
        return replace(event, finding=finding)

    def _write(self, track: OptimizerTrack, report: StepReport) -> None:
        track.rows.add(report)
        if self._cadence.is_logged(report.update):
            self._write_changes_of(track, only_large=True)
            band = self._guard.run("band", track.diagnosis.band, report)
            self._dispatcher.write_row(track.rows.build(report, self.skipped_steps, band))
            if not (coverage := Coverage(report.step + 1, self.measured_steps, self.unjudged())).is_whole:
                self._dispatcher.write_coverage(coverage)

    def _write_changes_of(self, track: OptimizerTrack, *, only_large: bool = False) -> None:
        for update in self._guard.run("open findings", track.diagnosis.changes, only_large=only_large) or ():
            self._dispatcher.write_finding(update)


def _with_action(finding: Finding, action: str) -> Finding:
    """Return ``finding`` with one more action, of which it keeps the latest."""
    return replace(finding, actions=(*finding.actions, action)[-MOST_ACTIONS:])
