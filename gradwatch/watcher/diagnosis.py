"""From the reports of one optimizer to findings: detectors say what is wrong, the background why, remedies what to do.

This file joins three rooms, none of which calls another: ``detect`` sees incidents, ``explain`` knows the course of the
run, ``remedies`` advises.
"""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradwatch.detect import Detectors, Incident, IncidentEvent
from gradwatch.explain.background import Background
from gradwatch.explain.clues import Fact, clues_of
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.findings import MAY_COME_FIRST, Advice, Clue, Finding, Kind, StateError, Thresholds, UnjudgedSteps
from gradwatch.hooks.guard import Guard, observing
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport
from gradwatch.remedies import Case, advise
from gradwatch.watcher.recurrences import Recurrences
from gradwatch.watcher.state import finding_of

__all__ = ["Diagnosis", "FindingUpdate"]

SHUTS: frozenset[Clue] = frozenset({"softmax of one", "factor of 0", "zero inputs", "flat operation", "norm of one"})
"""Clues of facts that say why no gradient passes; then it does not fade along depth."""

REASONS: frozenset[Clue] = SHUTS | {
    "clipped out of place",
    "clipping idle",
    "rate rose",
    "overwritten",
    "one batch",
    "raw inputs",
    "raw targets",
    "recurrence grows",
    "no lower bound",
    "grows along depth",
    "branches add up",
    "norm left idle",
    "targets grow",
}
"""Clues of facts that are a reason, not only something unusual: they come before what the detector itself says."""

MOST_SENTENCES = 3
"""Sentences of a cause. Facts beyond them still count for the choice of remedies."""


