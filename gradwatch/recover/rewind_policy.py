"""Decide when a run goes back, to which snapshot, and when it gives up. It knows nothing but numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gradwatch.recover.rewind import Rewind

__all__ = ["REFUSALS", "Decision", "KeptSnapshot", "RewindPolicy", "Symptoms"]

REFUSALS = 3
"""Updates in a row that are not finite: one or two may be corrupt batches, three say that the weights are sick."""


@dataclass(frozen=True)
class Symptoms:
    """The symptoms of a run after a step.

    Attributes:
        steps: steps so far; the next one has this number.
        onset: the first sick step of what leaving an update out cannot mend; None where nothing is.
        is_refused: the latest update was left out, because it was not finite.
        can_go_on: the sickness may pass by itself, so that the run goes on where it cannot go back.
        is_open: a finding that the run could go back for has opened and not ended.
    """

    steps: int
    onset: int | None = None
    is_refused: bool = False
    can_go_on: bool = False
    is_open: bool = False


@dataclass(frozen=True)
class Decision:
    """The decision after a step.

    Attributes:
        action: ``"nothing"``; ``"skip"``: the update was left out, and that is enough; ``"rewind"``; ``"stay"``: there
            is no snapshot to go back to, and the run goes on; ``"give up"``.
        snapshot: the steps of the snapshot that is restored.
        onset: the first sick step, where the run goes back.
        reason: why the run stays or gives up.
    """

    action: Literal["nothing", "skip", "rewind", "stay", "give up"]
    snapshot: int | None = None
    onset: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class KeptSnapshot:
    """A snapshot as the policy knows it.

    Attributes:
        steps: steps that the run had made when it was taken.
        healthy_since: the step from which it has been healthy.
        was_restored: the run went back to it before.
    """

    steps: int
    healthy_since: int
    was_restored: bool = False


class RewindPolicy:
    """The decisions of one run, after each step.

    The newest confirmed snapshot is restored. If the run was there before, and an older one is left, that is the one:
    what came back is older than it seemed.

    Args:
        plan: what the user asked for.

    Attributes:
        snapshots: from the oldest to the newest.
        times: how often the run has gone back since it was last healthy for two cooldowns.
        rate_factor: what the learning rates are to be multiplied by.
    """

    def __init__(self, plan: Rewind) -> None:
        self._plan = plan
        self.snapshots: list[KeptSnapshot] = []
        self.times, self.rate_factor = 0, 1.0
        self._refused_in_a_row = self._first_refused = self._decided_at = 0
        self._last_rewind: int | None = None
        self._next = 1
        self._is_sick = False

    def decide(self, symptoms: Symptoms) -> Decision:
        """Return what is done after a step; a rewind counts as done."""
        self._recover_from_last(symptoms.steps)
        self._count_refusals(symptoms)
        onset = symptoms.onset
        self._is_sick = symptoms.is_refused or symptoms.is_open
        if self._is_sick and onset is None:
            self._begin_anew_to_confirm(symptoms.steps)
        if onset is None and self._refused_in_a_row >= REFUSALS:
            onset = self._first_refused
        if onset is None:
            return Decision("skip" if symptoms.is_refused else "nothing")
        decision = self._go_back(symptoms, onset)
        if decision.action == "stay":
            self._begin_anew_to_confirm(symptoms.steps)
        return decision

    def is_due(self, steps: int) -> bool:
        """Return whether a snapshot is to be taken now; none replaces the only confirmed one."""
        if steps < self._next or self._is_sick:
            return False
        is_full = len(self.snapshots) >= self._plan.keep
        return not is_full or self._is_confirmed(self.snapshots[1], steps)

    def note_taken(self, steps: int) -> int | None:
        """Note that a snapshot was taken; return the steps of the one that it replaces."""
        self.snapshots.append(KeptSnapshot(steps, steps))
        self._next = steps - steps % self._plan.every + self._plan.every
        if len(self.snapshots) <= self._plan.keep:
            return None
        return self.snapshots.pop(0).steps

    def forget(self, steps: int) -> None:
        """Forget a snapshot that cannot be restored."""
        self.snapshots = [each for each in self.snapshots if each.steps != steps]

    def _count_refusals(self, symptoms: Symptoms) -> None:
        if symptoms.is_refused and not self._refused_in_a_row:
            self._first_refused = self._decided_at  # of the steps since then, one was refused
        self._refused_in_a_row = self._refused_in_a_row + 1 if symptoms.is_refused else 0
        self._decided_at = symptoms.steps

    def _is_confirmed(self, snapshot: KeptSnapshot, steps: int) -> bool:
        return steps - snapshot.healthy_since >= self._plan.confirm

    def _begin_anew_to_confirm(self, steps: int) -> None:
        """Let snapshots that were not confirmed before the latest step wait anew: its sickness may be theirs."""
        self.snapshots = [
            each if self._is_confirmed(each, steps - 1) else replace(each, healthy_since=steps)
            for each in self.snapshots
        ]

    def _recover_from_last(self, steps: int) -> None:
        """Take in that the run has been healthy for long."""
        since = 0 if self._last_rewind is None else steps - self._last_rewind
        if since >= self._plan.cooldown:
            self.rate_factor = 1.0
        if since >= 2 * self._plan.cooldown:
            self.times, self._last_rewind = 0, None

    def _go_back(self, symptoms: Symptoms, onset: int) -> Decision:
        confirmed = [each for each in self.snapshots if self._is_confirmed(each, onset)]
        if not confirmed:
            reason = f"no snapshot had stayed healthy for {self._plan.confirm} steps before step {onset}"
            return Decision("stay" if symptoms.can_go_on else "give up", reason=reason)
        if self.times >= self._plan.max_times:
            return Decision("give up", reason=f"the run has gone back {self.times} times, and may not more often")
        chosen = _to_restore(confirmed)
        kept = [each for each in self.snapshots if each.steps < chosen.steps]
        self.snapshots = [*kept, replace(chosen, was_restored=True)]
        self.times, self._last_rewind = self.times + 1, symptoms.steps
        self.rate_factor *= self._plan.lr_factor
        self._refused_in_a_row, self._is_sick = 0, False
        self._next = symptoms.steps + self._plan.every
        return Decision("rewind", chosen.steps, onset)


def _to_restore(confirmed: Sequence[KeptSnapshot]) -> KeptSnapshot:
    """Return the newest that the run has not gone back to yet; the oldest where it has gone back to all."""
    fresh = [each for each in confirmed if not each.was_restored]
    return fresh[-1] if fresh else confirmed[0]
