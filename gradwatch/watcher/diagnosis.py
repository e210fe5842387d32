"""From the reports of one optimizer to findings: detectors say what is wrong, the background why, remedies what to do.

This file joins three rooms, none of which calls another: ``detect`` sees incidents, ``explain`` knows the course of the
run, ``remedies`` advises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradwatch.detect import Detectors, Incident, IncidentEvent
from gradwatch.explain.background import Background
from gradwatch.explain.clues import Fact, clues_of
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.findings import Advice, Clue, Finding, Thresholds
from gradwatch.hooks.guard import Guard, observing
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport
from gradwatch.remedies import Case, advise

__all__ = ["Diagnosis", "FindingUpdate"]

MOST_SENTENCES = 3
"""Sentences of a cause. Facts beyond them still count for the choice of remedies."""


@dataclass(frozen=True)
class FindingUpdate:
    """A finding that opens, goes on, or ends.

    Attributes:
        finding: as it is now.
        ended: whether it ends; until then the same finding may come several times, and the last one counts.
        is_new: whether it comes for the first time.
    """

    finding: Finding
    ended: bool
    is_new: bool


class Diagnosis:
    """The findings of one optimizer, or of a loop without one.

    Args:
        layers: the table that the reports' columns follow.
        thresholds: what counts as sick.
        clips: whether the run clips its gradients, so that no remedy proposes it.
        guard: takes the faults.
        losses: what the losses of the run show.

    Attributes:
        guard: as given.
    """

    def __init__(
        self,
        layers: Layers,
        thresholds: Thresholds,
        *,
        clips: bool,
        guard: Guard | None = None,
        losses: LossGraph | None = None,
    ) -> None:
        self.guard = guard or Guard()
        self._layers, self._clips = layers, clips
        self._detectors, self._background = Detectors(layers, thresholds), Background(layers, self.guard, losses)
        self._open: dict[str, Finding] = {}  # by detector, as each was when it opened
        self._told: dict[str, Finding] = {}  # by detector, as each was told last

    def observe(self, report: StepReport) -> list[FindingUpdate]:
        """Take in one step; return what opens or ends at it."""
        self._background.observe(report)
        events = self._detectors.observe(report)
        return [self._event(each, report) for each in events if not self._is_told_elsewhere(each, report)]

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Return True if nothing can open or end at a step, whatever its layers show, so that it may be observed later.

        Args:
            waiting: how many steps have not been observed, this one included; none of them is sampled.
            total: total norm of the gradients of this step.
            loss: loss of this step; None where none was observed.
        """
        return self._detectors.may_wait(waiting, total, loss)

    def band(self, report: StepReport) -> Floats:
        """Return (2, P), the norms between which each layer is normal after ``report``, the last step; for charts."""
        return self._detectors.band(report)

    def open_findings(self) -> list[Finding]:
        """Return the findings that have opened and not ended, as they are now."""
        incidents = self._detectors.open_incidents()
        return [_grown(self._open[name], incidents[name]) for name in incidents if name in self._open]

    def changes(self, *, only_large: bool = False) -> list[FindingUpdate]:
        """Return the open findings that have gone on, or cover more layers, since they were told last.

        Readers of what was written take the last one, so that ``last_step`` and ``layers`` are right without an end.

        Args:
            only_large: leave out those that have lasted less than twice as long as when they were told last and cover
                the same layers. So a file that is never closed is right within a factor of two, and stays small.
        """
        changed = []
        for name, incident in self._detectors.open_incidents().items():
            if name not in self._open:
                continue
            now, told = _grown(self._open[name], incident), self._told[name]
            if now != told and not (only_large and _is_small(told, now)):
                self._told[name] = now
                changed.append(FindingUpdate(now, ended=False, is_new=False))
        return changed

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run goes on from, as plain values and arrays."""
        return {
            "detectors": self._detectors.state(),
            "background": self._background.state(),
            "open": {name: finding.as_dict() for name, finding in self._open.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: if it is of another model, or of a version of gradwatch that this one cannot read.
        """
        expected = {"detectors", "background", "open"}
        if set(saved) != expected:
            raise ValueError(
                f"diagnosis: expected a state with {', '.join(sorted(expected))}, found {', '.join(sorted(saved))}. "
                "Resume with the version of gradwatch that saved it, or go on without its state."
            )
        self._detectors.restore(saved["detectors"])
        self._background.restore(saved["background"])
        self._open = {name: Finding.from_dict(values) for name, values in saved["open"].items()}
        self._told = dict(self._open)

    def _is_told_elsewhere(self, event: IncidentEvent, report: StepReport) -> bool:
        """Tell whether another finding tells of this disease, from its begin to its end.

        NaN that came from the weights of another optimizer is told by its finding. A leap of an update that made NaN
        or Inf by the optimizer's own arithmetic is told by the ``nonfinite`` that follows.
        """
        if event.ended:
            return event.detector not in self._open
        if report.origin is None:
            return False
        if event.incident.kind == "nonfinite":
            return report.origin.is_told
        return event.incident.kind == "exploding" and report.is_finite and report.origin.where == "update"

    def _event(self, event: IncidentEvent, report: StepReport) -> FindingUpdate:
        name, incident = event.detector, event.incident
        if not event.ended:
            self._open[name] = self._told[name] = self._finding(incident, report)
            return FindingUpdate(self._open[name], ended=False, is_new=True)
        self._told.pop(name, None)
        return FindingUpdate(_grown(self._open.pop(name), incident), ended=True, is_new=False)

    def _finding(self, incident: Incident, report: StepReport) -> Finding:
        facts = self._background.facts(incident.kind, report, incident.column) or []  # None after a fault
        clues = {*clues_of(report), *incident.clues, *(fact.clue for fact in facts if fact.clue is not None)}
        return Finding(
            kind=incident.kind,
            severity=incident.severity,
            layer=incident.layer,
            layers=incident.layers,
            step=incident.step,
            raised_step=incident.raised_step,
            last_step=incident.last_step,
            value=incident.value,
            threshold=incident.threshold,
            measured=incident.measured,
            cause=" ".join(_sentences(incident, facts)),
            remedies=self._advice(incident, report, frozenset(clues)) or (),
        )

    @observing("remedies")
    def _advice(self, incident: Incident, report: StepReport, clues: frozenset[Clue]) -> tuple[Advice, ...]:
        operation = "" if report.origin is None else report.origin.operation
        rate, kind = report.learning_rate, incident.kind
        weight = self._sick_weight(report)
        return advise(Case(kind, self._layers, incident.columns, self._clips, rate, clues, operation, weight))

    def _sick_weight(self, report: StepReport) -> str:
        """Return the first weight from the input on that was sick before the step; "" where none is known."""
        if report.weight_nonfinite is None or not report.weight_nonfinite.any():
            return ""
        return self._layers.names[min(np.flatnonzero(report.weight_nonfinite), key=lambda c: self._layers.depth[c])]


def _sentences(incident: Incident, facts: Iterable[Fact]) -> list[str]:
    """Return the detector's own sentences, and as many facts as fit: those with a clue for the remedies first.

    Where the loop itself is wrong, that comes before all else.
    """
    by_weight = sorted(facts, key=lambda fact: fact.clue is None)
    certain = [fact.words for fact in by_weight if fact.clue == "never cleared"]
    others = [fact.words for fact in by_weight if fact.words not in certain]
    return [*certain, *incident.cause, *others][:MOST_SENTENCES]


def _is_small(told: Finding, now: Finding) -> bool:
    return told.layers == now.layers and now.last_step - now.step < 2 * (told.last_step - told.step + 1)


def _grown(finding: Finding, incident: Incident) -> Finding:
    return replace(finding, last_step=incident.last_step, layers=incident.layers)
