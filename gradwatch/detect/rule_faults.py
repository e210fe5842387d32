"""Let each rule fail alone, and count the steps that it has not judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gradwatch.detect.incident import IncidentTracker
from gradwatch.findings import Kind, UnjudgedSteps
from gradwatch.hooks.guard import Guard

__all__ = ["RuleFaults", "added_up"]


class RuleFaults:
    """The faults of the rules of one optimizer: the others go on, and what the faulty one misses is not known.

    A rule that failed is tried again at the next step. After as many faults in a row as make a block of ``Guard`` rest
    it is left out for good.

    Args:
        guard: logs the faults, and says which rules rest.

    Attributes:
        resting: names of the rules that are left out, and their kinds.
        have_begun: whether there was any fault; until then nothing is to be counted.
        at_last_step: whether there was one at the step that was counted last.
    """

    def __init__(self, guard: Guard) -> None:
        self.resting: dict[str, Kind] = {}
        self.have_begun = self.at_last_step = False
        self._guard = guard
        self._failed: dict[str, Kind] = {}  # at this step
        self._failed_before: dict[str, Kind] = {}  # at the last one
        self._missed: Counter[tuple[Kind, str]] = Counter()

    def note(self, tracker: IncidentTracker) -> None:
        """Take the exception that is being handled as a fault of the rule of ``tracker``."""
        name, kind = tracker.name, tracker.detector.kind
        self.have_begun = True
        if name not in self._failed:  # one fault a step, so that three in a row are three steps
            self._failed[name] = kind
            self._guard.note_fault(_block(name, kind))

    def count_step(self) -> None:
        """Count the step for the rules that failed at it or rest; forget the faults of those that work again."""
        for name, kind in self._failed_before.items():
            if name not in self._failed and name not in self.resting:
                self._guard.note_success(_block(name, kind))
        for name, kind in self._failed.items():
            if self._guard.rests(_block(name, kind)):
                self.resting[name] = kind
        self._missed.update((kind, name) for name, kind in {**self.resting, **self._failed}.items())
        self._failed_before, self._failed = self._failed, {}
        self.at_last_step = bool(self._failed_before)

    def unjudged(self) -> tuple[UnjudgedSteps, ...]:
        """Return how many steps each rule has missed, if any."""
        return tuple(UnjudgedSteps(kind, name, steps) for (kind, name), steps in self._missed.items())


def added_up(parts: Iterable[UnjudgedSteps]) -> tuple[UnjudgedSteps, ...]:
    """Return one entry for each rule, such as for those of several optimizers."""
    total: Counter[tuple[Kind, str]] = Counter()
    for each in parts:
        total[each.kind, each.rule] += each.steps
    return tuple(UnjudgedSteps(kind, rule, steps) for (kind, rule), steps in total.items())


def _block(name: str, kind: Kind) -> str:
    return f"the rule {name}, which looks for {kind}"
