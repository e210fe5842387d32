"""The half of the walk on the host: what becomes of a step once its figures have left the device."""

from __future__ import annotations

from collections import deque
from typing import Any

from gradwatch.findings import Finding, NonFiniteError
from gradwatch.hooks.guard import harmless
from gradwatch.measure.measurement import Measurement
from gradwatch.measure.report import StepReport
from gradwatch.sinks.memory import History
from gradwatch.watcher.optimizer_track import Cadence, OptimizerTrack
from gradwatch.watcher.sink_dispatcher import SinkDispatcher

__all__ = ["ReportProcessor"]


LONGEST_WAIT = 9
"""Steps that may wait to be looked at: in a row they cost a third of what they cost one by one, between two steps that
have used the processor's caches for something else. The tenth is sampled, most often."""


class ReportProcessor:
    """Steps that have arrived on the host: their history, their findings, their rows.

    Off the CPU a step is taken in once the next one was sent, so that nobody waits for the device. A step at which
    nothing can open or end, by its total norm and its loss, waits for those after it; all are taken in in their order.

    Args:
        names: of the layers.
        length: of the history.
        dispatcher: take rows and findings.
        cadence: says which steps are logged.

    Attributes:
        history: the last steps.
        skipped_steps: how many steps made no update.
    """

    def __init__(self, names: tuple[str, ...], length: int, dispatcher: SinkDispatcher, cadence: Cadence) -> None:
        self.history, self.skipped_steps = History(names, length, self.drain), 0
        self.broken: set[str] = set()
        self._dispatcher, self._cadence = dispatcher, cadence
        self._under_way: deque[tuple[OptimizerTrack, Measurement]] = deque()
        self._waiting: deque[tuple[OptimizerTrack, Measurement]] = deque(
            maxlen=2 * LONGEST_WAIT
        )  # should taking in fail
        self._updates: list[OptimizerTrack] = []
        self._ended: list[Finding] = []

    def follow(self, updates: OptimizerTrack) -> None:
        """The findings of ``updates``, open ones of a resumed run among them, are told from now on."""
        self._updates.append(updates)

    def add(self, updates: OptimizerTrack, measurement: Measurement) -> None:
        """``measurement`` was sent to the host; takes in those that have arrived."""
        self._under_way.append((updates, measurement))
        while self._under_way and (measurement.device.type == "cpu" or len(self._under_way) > 1):
            self._waiting.append(self._under_way.popleft())
            if not self._may_wait(*self._waiting[-1]):
                self._catch_up()

    def drain(self) -> None:
        """Takes in all steps; waits for what is still on the device."""
        self._waiting += self._under_way
        self._under_way.clear()
        self._catch_up()

    @harmless
    def findings(self) -> list[Finding]:
        """Snapshots of all that have arrived, by onset."""
        still_open = [finding for updates in self._updates for finding in updates.detectors.open_findings()]
        return sorted([*self._ended, *still_open], key=lambda finding: (finding.step, finding.raised_step))

    def has_ended(self, finding: Finding) -> bool:
        """Whether ``finding``, one of ``findings()``, is over."""
        return finding in self._ended

    def raise_nonfinite(self, step: int) -> None:
        """
        Raises:
            NonFiniteError: always, from what was found.
        """
        finding = next((f for f in reversed(self.findings() or []) if f.kind == "nonfinite"), None)
        if finding is None:  # the detectors rest after a fault
            raise NonFiniteError("", step, f"a gradient or the loss of step {step} is NaN or Inf.")
        raise NonFiniteError(finding.layer, step, finding.message)

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from, beside what each ``OptimizerTrack`` knows."""
        return {"skipped_steps": self.skipped_steps, "ended": [finding.as_dict() for finding in self._ended]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        self.skipped_steps = state["skipped_steps"]
        self._ended = [Finding.from_dict(saved) for saved in state["ended"]]
        self._dispatcher.go_on()

    @harmless
    def _may_wait(self, updates: OptimizerTrack, measurement: Measurement) -> bool:
        plan, waiting = measurement.plan, len(self._waiting)
        if plan.sampled or self._cadence.is_logged(plan.update) or waiting > LONGEST_WAIT:
            return False
        return updates.detectors.may_wait(waiting, *measurement.outline())

    @harmless
    def _catch_up(self) -> None:
        while self._waiting:
            self._take_in(*self._waiting.popleft())

    def _take_in(self, updates: OptimizerTrack, measurement: Measurement) -> None:
        report = measurement.report()
        self.history.append(report)
        self.skipped_steps += report.skipped
        self._detect(updates, report)
        self._write(updates, report)

    @harmless
    def _detect(self, updates: OptimizerTrack, report: StepReport) -> None:
        for event in updates.detectors.observe(report):
            if event.ended:
                self._ended.append(event.finding)
            self._dispatcher.write_finding(event)

    @harmless
    def _write(self, updates: OptimizerTrack, report: StepReport) -> None:
        updates.rows.add(report)
        if self._cadence.is_logged(report.update):
            band = updates.detectors.band(report)
            self._dispatcher.write_row(updates.rows.build(report, self.skipped_steps, band))
