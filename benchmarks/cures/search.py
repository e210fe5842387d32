"""Search all treatments and pairs for any cure.

Each is tried on one seed until one cures; that one is confirmed on fresh seeds, of model and data, and the search goes
on where they do not bear it out. Each program's result is written as soon as it is known, so the search can be broken
off and goes on where it was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.cures import results
from benchmarks.cures.collection import Collection
from benchmarks.cures.form import Form, Named
from benchmarks.cures.forms import form_of
from gradwatch.findings import Finding, Kind
from gradwatch.prescription.fitting import candidates, everything
from gradwatch.prescription.problem import Problem
from gradwatch.prescription.race import Candidate
from gradwatch.prescription.ranking import is_cured, main_kind
from gradwatch.prescription.treatments import name_of
from gradwatch.prescription.trial import LONGEST, TrialRun, run
from gradwatch.remedies import NotApplicableError

SCREEN, CONFIRM = 100, (101, 102)


def search(collection: Collection, seconds: float, half: str, only: list[str] | None = None) -> None:
    """Go on with the search for about so many seconds."""
    results.go_on(collection.searched, collection.chosen(half), searched, seconds, only)


def searched(program: Named) -> dict[str, Any]:
    """Return what the search finds for one program."""
    begin = time.perf_counter()
    base = {"program": program.name, "kind": program.kind, "is_measured": program.is_measured}
    form = form_of(program, SCREEN)
    if isinstance(form, str):
        return {**base, "excluded": form}
    found = untreated(form, SCREEN)
    kind = sickness(found)
    if kind is None:
        return {**base, "excluded": "in this form the watcher finds nothing in 300 updates"}
    tried = 0
    failed: set[str] = set()
    for candidate in ordered(kind, found.findings):
        if any(treatment.remedy in failed for treatment in candidate):
            continue
        tried += 1
        try:
            is_cure = cures(program, candidate, SCREEN, kind, form)
        except Exception as error:  # of a treated model: no cure
            if len(candidate) == 1 and isinstance(error, NotApplicableError):
                failed.add(candidate[0].remedy)
            continue
        if is_cure and confirmed(program, candidate, kind):
            took = round(time.perf_counter() - begin, 1)
            return {**base, "found": kind, "cure": name_of(candidate), "tried": tried, "seconds": took}
    return {**base, "found": kind, "cure": None, "tried": tried, "seconds": round(time.perf_counter() - begin, 1)}


def ordered(kind: Kind, findings: Sequence[Finding]) -> list[Candidate]:
    """Return everything, first what ``prescribe`` would try first, so that a cure is found sooner."""
    first = candidates(kind, findings)
    return [*first, *(candidate for candidate in everything() if candidate not in first)]


def confirmed(program: Named, candidate: Candidate, kind: str) -> bool:
    """Return whether the candidate cures on fresh seeds."""
    return all(cures_afresh(program, candidate, kind, seed) for seed in CONFIRM)


def cures_afresh(program: Named, candidate: Candidate, kind: str, seed: int) -> bool:
    """Return whether the candidate cures on another seed, of data and model; an error is no cure."""
    form = form_of(program, seed)
    assert isinstance(form, Form)
    try:
        return cures(program, candidate, seed, kind, form)
    except Exception:
        return False


def cures(program: Named, candidate: Candidate, seed: int, kind: str, form: Form) -> bool:
    """Return whether ``candidate`` cures the program under ``seed``."""
    return is_cured(run(problem_of(form), candidate, seed, LONGEST), untreated(form, seed), kind)


@functools.lru_cache(maxsize=8)
def untreated(form: Form, seed: int) -> TrialRun:
    """Return the run without a treatment, which is made once."""
    return run(problem_of(form), (), seed, LONGEST)


@functools.lru_cache(maxsize=8)
def problem_of(form: Form) -> Problem:
    """Return the form's problem, always the same: a run without a treatment may drop held-out batches from it."""
    return Problem.of(form.make_model, form.make_optimizer, form.batches, form.loss_fn)


def sickness(untreated: TrialRun) -> Kind | None:
    """Return the kind that ``prescribe`` would try to cure."""
    return main_kind(untreated) if untreated.findings else None
