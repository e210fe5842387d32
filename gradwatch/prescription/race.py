"""Decide by successive halving which remedies are tried on how many seeds, within the time there is.

Jamieson and Talwalkar 2016 (arXiv:1502.07943): all candidates are given a little, the better third is given more, until
few are left. What is given here is seeds: after each seed, the better third goes on to the next. If one seed for all
would take too long, the first runs are shorter. If those would take too long, too, only the likeliest candidates, which
come first, take part. In the time that is left the leader has to bear further seeds, as a cure by chance does not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from gradwatch.prescription.ranking import in_order, is_cure, kinds_of
from gradwatch.prescription.side_by_side import TrialError, side_by_side
from gradwatch.prescription.treatments import Treatment, name_of
from gradwatch.prescription.trial import FEWEST, TrialRun
from gradwatch.remedies import NotApplicableError

__all__ = ["race"]

KEPT = 3  # one in so many goes on to the next seed; Hyperband (arXiv:1603.06560) found 3 or 4 best
FINALISTS = 4  # so many at least go on
SHORTEST = 3  # first runs have at least a third of the untreated run's updates: fewer teach nothing to judge by
ROOM = 2  # first runs have at least twice as many updates as the finding took to come, since it may come later
FURTHER = 3  # seeds to look at in place of one on which nothing is sick: four looks find a fault of every second seed
PATIENCE = 11  # the same for the leader, for whom there is more time: twelve looks find a fault of every fourth seed
CONFIRMED = 2  # times the seeds of the race: those of the leader, if there is time
ABREAST = 2  # leaders that are tried at a time, however many workers there are: results must not depend on these
SLOWER = 1.5  # a treated step in units of an untreated one, for the plan alone: the clock keeps the deadline

Candidate = tuple[Treatment, ...]
Try = Callable[[Candidate, int, int], TrialRun]
"""(treatments, seed, steps) → its run; without treatments the untreated one."""

Advance = Callable[[float, str], None]
"""Is told the share of the race that is done, and what is tried now."""


def race(
    candidates: Sequence[Candidate],
    try_one: Try,
    baselines: dict[int, TrialRun],
    seeds: Sequence[int],
    length: int,
    kind: str,
    deadline: float,
    advance: Advance,
    advised: Collection[str] = (),
    workers: int = 1,
) -> tuple[dict[Candidate, list[TrialRun]], dict[str, str]]:
    """Run the race.

    Args:
        candidates: the likeliest first.
        try_one: makes one run.
        baselines: the untreated run of the first seed; those of the others are added, if they are as sick.
        seeds: one for each round; the ones above the last take the places of those on which nothing is sick.
        length: updates of a run of full length.
        kind: of the finding to be cured.
        deadline: on ``time.perf_counter``.
        advance: is called as each run begins.
        advised: names of the remedies that the findings advise.
        workers: runs that are made at a time.

    Returns:
        The whole runs of each candidate that took part and raised on no seed, without a shorter first run if there are
        others; and for remedies that could not be tried, or not in full, the reason.
    """
    state = _Race(try_one, baselines, kind, length, baselines[seeds[0]], advised, workers)
    running = list(candidates)
    spare = itertools.count(max(seeds) + 1)
    rounds = [*seeds, seeds[0]]  # once more on the first seed, if the runs on it were shorter
    stages = len(rounds) + 1
    for number, seed in enumerate(rounds):
        if number == len(seeds) and not state.shortened:
            break
        until = _end_of_round(deadline, len(rounds) - number)
        sick = seed if seed in baselines else state.sick_seed(seed, spare, until)
        if sick is None:
            continue
        steps = length if number else state.affordable_steps(len(running), until)
        begun = lambda place, name: advance((number + place / len(running)) / stages, name)  # noqa: B023
        going_on = state.tried(running, sick, steps, until, begun)
        state.shortened |= steps < length
        running = state.better_part(going_on)
    state.confirm(CONFIRMED * len(seeds), spare, deadline, lambda _, name: advance(len(rounds) / stages, name))
    return {each: state.whole[each] for each in candidates if each in state.whole}, state.reasons()


@dataclass
class _Race:
    """The state of a race.

    Attributes:
        try_one, baselines, kind, length, advised: as ``race`` takes them.
        first: the untreated run of the first seed.
        workers: runs that are made at a time.
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
    advised: Collection[str] = ()
    workers: int = 1
    whole: dict[Candidate, list[TrialRun]] = field(default_factory=dict)
    shortened: bool = False
    barred: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def sick_seed(self, seed: int, spare: Iterator[int], until: float, further: int = FURTHER) -> int | None:
        """Return ``seed`` if the untreated model is as sick on it, else the first such of ``further`` spare ones."""
        looked_at = itertools.chain([seed], itertools.islice(spare, further))
        return next((each for each in looked_at if self.is_sick_too(each, until)), None)

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

    def tried(
        self, candidates: Sequence[Candidate], seed: int, steps: int, until: float, begun: Callable[[int, str], None]
    ) -> list[Candidate]:
        """Make one run of each candidate for which there is time, and return those that stay in the race.

        Args:
            candidates: in the order in which they begin.
            seed, steps: of each run.
            until: when this round ends, on ``time.perf_counter``.
            begun: is told the place and the name of each that begins.
        """

        def those_in_time() -> Iterator[Candidate]:
            for place, candidate in enumerate(candidates):
                if self.would_end_after(until, steps):
                    return
                if not any(treatment.remedy in self.barred for treatment in candidate):
                    begun(place, name_of(candidate))
                    yield candidate

        make = lambda candidate: self.try_one(candidate, seed, steps)
        outcomes = side_by_side(make, those_in_time(), self.workers)
        staying = {candidate for candidate, outcome in outcomes if self.takes(candidate, outcome)}
        return [candidate for candidate in candidates if candidate in staying]

    def takes(self, candidate: Candidate, outcome: TrialRun | NotApplicableError | TrialError) -> bool:
        """Take in one run of a candidate, and return whether it stays in the race."""
        if isinstance(outcome, NotApplicableError):
            self.barred[name_of(candidate)] = f"not applicable: {outcome}"
        elif isinstance(outcome, TrialError):
            self.failed[name_of(candidate)] = f"not applicable: the changed model raised {outcome}"
        if not isinstance(outcome, TrialRun):  # it may have cured on earlier seeds, but what fails on one is no cure
            self.whole.pop(candidate, None)
            return False
        if outcome.is_whole:
            earlier = self.whole.get(candidate, ())
            self.whole[candidate] = [*(run for run in earlier if not self.is_shortened(run)), outcome]
        return outcome.is_whole

    def better_part(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that go on to the next round, best first."""
        best_first = self.in_order(candidates)
        return best_first[: max(FINALISTS, len(best_first) // KEPT)]

    def in_order(self, candidates: Collection[Candidate]) -> list[Candidate]:
        """Return candidates that were tried, best first."""
        return in_order({each: self.whole[each] for each in candidates}, self.baselines, self.kind, self.advised)

    def confirm(self, most: int, spare: Iterator[int], deadline: float, begun: Callable[[int, str], None]) -> None:
        """Try the cures that lead on further seeds, until the leader was tried on ``most``.

        One that fails on a seed leads no more.
        """
        while (leaders := self.leaders(most)) and not self.would_end_after(deadline, self.length, runs=2):
            lacking = [seed for seed in self.baselines if self.lacks(leaders[0], seed)]
            seed = lacking[0] if lacking else self.sick_seed(next(spare), spare, deadline, PATIENCE)
            if seed is None:
                return
            self.tried([each for each in leaders if self.lacks(each, seed)], seed, self.length, deadline, begun)

    def leaders(self, most: int) -> list[Candidate]:
        """Return the ``ABREAST`` cures that lead; none once the leader was tried on ``most`` seeds."""
        there = [each for each in self.whole if not any(treatment.remedy in self.barred for treatment in each)]
        leading = itertools.takewhile(lambda each: len(self.whole[each]) < most, self.in_order(there))
        cures = (each for each in leading if is_cure(self.whole[each], self.baselines, self.kind))
        return list(itertools.islice(cures, ABREAST))

    def lacks(self, candidate: Candidate, seed: int) -> bool:
        """Return whether a candidate was not tried on this seed for the full length."""
        return not any(run.seed == seed and not self.is_shortened(run) for run in self.whole[candidate])

    def is_shortened(self, run: TrialRun) -> bool:
        """Return whether a run is one of the first ones, which were too short to count beside others."""
        return self.shortened and run.seed == self.first.seed and run.steps < self.length

    def would_end_after(self, until: float, steps: int, runs: int = 1) -> bool:
        """Return whether runs of so many updates would end after ``until``, if treated steps take as long as others."""
        seconds = self.first.seconds_around + steps * self.first.seconds_per_step
        return time.perf_counter() + runs * seconds > until

    def affordable_steps(self, candidates: int, until: float) -> int:
        """Return the updates of the first runs: as many as let all be tried, but enough to see the finding come."""
        onset = max(finding.raised_step for finding in self.first.findings if finding.kind == self.kind)
        training = (until - time.perf_counter()) * self.workers / candidates - self.first.seconds_around
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