@dataclass(frozen=True)
class FindingUpdate:
    """A finding that opens, goes on, or ends.

    Attributes:
        finding: as it is now.
        ended: whether it ends; until then the same finding may come several times, and the last one counts.
        is_new: whether it comes for the first time.
        is_amended: its cause is known better than when it came last.
        is_again: it comes for another sickness like it, for which it speaks (``Recurrences``).
        is_written: whether files are to hold it now.
    """

    finding: Finding
    ended: bool
    is_new: bool
    is_amended: bool = False
    is_again: bool = False
    is_written: bool = True


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
        self._detectors = Detectors(layers, thresholds, self.guard)
        self._background = Background(layers, self.guard, losses)
        self._open: dict[str, Finding] = {}  # by detector, as each was when it opened
        self._told: dict[str, Finding] = {}  # by detector, as each was told last
        self._untold: set[str] = set()  # detectors whose open incident another finding tells of
        self._due: list[FindingUpdate] = []  # what opened or ended, until it was returned
        self._is_behind = False  # a fault came between the detectors and this
        self._recurrences = Recurrences()

    @np.errstate(all="ignore")  # figures of sick runs hold Inf and NaN; no warning of numpy's is to reach the user
    def observe(self, report: StepReport) -> list[FindingUpdate]:
        """Take in one step; return what opens or ends at it, and what a fault has kept from being returned before."""
        missed = self._missed() if self._is_behind else []
        self._is_behind = True
        for event in missed:
            self._take(event, report)
        self._background.observe(report)
        for event in self._detectors.observe(report):
            self._take(event, report)
        self._is_behind = self._detectors.has_failed
        due, self._due = self._due, []
        return due

    def _missed(self) -> list[IncidentEvent]:
        """Return what opened in the detectors and is not known here, because a fault came between; note what ended."""
        incidents = self._detectors.open_incidents()
        opened = [name for name in incidents if name not in self._open and name not in self._untold]
        self._untold &= set(incidents)
        for name in [each for each, known in self._open.items() if not _is_of(known, incidents.get(each))]:
            self._due.append(self._ended(name, self._open.pop(name)))
            opened += [name] if name in incidents else []
        return [IncidentEvent(name, incidents[name], ended=False) for name in opened]

    def _take(self, event: IncidentEvent, report: StepReport) -> None:
        """Take in that an incident opens or ends."""
        update = None if self._is_told_elsewhere(event, report) else self._event(event, report)
        if update is not None:
            self._due.append(update)
        elif event.ended:
            self._untold.discard(event.detector)
        else:
            self._untold.add(event.detector)

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

    def unjudged(self) -> tuple[UnjudgedSteps, ...]:
        """Return how many steps each rule has not judged because it failed or rested; nothing where all have."""
        return self._detectors.unjudged()

    def open_findings(self) -> list[Finding]:
        """Return the findings that have opened and not ended, as they are now."""
        incidents = self._detectors.open_incidents()
        return [_grown(self._open[name], incidents[name]) for name in incidents if name in self._open]

    def has_open(self, kinds: Container[Kind]) -> bool:
        """Return whether a finding of one of ``kinds`` is open."""
        return any(finding.kind in kinds for finding in self._open.values())

    def amend(self, finding: Finding) -> None:
        """Take what is now known of an open finding, which somebody writes."""
        for name, known in self._open.items():
            if known.identity == finding.identity:
                self._open[name] = self._told[name] = finding
        self._recurrences.amend(finding)

    def changes(self, *, only_large: bool = False) -> list[FindingUpdate]:
        """Return the open findings that have gone on, or cover more layers, since they were told last.

        Readers of what was written take the last one, so that ``last_step`` and ``layers`` are right without an end.

        Args:
            only_large: leave out those that have lasted less than twice as long as when they were told last and cover
                the same layers. So a file that is never closed is right within a factor of two, and stays small.
        """
        changed = [] if only_large else self._unwritten()
        for name, incident in self._detectors.open_incidents().items():
            if name not in self._open:
                continue
            now, told = _grown(self._open[name], incident), self._told[name]
            if now != told and not (only_large and _is_small(told, now)):
                self._told[name] = now
                changed.append(FindingUpdate(now, ended=False, is_new=False))
        return changed

    def _unwritten(self) -> list[FindingUpdate]:
        """Return the findings that speak for more than those that were written last."""
        now_open = {finding.identity for finding in self._open.values()}
        unwritten = self._recurrences.unwritten()
        return [FindingUpdate(each, ended=each.identity not in now_open, is_new=False) for each in unwritten]

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run goes on from, as plain values and arrays."""
        return {
            "detectors": self._detectors.state(),
            "background": self._background.state(),
            "open": {name: finding.as_dict() for name, finding in self._open.items()},
            "recurrences": self._recurrences.state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            StateError: if it is of another model, or of a version of gradwatch that this one cannot read.
        """
        expected = {"detectors", "background", "open", "recurrences"}
        if set(saved) != expected:
            found = textwrap.shorten(", ".join(sorted(map(str, saved))), 300, placeholder=", …")
            raise StateError(
                f"diagnosis: expected a state with {', '.join(sorted(expected))}, found {found}. "
                "Resume with the version of gradwatch that saved it, or go on without its state."
            )
        self._detectors.restore(saved["detectors"])
        self._background.restore(saved["background"])
        self._open = {name: finding_of(values) for name, values in saved["open"].items()}
        self._told = dict(self._open)
        self._untold = set(self._detectors.open_incidents()) - set(self._open)
        self._due.clear()
        self._recurrences.restore(saved["recurrences"])

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

    def _event(self, event: IncidentEvent, report: StepReport) -> FindingUpdate | None:
        """Return what to tell of an event; None where an open finding of the whole run has told it."""
        name, incident = event.detector, event.incident
        if not event.ended:
            finding = self._finding(incident, report)
            if any(_has_told(other, finding) for other in self._open.values()):
                return None
            return self._opened(name, finding)
        return self._ended(name, _grown(self._open.pop(name), incident))

    def _ended(self, name: str, finding: Finding) -> FindingUpdate:
        """Return what to tell of a finding that ends."""
        self._told.pop(name, None)
        is_written = self._recurrences.end(finding)
        return FindingUpdate(finding, ended=True, is_new=False, is_written=is_written)

    def _opened(self, name: str, finding: Finding) -> FindingUpdate:
        """Return what to tell of a finding that opens: itself, or the earlier one that speaks for it."""
        earlier = self._recurrences.open(finding)
        known = earlier or finding
        self._open[name] = self._told[name] = known
        is_new = earlier is None
        return FindingUpdate(known, ended=False, is_new=is_new, is_again=not is_new, is_written=is_new)

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
            figure=incident.figure,
            cause=" ".join([*_sentences(incident, facts), *self._came_first(incident, facts)]),
            remedies=self._advice(incident, report, frozenset(clues), facts) or (),
        )

    def _came_first(self, incident: Incident, facts: Sequence[Fact]) -> Iterator[str]:
        """Yield a sentence that points to the open finding that this one follows, the earliest if several."""
        for finding in self._opened_before(incident):
            that = f"{finding.kind} in {finding.layer or 'the whole run'}, which began at step {finding.step}"
            if finding.kind in MAY_COME_FIRST[incident.kind]:
                yield f"This may follow from {that}: mend that first."
                return
            shares_its_cause = any(fact.clue and fact.words in finding.cause for fact in facts)
            if shares_its_cause and finding.kind != incident.kind:
                yield f"One cure is for both: {that}, has the same cause."
                return

    def _opened_before(self, incident: Incident) -> list[Finding]:
        """Return the open findings that ``incident`` may follow from, the earliest first.

        Clipping stops a run whatever its gradients are, so what it has stopped follows from none.
        """
        if "clipped away" in incident.clues:
            return []
        earlier = [each for each in self._open.values() if each.step <= incident.step]
        return sorted(earlier, key=lambda each: (each.step, each.raised_step))

    @observing("remedies")
    def _advice(
        self, incident: Incident, report: StepReport, clues: frozenset[Clue], facts: Iterable[Fact]
    ) -> tuple[Advice, ...]:
        lower, higher = self._background.rates_to_try()
        accused = (fact.weight for fact in facts if fact.weight)
        case = Case(
            incident.kind,
            self._layers,
            incident.columns,
            clips=self._clips,
            rate=report.learning_rate,
            lower_rate=lower,
            higher_rate=higher,
            clues=clues,
            operation="" if report.origin is None else report.origin.operation,
            weight=self._sick_weight(report) or next(accused, ""),
        )
        return advise(case)

    def _sick_weight(self, report: StepReport) -> str:
        """Return the first weight from the input on that was sick before the step; "" where none is known."""
        if report.weight_nonfinite is None or not report.weight_nonfinite.any():
            return ""
        return self._layers.names[min(np.flatnonzero(report.weight_nonfinite), key=lambda c: self._layers.depth[c])]


