"""Join the rules that raise one kind of finding: one sickness makes one finding, whichever rule sees it first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradwatch.detect.detector import DetectorResult
from gradwatch.detect.incident import IncidentEvent, IncidentTracker
from gradwatch.measure.report import StepReport

__all__ = ["KindRules"]


class KindRules:
    """The rules of one kind, each with its tracker; at most one of them has an open incident.

    The rule that sees a sickness first keeps the incident. What the others see meanwhile belongs to it: their sick
    layers join, and their sick steps keep it open. A rule that cannot judge a step ends nothing at it, even where
    another rule calls the step healthy.

    Args:
        trackers: of the rules, the one that is to speak first in front.
    """

    def __init__(self, trackers: Sequence[IncidentTracker]) -> None:
        self._trackers = tuple(trackers)

    def observe(self, report: StepReport, *, counts: bool) -> list[IncidentEvent]:
        """Take in one step; return what ends and what opens at it.

        Args:
            report: of the step.
            counts: whether a sick step may count; rules learn from every step.
        """
        results = [tracker.detector.examine(report) for tracker in self._trackers]
        if not counts:
            return []
        for tracker, result in zip(self._trackers, results, strict=True):
            if tracker.incident is not None:
                self._forget_streaks(report, tracker)
                joined = _joined(result, results)
                return [] if joined is None else tracker.advance(report, joined)
        for tracker, result in zip(self._trackers, results, strict=True):
            if result is not None and (events := tracker.advance(report, result)):
                return events
        return []

    def _forget_streaks(self, report: StepReport, keeper: IncidentTracker) -> None:
        """End the streaks of the other rules: their sick steps belong to the incident of ``keeper``."""
        for tracker in self._trackers:
            if tracker is not keeper and not tracker.is_idle:
                columns = 1 if tracker.detector.covers_whole_run else len(report.layers)
                none, zero = np.zeros(columns, dtype=bool), np.zeros(columns)
                tracker.advance(report, DetectorResult(none, zero, zero, zero))


def _joined(own: DetectorResult | None, results: Sequence[DetectorResult | None]) -> DetectorResult | None:
    """Return ``own`` with the sick layers of all ``results``; None if nothing is sick and ``own`` says nothing."""
    sick = [result for result in results if result is not None and result.is_sick]
    if not sick:
        return own
    first = sick[0] if own is None else own
    return replace(first, sick=np.logical_or.reduce([first.sick, *(each.sick for each in sick)]))
