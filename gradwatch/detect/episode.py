"""From sick steps to one finding with one onset and one end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradwatch.detect.background import Background
from gradwatch.detect.clues import Fact, clues_of
from gradwatch.detect.symptoms import Detector, Symptoms
from gradwatch.findings import Advice, Clue, Finding, Kind
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["CLEAR_STEPS", "Advise", "Episode", "Event"]

CLEAR_STEPS = 10
"""Healthy steps that end a finding. A sickness that flickers, sick every few steps, stays one finding."""

Advise = Callable[[Kind, list[int], float | None, frozenset[Clue]], tuple[Advice, ...]]
"""(kind, covered columns, learning rate, clues) → remedies, best first."""


@dataclass(frozen=True)
class Event:
    """A finding that opened, or one that ended."""

    finding: Finding
    ended: bool


class Episode:
    """Patience, onset, growth and end of the findings of one detector; at most one is open at a time.

    Layers that turn sick while a finding is open join it: what is sick together belongs together.

    Args:
        detector: says what is sick.
        layers: names of the columns.
        advise: → remedies.
        background: what joins the cause.
    """

    def __init__(
        self,
        detector: Detector,
        layers: Layers,
        advise: Advise,
        background: Background,
    ) -> None:
        self._detector, self._layers, self._advise, self._background = detector, layers, advise, background
        self._streak = np.zeros(0, dtype=np.int64)  # sick steps in a row, a column each
        self._has_streaks = False
        self._onset = np.zeros(0, dtype=np.int64)  # the step at which each streak began
        self._earliest = 0  # no onset lies before this step: it belongs to the finding before
        self._covered: set[int] = set()
        self._healthy = 0  # healthy steps since the last sick one
        self._open: Finding | None = None

    def finding(self) -> Finding | None:
        """The open finding as it stands now."""
        return self._open

    @property
    def is_idle(self) -> bool:
        """Whether no finding is open and nothing was sick at the last step."""
        return self._open is None and not self._has_streaks

    def advance(self, report: StepReport, symptoms: Symptoms) -> list[Event]:
        """Takes in one step; says what opened or ended at it."""
        is_sick = symptoms.is_sick
        if not is_sick and self.is_idle:
            return []  # most steps of most runs
        self._lengthen_streaks(report, symptoms)
        due = symptoms.sick & (self._streak >= self._detector.patience)
        if symptoms.mending is not None:
            due &= ~symptoms.mending
        if self._open is None:
            return [self._raise(report, symptoms, due)] if due.any() else []
        if is_sick:
            self._healthy = 0
            self._extend(report, due)
            return []
        self._healthy += 1
        return [self._end(report)] if self._healthy >= CLEAR_STEPS else []

    def state(self) -> dict[str, Any]:
        """Everything that lives across steps, as numbers, strings and arrays."""
        return {
            "streak": self._streak.copy(),
            "onset": self._onset.copy(),
            "earliest": self._earliest,
            "covered": sorted(self._covered),
            "healthy": self._healthy,
            "open": None if self._open is None else self._open.as_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        self._streak, self._onset = state["streak"].copy(), state["onset"].copy()
        self._has_streaks = bool(self._streak.any())
        self._earliest, self._covered, self._healthy = state["earliest"], set(state["covered"]), state["healthy"]
        self._open = None if state["open"] is None else Finding.from_dict(state["open"])

    def _lengthen_streaks(self, report: StepReport, symptoms: Symptoms) -> None:
        if self._streak.shape != symptoms.sick.shape:
            self._streak = np.zeros(symptoms.sick.shape, dtype=np.int64)
            self._onset = np.zeros(symptoms.sick.shape, dtype=np.int64)
        begins = symptoms.sick & (self._streak == 0)
        onset = report.step if symptoms.onset is None else symptoms.onset[begins]
        self._onset[begins] = np.maximum(onset, self._earliest)
        # a layer without a gradient at this step is neither sick nor healthy
        known = True if self._detector.covers_whole_run else report.measured
        self._streak = np.where(symptoms.sick, self._streak + 1, np.where(known, 0, self._streak))
        self._has_streaks = bool(self._streak.any())

    def _raise(self, report: StepReport, symptoms: Symptoms, due: np.ndarray) -> Event:
        columns = [int(column) for column in np.flatnonzero(due)]
        column = max(columns, key=lambda c: float(symptoms.badness[c]))
        self._covered, self._healthy = set(columns), 0
        cause, measured = self._detector.explain(report, column, columns)
        whole = self._detector.covers_whole_run
        facts = self._background.facts(self._detector.kind, report, None if whole else column) or []  # None: broken
        cause = "; ".join([cause, *(fact.words for fact in facts)]) + "."
        remedies = self._remedies(report, [] if whole else columns, facts)
        self._open = Finding(
            kind=self._detector.kind,
            severity=self._detector.severity,
            layer="" if whole else self._layers.names[column],
            layers=self._names(),
            step=int(self._onset[columns].min()),
            raised_step=report.step,
            last_step=report.step,
            value=float(symptoms.value[column]),
            threshold=float(symptoms.threshold[column]),
            measured=measured,
            cause=cause,
            remedies=remedies,
        )
        return Event(self._open, ended=False)

    def _remedies(self, report: StepReport, columns: list[int], facts: Iterable[Fact]) -> tuple[Advice, ...]:
        clues = {*clues_of(report), *self._detector.clues(), *(fact.clue for fact in facts if fact.clue is not None)}
        return self._advise(self._detector.kind, columns, report.learning_rate, frozenset(clues))

    def _extend(self, report: StepReport, due: np.ndarray) -> None:
        assert self._open is not None
        joined = {int(column) for column in np.flatnonzero(due)} - self._covered
        self._covered |= joined
        layers = self._names() if joined else self._open.layers
        self._open = replace(self._open, last_step=report.step, layers=layers)

    def _end(self, report: StepReport) -> Event:
        assert self._open is not None
        ended, self._open = self._open, None
        self._earliest = report.step + 1
        self._streak[:] = 0  # also of a layer that had no gradient meanwhile
        return Event(ended, ended=True)

    def _names(self) -> tuple[str, ...]:
        if self._detector.covers_whole_run:
            return ("",)
        return tuple(self._layers.names[column] for column in sorted(self._covered))
