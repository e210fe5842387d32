"""Join the rules that raise one kind of finding: one sickness makes one finding, whichever rule sees it first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradwatch.detect.detector import DetectorResult
from gradwatch.detect.incident import CLEAR_STEPS, IncidentEvent, IncidentTracker
from gradwatch.detect.rule_faults import RuleFaults
from gradwatch.hooks.guard import Guard
from gradwatch.measure.report import StepReport

__all__ = ["KindRules"]


class KindRules:
    """The rules of one kind, each with its tracker; at most one of them has an open incident.

    The rule that sees a sickness first keeps the incident. What the others see meanwhile belongs to it: their sick
    layers join, and their sick steps keep it open. A rule that cannot judge a step ends nothing at it, even where
    another rule calls the step healthy. A rule that judges the course since the run began opens none after another
    rule has: that incident was of the same course.

    A rule that fails is one that cannot judge the step; an incident that it has open stays as it is.

    Args:
        trackers: of the rules, the one that is to speak first in front.
        faults: takes the faults of the rules.
    """

    def __init__(self, trackers: Sequence[IncidentTracker], faults: RuleFaults | None = None) -> None:
        self._trackers = tuple(trackers)
        self._faults = faults or RuleFaults(Guard())
        self._every_step = [each for each in trackers if not each.detector.judges_samples_only]

    def observe(self, report: StepReport, *, counts: bool) -> list[IncidentEvent]:
        """Take in one step; return what ends and what opens at it.

        Args:
            report: of the step.
            counts: whether a sick step may count; rules learn from every step.
        """
        results = self._examine(report)
        if not counts:
            return []
        for tracker, result in zip(self._trackers, results, strict=True):
            if tracker.incident is not None:
                self._forget_streaks(report, tracker)
                joined = _joined(result, results)
                return [] if joined is None else self._advance(tracker, report, joined)
        return self._open(report, results)

    def _examine(self, report: StepReport) -> list[DetectorResult | None]:
        """Return what each rule says, None for one that fails or rests. No call is made for the guarding of each."""
        results: list[DetectorResult | None] = []
        resting = self._faults.resting
        for tracker in self._trackers:
            if resting and tracker.name in resting:
                results.append(None)
                continue
            try:
                results.append(tracker.detector.examine(report))
            except Exception:
                self._faults.note(tracker)
                results.append(None)
        return results

    def _open(self, report: StepReport, results: Sequence[DetectorResult | None]) -> list[IncidentEvent]:
        """Return what the first rule that has something to raise opens."""
        for tracker, result in zip(self._trackers, results, strict=True):
            if result is None or (tracker.detector.judges_from_the_start and self._has_raised):
                continue
            try:
                if events := tracker.advance(report, result):
                    return events
            except Exception:
                self._faults.note(tracker)
        return []

    @property
    def _has_raised(self) -> bool:
        """Return True if a rule has had an incident that has ended."""
        return any(tracker.has_ended for tracker in self._trackers)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Return True if no incident of this kind can open or end at a step, so that it may be observed later.

        Without an open incident each rule is asked. An open one ends after ten healthy steps at the earliest, and only
        then can another one open; until so many may have passed, nothing is to be asked.

        Args:
            waiting: how many steps have not been observed, this one included; none of them is sampled.
            total: total norm of the gradients of this step, finite.
            loss: loss of this step, finite; None where none was observed.
        """
        for tracker in self._trackers:
            if tracker.incident is not None:
                return tracker.healthy_steps + waiting < CLEAR_STEPS
        return all(tracker.is_idle and tracker.detector.may_wait(waiting, total, loss) for tracker in self._every_step)

    def _forget_streaks(self, report: StepReport, keeper: IncidentTracker) -> None:
        """End the streaks of the other rules: their sick steps belong to the incident of ``keeper``."""
        for tracker in self._trackers:
            if tracker is not keeper and not tracker.is_idle:
                columns = 1 if tracker.detector.covers_whole_run else len(report.layers)
                none, zero = np.zeros(columns, dtype=bool), np.zeros(columns)
                self._advance(tracker, report, DetectorResult(none, zero, zero, zero))

    def _advance(self, tracker: IncidentTracker, report: StepReport, result: DetectorResult) -> list[IncidentEvent]:
        """Return what ends and what opens by ``result``; nothing where that fails."""
        try:
            return tracker.advance(report, result)
        except Exception:
            self._faults.note(tracker)
            return []


def _joined(own: DetectorResult | None, results: Sequence[DetectorResult | None]) -> DetectorResult | None:
    """Return ``own`` with the sick layers of all ``results``; None if nothing is sick and ``own`` says nothing."""
    sick = [result for result in results if result is not None and result.is_sick]
    if not sick:
        return own
    first = sick[0] if own is None else own
    return replace(first, sick=np.logical_or.reduce([first.sick, *(each.sick for each in sick)]))
