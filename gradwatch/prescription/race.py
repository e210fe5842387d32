"""Decide by successive halving which remedies are tried on how many seeds, within the time there is.

Jamieson and Talwalkar 2016 (arXiv:1502.07943): all candidates are given a little, the better third is given more, until
few are left. What is given here is seeds: after each seed, the better third goes on to the next. If one seed for all
would take too long, the first runs are shorter. If those would take too long, too, only the likeliest candidates, which
come first, take part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gradwatch.prescription.ranking import kinds_of, score_of
from gradwatch.prescription.treatments import Treatment, name_of
from gradwatch.prescription.trial import FEWEST, TrialRun
from gradwatch.remedies import NotApplicableError

__all__ = ["race"]

KEPT = 3  # one in so many goes on to the next seed; Hyperband (arXiv:1603.06560) found 3 or 4 best
FINALISTS = 4  # so many at least go on
SHORTEST = 3  # first runs have at least a third of the untreated run's updates: fewer teach nothing to judge by
ROOM = 2  # first runs have at least twice as many updates as the finding took to come, since it may come later
SLOWER = 1.5  # a treated step in units of an untreated one, for the plan alone: the clock keeps the deadline

Candidate = tuple[Treatment, ...]
Try = Callable[[Candidate, int, int], TrialRun]
"""(treatments, seed, steps) → its run; without treatments the untreated one."""


def race(
    candidates: Sequence[Candidate],
    try_one: Try,
    baselines: dict[int, TrialRun],
    seeds: Sequence[int],
    length: int,
    kind: str,
    deadline: float,
    advance: Callable[[float], None],
) -> tuple[dict[Candidate, list[TrialRun]], dict[str, str]]:
    """Run the race.

    Args:
        candidates: the likeliest first.
        try_one: makes one run.
        baselines: the untreated run of the first seed; those of the others are added, if they are as sick.
        seeds: one for each round.
        length: updates of a run of full length.
        kind: of the finding to be cured.
        deadline: on ``time.perf_counter``.
        advance: is called with the share of the race that is done.

    Returns:
        The whole runs of each candidate that took part and raised on no seed, without a shorter first run if there are
        others; and for remedies that could not be tried, or not in full, the reason.
    """
    state = _Race(try_one, baselines, kind, length, baselines[seeds[0]])
    running = list(candidates)
    rounds = [*seeds, seeds[0]]  # once more on the first seed, if the runs on it were shorter
    for number, seed in enumerate(rounds):
        if number == len(seeds) and not state.shortened:
            break
        until = _end_of_round(deadline, len(rounds) - number)
        if seed not in baselines and not state.is_sick_too(seed, until):
            continue
        steps = length if number else state.affordable_steps(len(running), until)
        going_on = []
        for place, candidate in enumerate(running):
            if state.would_end_after(until, steps):
                break
            advance((number + place / len(running)) / len(rounds))
            if state.tried(candidate, seed, steps):
                going_on.append(candidate)
        state.shortened |= steps < length
        running = state.better_part(going_on)
    return state.whole, state.reasons()


@dataclass
class _Race:
    """The state of a race.

    Attributes:
        try_one, baselines, kind, length: as ``race`` takes them.
        first: the untreated run of the first seed.
        whole: the whole runs of each candidate so far.
        shortened: the runs on the first seed were shorter than ``length``.
        barred: remedies that do not apply to this model, with the reason.
        failed: candidates whose model raised, with the reason.
    """

    try_one: Try
    baselines: dict[int, TrialRun]
    kind: str
    length: int
    first: TrialRun
    whole: dict[Candidate, list[TrialRun]] = field(default_factory=dict)
    shortened: bool = False
    barred: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def is_sick_too(self, seed: int, until: float) -> bool:
        """Run the untreated model under this seed, and return whether remedies can be judged on it.

        They cannot if the run shows nothing or raises, or if there is no time for it.
        """
        if self.would_end_after(until, self.length, runs=2):
            return False
        try:
            baseline = self.try_one((), seed, self.length)
        except Exception:  # it raised on no seed before: what was learnt on those holds
            return False
        if baseline.is_whole and self.kind in kinds_of(baseline.findings):
            self.baselines[seed] = baseline
        return seed in self.baselines

    def tried(self, candidate: Candidate, seed: int, steps: int) -> bool:
        """Make one run of a candidate, and return whether it stays in the race."""
        found = self._run_of(candidate, seed, steps)
        if found is None:  # it may have cured on the seeds before, but a change that fails on one is no cure
            self.whole.pop(candidate, None)
            return False
        if found.is_whole:
            earlier = self.whole.get(candidate, ())
            kept = [run for run in earlier if not (self.shortened and run.seed == self.first.seed)]
            self.whole[candidate] = [*kept, found]
        return found.is_whole

    def better_part(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that go on to the next round, best first."""
        best_first = sorted(candidates, key=lambda each: score_of(self.whole[each], self.baselines, self.kind))
        return best_first[: max(FINALISTS, len(best_first) // KEPT)]

    def _run_of(self, candidate: Candidate, seed: int, steps: int) -> TrialRun | None:
        """Return the candidate's run; None if there is nothing for it to change in this model, or if it raises."""
        if any(treatment.remedy in self.barred for treatment in candidate):
            return None
        try:
            return self.try_one(candidate, seed, steps)
        except NotApplicableError as error:
            self.barred[name_of(candidate)] = f"not applicable: {error}"
        except Exception as error:  # whatever a treated model raises is a reason, not an end
            reason = f"not applicable: the changed model raised {type(error).__name__}: {error}"
            self.failed[name_of(candidate)] = reason
        return None

    def would_end_after(self, until: float, steps: int, runs: int = 1) -> bool:
        """Return whether runs of so many updates would end after ``until``, if treated steps take as long as others."""
        seconds = self.first.seconds_around + steps * self.first.seconds_per_step
        return time.perf_counter() + runs * seconds > until

    def affordable_steps(self, candidates: int, until: float) -> int:
        """Return the updates of the first runs: as many as let all be tried, but enough to see the finding come."""
        onset = max(finding.raised_step for finding in self.first.findings if finding.kind == self.kind)
        training = (until - time.perf_counter()) / candidates - self.first.seconds_around
        affordable = math.floor(training / (SLOWER * self.first.seconds_per_step))
        fewest = ROOM * max(FEWEST, 1 + onset)
        return min(self.length, max(fewest, self.length // SHORTEST, affordable))

    def reasons(self) -> dict[str, str]:
        """Return for each remedy why it could not be tried, or what of it could not be done."""
        tried = {name_of(candidate) for candidate in self.whole}
        failed = {name: reason for name, reason in self.failed.items() if name not in tried}
        partly: dict[str, str] = {}
        for candidate, runs in self.whole.items():
            partly |= {name_of(candidate): run.not_done for run in runs if run.not_done}
        return self.barred | failed | partly


def _end_of_round(deadline: float, rounds: int) -> float:
    """Return when this round ends, with so many left: each takes a third of the time of the one before."""
    now = time.perf_counter()
    return now + (deadline - now) / sum(KEPT**-number for number in range(rounds))
