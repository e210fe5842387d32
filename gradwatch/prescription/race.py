"""Successive halving: which remedies are tried on how many seeds, within the time there is.

Jamieson and Talwalkar 2016 (arXiv:1502.07943): all are given a little, the better third is given more, until few are
left. What is given out here is seeds: after each, the better third goes on to the next. Where one seed for all would
take too long, the first runs are shorter; where those would, too, fewer take part: the likeliest, which come first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from gradwatch.prescription.ranking import kinds_of, score_of
from gradwatch.prescription.treatments import Treatment, name_of
from gradwatch.prescription.trial import FEWEST, TrialRun
from gradwatch.remedies import NotApplicableError

__all__ = ["race"]

KEPT = 3  # one in so many goes on to the next seed; Hyperband (arXiv:1603.06560) found 3 or 4 best
FINALISTS = 4  # so many at least go on
SHORTEST = 3  # first runs are at least a third of the untreated one's length: in less, nothing is learnt to judge by
ROOM = 2  # first runs are at least so many times as long as the finding took to come: it may come later, treated
SLOWER = 1.5  # a treated step against an untreated one, for the plan alone: the deadline is kept by the clock

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
    """Runs the race.

    Args:
        candidates: the likeliest first.
        try_one: runs one.
        baselines: the untreated run of the first seed; those of the others are added, if they are as sick.
        seeds: one for each round.
        length: updates of a run that is given its full time.
        kind: of the finding to be cured.
        deadline: on ``time.perf_counter``.
        advance: told the share of the race that lies behind.

    Returns:
        The whole runs of each that took part and raised on no seed, without a first one that was shorter where there
        are others; why remedies that have none could not be tried, and what of others could not be done.
    """
    whole: dict[Candidate, list[TrialRun]] = {}
    shortened = False
    barred: dict[str, str] = {}
    failed: dict[str, str] = {}
    partly: dict[str, str] = {}
    field, first = list(candidates), baselines[seeds[0]]
    shortest = max(FEWEST, 1 + max(finding.raised_step for finding in first.findings if finding.kind == kind))
    rounds = [*seeds, seeds[0]]  # once more on the first, if runs on that were shorter
    for round_, seed in enumerate(rounds):
        if round_ == len(seeds) and not shortened:
            break
        until = _end_of_round(deadline, len(rounds) - round_)
        if seed not in baselines and not _is_sick_too(seed, first, length, try_one, baselines, kind, until):
            continue
        steps = length if round_ else _affordable(first, length, shortest, len(field), until)
        going_on = []
        for place, candidate in enumerate(field):
            if time.perf_counter() + _seconds(first, steps) > until:
                break
            advance((round_ + place / len(field)) / len(rounds))
            found = _tried(candidate, seed, steps, try_one, barred, failed)
            if found is None:  # it may have cured on the seeds before: a change that fails on one is no cure
                whole.pop(candidate, None)
            elif found.is_whole:
                kept = [run for run in whole.get(candidate, ()) if not (shortened and run.seed == seeds[0])]
                whole[candidate] = [*kept, found]
                going_on.append(candidate)
        shortened = shortened or steps < length
        going_on.sort(key=lambda candidate: score_of(whole[candidate], baselines, kind))
        field = going_on[: max(FINALISTS, len(going_on) // KEPT)]
    for candidate, runs in whole.items():
        failed.pop(name_of(candidate), None)
        partly |= {name_of(candidate): run.not_done for run in runs if run.not_done}
    return whole, barred | failed | partly


def _is_sick_too(
    seed: int, first: TrialRun, length: int, try_one: Try, baselines: dict[int, TrialRun], kind: str, until: float
) -> bool:
    """Runs the untreated model under this seed; where it shows nothing or raises, or time is short, it judges none."""
    if time.perf_counter() + 2 * _seconds(first, length) > until:
        return False
    try:
        baseline = try_one((), seed, length)
    except Exception:  # as no seed before: what was learnt on those stands
        return False
    if baseline.is_whole and kind in kinds_of(baseline.findings):
        baselines[seed] = baseline
    return seed in baselines


def _tried(
    candidate: Candidate, seed: int, steps: int, try_one: Try, barred: dict[str, str], failed: dict[str, str]
) -> TrialRun | None:
    """Its run; None where there is nothing for it to change in this model, or where it fails, as others need not."""
    if any(treatment.remedy in barred for treatment in candidate):
        return None
    try:
        return try_one(candidate, seed, steps)
    except NotApplicableError as error:
        barred[name_of(candidate)] = f"not applicable: {error}"
    except Exception as error:  # whatever a treated model raises is a reason, not an end
        failed[name_of(candidate)] = f"not applicable: the changed model raised {type(error).__name__}: {error}"
    return None


def _end_of_round(deadline: float, rounds: int) -> float:
    """When this round ends, of so many left: each takes a ``KEPT``-th of the time of the one before."""
    now = time.perf_counter()
    return now + (deadline - now) / sum(KEPT**-round_ for round_ in range(rounds))


def _affordable(baseline: TrialRun, length: int, onset: int, tried: int, until: float) -> int:
    """Updates of the first runs: ``length``, or fewer, so that all are tried, but enough to see the finding come."""
    training = (until - time.perf_counter()) / tried - baseline.seconds_around
    affordable = training / (SLOWER * baseline.seconds_per_step)
    return min(length, max(ROOM * onset, length // SHORTEST, math.floor(affordable)))


def _seconds(untreated: TrialRun, steps: int) -> float:
    """What a run of so many updates takes, if treated ones take as long."""
    return untreated.seconds_around + steps * untreated.seconds_per_step
