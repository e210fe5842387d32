"""Fail the n-th call that gradwatch makes of the system, for every n, once and for good; and make real faults."""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.endurance.boundary import SORTS
from benchmarks.endurance.fault_try import NAN_STEPS, Outcome, attempt
from benchmarks.endurance.figure import Figure, at_least_one, draws_of
from benchmarks.endurance.processes import Tried, server_with, tried
from benchmarks.endurance.real_faults import FAULTS, attempt_under

__all__ = ["attack", "what_gave_way"]

_PRELOAD = ["benchmarks.endurance.real_faults"]
SECONDS = 60.0  # a try takes a fifth of a second
_WRONGS = {
    "stopped": "runs stopped",
    "weights": "actions dropped (weights that differ in a bit)",
    "healthy": "runs called healthy",
    "next NaN": "later NaN not on disk in each of the three sorts of files",
    "silent": "rows lost in silence",
}


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Make every fault, and say how many tries ended in what may not be."""
    whole = _result_of(next(iter(_made(attempt, [("write",)]))))
    counts = {made.case[0]: _result_of(made).seen for made in _made(attempt, _uneventful())}
    once = [(sort, at, False) for sort, count in counts.items() for at in _drawn(count, share, seed)]
    for_good = [(sort, at, True) for sort, count in counts.items() for at in _drawn(count, share, seed + 1)]
    for how, tries in (("once", once), ("for good", for_good)):
        yield from _figures(f"{_in_words(tries)} fail, each {how}", _made(attempt, tries), whole)
    real = [(name,) for name in FAULTS]
    yield from _figures(f"{len(real)} real faults", _made(attempt_under, real), whole)


def _made(attempt: Callable[..., Outcome], tries: Sequence[tuple[Any, ...]]) -> list[Tried]:
    """Make each try in a process of its own: one that was refused something is not what it was."""
    act = functools.partial(_in_silence, attempt)
    return [*tried(act, tries, context=server_with(_PRELOAD), apart=True, seconds=SECONDS)]


def _in_silence(attempt: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """Make a try, without the tracebacks of threads whose calls were refused."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return attempt(*arguments)


def _uneventful() -> list[tuple[str]]:
    """Return the tries in which nothing fails, which count the calls of each sort."""
    return [(sort,) for sort in SORTS]


def _drawn(count: int, share: float, seed: int) -> Sequence[int]:
    """Return the numbers of the calls that are to fail: all of them at share 1."""
    return sorted(draws_of(seed, count).sample(range(count), min(count, at_least_one(share, count))))


def _in_words(tries: Sequence[tuple[str, int, bool]]) -> str:
    counts = Counter(sort for sort, _, _ in tries)
    return f"{len(tries):,} calls ({', '.join(f'{number:,} {sort}' for sort, number in counts.items())})"


def _figures(what: str, made: Sequence[Tried], whole: Outcome) -> Iterator[Figure]:
    """Yield a figure for all that may not be, of which the first tries are printed."""
    wrong = [(each, wrong) for each in made for wrong in what_gave_way(each, whole)]
    for each, (kind, words) in wrong[:10]:
        print(f"    {each.case}: {kind}: {words}", file=sys.stderr)
    counts = Counter(kind for _, (kind, _) in wrong)
    reached = ", ".join(f"{counts[kind]} {words}" for kind, words in _WRONGS.items())
    yield Figure(what, "0 of each", reached if wrong else "0 of each: " + ", ".join(_WRONGS.values()), not wrong)


def _result_of(made: Tried) -> Outcome:
    """
    Raises:
        RuntimeError: where a try in which nothing fails has no result.
    """
    if made.result is None:
        raise RuntimeError(f"the try {made.case} has no result: {made.how}")
    outcome: Outcome = made.result
    return outcome


def what_gave_way(made: Tried, whole: Outcome) -> Iterator[tuple[str, str]]:
    """Yield what may not be of a try, by its kind and in words.

    Args:
        made: the try.
        whole: what became of the one in which nothing failed.
    """
    if made.result is None:
        yield "stopped", made.how
        return
    outcome: Outcome = made.result
    if outcome.stopped:
        yield "stopped", outcome.stopped
    elif outcome.weights != whole.weights:
        yield "weights", f"at {outcome.places}"
    if outcome.says_healthy or outcome.status == 0:
        yield "healthy", f"by the report (exit status {outcome.status}) at {outcome.places}"
    if not outcome.found and outcome.is_called_whole:
        yield "healthy", f"by the watcher at {outcome.places}"
    later = {step for step in NAN_STEPS if step > outcome.step}
    if outcome.is_over and any(not later <= set(steps) for steps in outcome.on_disk.values()):
        yield "next NaN", f"{outcome.on_disk} at {outcome.places}"
    if outcome.rows != whole.rows and not outcome.says_loss:
        yield "silent", f"{outcome.rows} at {outcome.places}"
