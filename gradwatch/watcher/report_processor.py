"""The half of the walk on the host: a step's figures have arrived, and become history, findings and rows."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import NamedTuple

from gradwatch.findings import Finding, NonFiniteError
from gradwatch.hooks.guard import Guard
from gradwatch.measure.measurement import Measurement
from gradwatch.measure.report import StepReport
from gradwatch.sinks.memory import History
from gradwatch.watcher.cadence import Cadence
from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.origin_finder import OriginFinder, StepOrigin
from gradwatch.watcher.sink_dispatcher import SinkDispatcher
from gradwatch.watcher.unlearned import ReachedLayers

__all__ = ["ReportProcessor", "SentStep"]


LONGEST_WAIT = 9
"""Steps that may wait to be examined: in a row they cost a third of what they cost one by one, between two steps that
have used the processor's caches for something else. The tenth is sampled, most often. Without waiting a whole step
costs 13 % more where it takes 1 ms (a perceptron of three layers), and 0.6 % more where it takes 27 ms (300 layers)."""


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
        guard: takes the faults.

    Attributes:
        history: the last steps.
        skipped_steps: how many steps made no update.
        reached: which layers had gradients.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        length: int,
        dispatcher: SinkDispatcher,
        cadence: Cadence,
        origins: OriginFinder,
        guard: Guard,
    ) -> None:
        self.history, self.skipped_steps = History(names, length), 0
        self.reached = ReachedLayers(len(names))
        self._dispatcher, self._cadence, self._origins, self._guard = dispatcher, cadence, origins, guard
        self._under_way: deque[SentStep] = deque()
        self._waiting: deque[SentStep] = deque()
        self._tracks: list[OptimizerTrack] = []
        self._ended: list[Finding] = []

    def follow(self, track: OptimizerTrack) -> None:
        """List the findings of ``track``, open ones of a resumed run among them, from now on."""
        self._tracks.append(track)

    def retire(self, track: OptimizerTrack) -> None:
        """End the findings of an optimizer that is gone: no step of it can end them any more."""
        self.drain()
        self._write_changes_of(track)
        self._ended += self._guard.run("open findings", track.diagnosis.open_findings) or []
        self._tracks.remove(track)

    def add(self, sent: SentStep) -> None:
        """Take a step that was sent to the host, and process those that have arrived."""
        self._under_way.append(sent)
        while self._under_way and (sent.measurement.device.type == "cpu" or len(self._under_way) > 1):
            self._waiting.append(self._under_way.popleft())
            if not self._guard.run("waiting", self._may_wait, self._waiting[-1]):
                self._catch_up()

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
        return sorted(found, key=lambda finding: (finding.step, finding.raised_step))

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

    def restore(self, skipped_steps: int, ended: tuple[Finding, ...]) -> None:
        """Go on from a cut run, whose files are continued."""
        self.skipped_steps, self._ended = skipped_steps, list(ended)
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
        if not report.is_finite or (sent.origin is not None and sent.origin.observed is not None):
            origin = self._guard.run("origin", self._origins.origin_of, report, sent.origin)
            report = replace(report, origin=origin)
        self.skipped_steps += report.skipped
        self._guard.run("reached layers", self.reached.add, report)
        self._guard.run("history", self.history.append, report)
        self._guard.run("detecting", self._detect, sent.track, report)
        self._guard.run("writing", self._write, sent.track, report)

    def _detect(self, track: OptimizerTrack, report: StepReport) -> None:
        for event in track.diagnosis.observe(report):
            if event.ended:
                self._ended.append(event.finding)
            self._dispatcher.write_finding(event)

    def _write(self, track: OptimizerTrack, report: StepReport) -> None:
        track.rows.add(report)
        if self._cadence.is_logged(report.update):
            self._write_changes_of(track, only_large=True)
            band = self._guard.run("band", track.diagnosis.band, report)
            self._dispatcher.write_row(track.rows.build(report, self.skipped_steps, band))

    def _write_changes_of(self, track: OptimizerTrack, *, only_large: bool = False) -> None:
        for update in self._guard.run("open findings", track.diagnosis.changes, only_large=only_large) or ():
            self._dispatcher.write_finding(update)