def _sentences(incident: Incident, facts: Sequence[Fact]) -> list[str]:
    """Return the detector's own sentences, and as many facts as fit: those with a clue for the remedies first.

    Where the loop itself is wrong, that comes before all else. Reasons come next, but for NaN and Inf, whose origin
    the detector names.
    """
    told = {fact.words: _weight_of(fact) for fact in facts}
    loop, reasons, others = ([words for words, weight in told.items() if weight == each] for each in _WEIGHTS)
    if _is_shut(incident, facts):  # how they fade along the layers is no longer of interest
        return [*loop, *reasons][:MOST_SENTENCES]
    first = [*incident.cause, *reasons] if incident.kind == "nonfinite" else [*reasons, *incident.cause]
    others.sort(key=lambda words: not any(fact.clue for fact in facts if fact.words == words))
    return [*loop, *first, *others][:MOST_SENTENCES]


def _has_told(told: Finding, new: Finding) -> bool:
    """Tell whether a finding of the whole run has told of the layers of a new one of its kind, with the same cure.

    A loss and a gradient that turn NaN are two events, each with a cause of its own.
    """
    if told.kind != new.kind or told.layer or told.kind == "nonfinite" or not (told.remedies and new.remedies):
        return False
    return told.remedies[0].name == new.remedies[0].name


_WEIGHTS = ("loop", "reason", "other")


def _is_shut(incident: Incident, facts: Sequence[Fact]) -> bool:
    """Tell whether a fact says what shuts the way of the gradients: they do not fade, and it says that none passes."""
    return incident.kind == "vanishing" and any(fact.clue in SHUTS for fact in facts)


def _weight_of(fact: Fact) -> str:
    """Return how much a fact explains."""
    if fact.clue == "never cleared":
        return "loop"
    return "reason" if fact.clue in REASONS else "other"


def _is_of(finding: Finding, incident: Incident | None) -> bool:
    """Return whether ``finding`` tells of ``incident``, and not only of ones before it."""
    return incident is not None and finding.step <= incident.step <= finding.last_step


def _is_small(told: Finding, now: Finding) -> bool:
    return told.layers == now.layers and now.last_step - now.step < 2 * (told.last_step - told.step + 1)


def _grown(finding: Finding, incident: Incident) -> Finding:
    return replace(finding, last_step=incident.last_step, layers=incident.layers)
