"""From sick steps to incidents, each with one onset and one end.

What comes and goes is one sickness, unless it is away for as long as it has been about. So a run whose rule
flickers has a handful of findings, however long it is: each new one needs a pause longer than all that came before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect import state
from gradwatch.detect.detector import Detector, DetectorResult
from gradwatch.findings import Clue, Kind, Severity
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["CLEAR_STEPS", "Incident", "IncidentEvent", "IncidentTracker"]

CLEAR_STEPS = 10
"""Healthy steps that end an incident at the earliest. A run that is sick again every few steps has one, not many."""
SPELLS = 3
"""Incidents that make a series: the pause after the third and each later one is measured against all of the three."""


@dataclass(frozen=True)
class Incident:
    """One sickness of one run, as its detector sees it.

    Attributes:
        kind, severity, layer, layers, step, raised_step, last_step, value, threshold, measured: as in ``Finding``.
        columns: the columns of ``layers``; none where the incident is of the whole run.
        column: the column of ``layer``; None where the incident is of the whole run.
        cause: the sentences that the detector itself can say about the reason: one or two.
        clues: facts of the cause that remedies depend on.
        figure: as in ``Evidence``.
    """

    VERSION: ClassVar[int] = 1

    kind: Kind
    severity: Severity
    layer: str
    layers: tuple[str, ...]
    columns: tuple[int, ...]
    column: int | None
    step: int
    raised_step: int
    last_step: int
    value: float
    threshold: float
    measured: str
    cause: tuple[str, ...]
    clues: tuple[Clue, ...] = ()
    figure: str = ""


@dataclass(frozen=True)
class IncidentEvent:
    """An incident that opens or ends at this step.

    Attributes:
        detector: the name of the detector that saw it.
        incident: as it is now.
        ended: whether it ends.
    """

    detector: str
    incident: Incident
    ended: bool


@dataclass
class TrackerState:
    """The state of one tracker across steps; arrays have an entry for each column, or one for the whole run.

    Attributes:
        streak: sick steps in a row.
        onset: the step at which each streak began.
        earliest: no onset lies before this step, because earlier ones belong to the incident before.
        healthy: healthy steps since the last sick one.
        earlier: onsets of the latest incidents, the open one left out; at most two.
        open: the open incident.
    """

    VERSION: ClassVar[int] = 2

    streak: NDArray[np.int64]
    onset: NDArray[np.int64]
    earliest: int = 0
    healthy: int = 0
    earlier: list[int] = field(default_factory=list)
    open: Incident | None = None

    @classmethod
    def of(cls, columns: int) -> TrackerState:
        """Return the state of a tracker that has seen nothing."""
        return cls(np.zeros(columns, dtype=np.int64), np.zeros(columns, dtype=np.int64))


class IncidentTracker:
    """Patience, onset, growth and end of the incidents of one detector; at most one is open at a time.

    Layers that turn sick while an incident is open join it, because what is sick at once has one reason.

    Args:
        detector: says which layers are sick.
        layers: names of the columns.

    Attributes:
        detector: as given.
        name: of the detector, unique among detectors.
    """

    def __init__(self, detector: Detector[Any], layers: Layers) -> None:
        self.detector, self.name = detector, type(detector).__name__
        self._layers = layers
        self._state = TrackerState.of(1 if detector.covers_whole_run else len(layers))
        self._has_streaks = False

    @property
    def incident(self) -> Incident | None:
        """The open incident as it is now."""
        return self._state.open

    @property
    def has_ended(self) -> bool:
        """Return True if an incident has opened and ended."""
        return bool(self._state.earlier)

    @property
    def healthy_steps(self) -> int:
        """Return how many healthy steps have followed the last sick one of the open incident."""
        return self._state.healthy

    @property
    def is_idle(self) -> bool:
        """Return True if no incident is open and no layer was sick at the last step."""
        return self._state.open is None and not self._has_streaks

    def advance(self, report: StepReport, result: DetectorResult) -> list[IncidentEvent]:
        """Take in one step; return what ends and what opens at it."""
        if not result.is_sick and self.is_idle:
            return []  # most steps of most runs
        self._lengthen_streaks(report, result)
        due = result.sick & (self._state.streak >= self.detector.patience)
        if result.mending is not None:
            due &= ~result.mending
        incident = self._state.open
        if incident is None:
            return [self._open(report, result, due)] if self._may_open(result, due) else []
        return self._go_on(incident, report, result, due)

    def open_at_once(self, report: StepReport, result: DetectorResult) -> list[IncidentEvent]:
        """Open an incident of what ``result`` says, without patience, because another rule has had it.

        Nothing is returned where one is open already.

        Args:
            report: of the step.
            result: with an onset; ``DetectorResult.onset`` of the sick layers counts.
        """
        if self._state.open is not None:
            return []
        assert result.onset is not None, "it turned sick before another rule was sure of it"
        self._state.onset[result.sick] = np.maximum(result.onset[result.sick], self._state.earliest)
        return [self._open(report, result, result.sick)]

    def withdraw(self) -> None:
        """Forget an incident that has opened at this step, of which another tracker tells; begin to wait anew."""
        self._state.open, self._has_streaks = None, False
        self._state.streak[:] = 0

    def state(self) -> dict[str, Any]:
        """Return everything that lives across steps, as plain values and arrays."""
        return state.plain(self._state)

    def restore(self, saved: object) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: if ``saved`` is of another version or of another model.
        """
        read, layers = state.read(self._state, saved), len(self._layers)
        if (incident := read.open) is not None:
            columns = (*incident.columns, *([] if incident.column is None else [incident.column]))
            if not all(0 <= column < layers for column in columns):
                raise state.refusal("TrackerState.open.columns", f"columns of {layers} layers", state.shown(columns))
        self._state = read
        self._has_streaks = bool(self._state.streak.any())

    def _lengthen_streaks(self, report: StepReport, result: DetectorResult) -> None:
        ours = self._state
        begins = result.sick & (ours.streak == 0)
        onset = report.step if result.onset is None else result.onset[begins]
        ours.onset[begins] = np.maximum(onset, ours.earliest)
        # a layer without a gradient at this step is neither sick nor healthy
        known = True if self.detector.covers_whole_run else report.measured
        ours.streak = np.where(result.sick, ours.streak + 1, np.where(known, 0, ours.streak))
        self._has_streaks = bool(ours.streak.any())

    def _may_open(self, result: DetectorResult, due: NDArray[np.bool_]) -> bool:
        """Return True if anything is due: a weight, which the finding is to be named after, where one is sick.

        Biases alone wait for a weight for as long again as the patience.
        """
        if self.detector.covers_whole_run or not due.any():
            return bool(due.any())
        is_weight = self._layers.is_weight
        if due[is_weight].any() or not result.sick[is_weight].any():
            return True
        return bool(self._state.streak[due].max() >= 2 * self.detector.patience)

    def _open(self, report: StepReport, result: DetectorResult, due: NDArray[np.bool_]) -> IncidentEvent:
        columns = [int(column) for column in np.flatnonzero(due)]
        column = max(columns, key=lambda each: float(result.badness[each]))
        evidence = self.detector.explain(report, column, columns)
        whole = self.detector.covers_whole_run
        incident = Incident(
            kind=self.detector.kind,
            severity=self.detector.severity,
            layer="" if whole else self._layers.names[column],
            layers=("",) if whole else self._names(columns),
            columns=() if whole else tuple(columns),
            column=None if whole else column,
            step=int(self._state.onset[columns].min()),
            raised_step=report.step,
            last_step=report.step,
            value=float(result.value[column]),
            threshold=float(result.threshold[column]),
            measured=evidence.measured,
            cause=evidence.cause,
            clues=evidence.clues,
            figure=evidence.figure,
        )
        self._state.open, self._state.healthy = incident, 0
        return IncidentEvent(self.name, incident, ended=False)

    def _extend(self, incident: Incident, report: StepReport, due: NDArray[np.bool_]) -> None:
        self._state.healthy = 0
        if not self.detector.covers_whole_run:
            columns = sorted({*incident.columns, *np.flatnonzero(due).tolist()})
            if len(columns) > len(incident.columns):
                incident = replace(incident, columns=tuple(columns), layers=self._names(columns))
        self._state.open = replace(incident, last_step=report.step)

    def _go_on(
        self, incident: Incident, report: StepReport, result: DetectorResult, due: NDArray[np.bool_]
    ) -> list[IncidentEvent]:
        """Extend or end an open incident; return what ends and what opens."""
        if self._is_another(incident, due):
            self._state.onset = np.maximum(self._state.onset, incident.last_step + 1)
            return [self._end(incident, report.step), self._open(report, result, due)]
        if result.is_sick and (due.any() or self._state.healthy < CLEAR_STEPS):
            self._extend(incident, report, due)
            return []
        self._state.healthy += not result.is_sick
        if not self._is_over(incident, report.step):
            return []
        self._state.streak[:] = 0  # also of a layer that had no gradient meanwhile
        return [self._end(incident, report.step + 1)]

    def _is_another(self, incident: Incident, due: NDArray[np.bool_]) -> bool:
        """Return True if what is sick now, after a pause, is none of what was sick before it."""
        if self._state.healthy < CLEAR_STEPS or self.detector.covers_whole_run or not due.any():
            return False
        return not due[list(incident.columns)].any()

    def _is_over(self, incident: Incident, step: int) -> bool:
        """Return True after ten healthy steps, once the sickness has been away for as long as it has been about.

        How long it has been about counts from its own first step; from the third spell on, from the first step of the
        first of three. An error is an event of its own, whatever came before.
        """
        ours = self._state
        if ours.healthy < CLEAR_STEPS:
            return False
        if incident.severity == "error":
            return True
        since = ours.earlier[0] if len(ours.earlier) == SPELLS - 1 else incident.step
        return step - incident.last_step >= incident.last_step - since

    def _end(self, incident: Incident, earliest: int) -> IncidentEvent:
        ours = self._state
        ours.open, ours.earliest = None, earliest
        ours.earlier = [*ours.earlier, incident.step][1 - SPELLS :]
        return IncidentEvent(self.name, incident, ended=True)

    def _names(self, columns: list[int]) -> tuple[str, ...]:
        return tuple(self._layers.names[column] for column in columns)
