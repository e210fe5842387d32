"""Measure whether the first-ranked remedy cures on fresh seeds, for programs for which the search found a cure.

Each program is prescribed for once, within ``BUDGET`` seconds; what is ranked first is tried again on seeds of model
and data that nobody has seen. The controls are no remedy, remedies drawn at random, and always the same remedy.
Each program's result is written as soon as it is known, and known ones are left out of a further run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import gradwatch
from benchmarks.cures import results, search
from benchmarks.cures.collection import Collection
from benchmarks.cures.form import Form, Named
from benchmarks.cures.forms import form_of
from gradwatch.prescription.fitting import candidates, everything
from gradwatch.prescription.race import Candidate
from gradwatch.prescription.ranking import Trial
from gradwatch.prescription.treatments import code_of, name_of
from gradwatch.remedies import NotApplicableError

PRESCRIBED, FRESH = 200, (301, 302, 303)
BUDGET = 30.0
DRAWN = 1  # remedy at random for each fresh seed
ALWAYS = "he + lower-learning-rate"


def measure(collection: Collection, seconds: float, half: str, only: Sequence[str] | None = None) -> None:
    """Measure the programs that are not measured yet, for about so many seconds."""
    results.go_on(collection.measured, collection.curable(half), measured, seconds, only)


def measured(program: Named) -> dict[str, Any]:
    """Return what was ranked first for one program, and how it and the controls do on the fresh seeds."""
    form = form_of(program, PRESCRIBED)
    assert isinstance(form, Form)
    begin = time.perf_counter()
    found = gradwatch.prescribe(form.make_model, form.make_optimizer, form.batches, form.loss_fn, budget_seconds=BUDGET)
    took = time.perf_counter() - begin
    first = found.ranking[0] if found.ranking else None
    base = {"program": program.name, "kind": program.kind, "is_measured": program.is_measured}
    always = next(each for each in everything() if name_of(each) == ALWAYS)
    shares = [fresh(program, seed, first and candidate_of(first), always) for seed in FRESH]
    return {
        **base,
        "first": first and first.remedy,
        "said_cured": bool(first and first.cured),
        "seeds": first and len(first.seeds),
        "tried": len(found.ranking),
        "seconds": round(took, 1),
        "cured": [each["first"] for each in shares],
        "random": [each["random"] for each in shares],
        "always": [each["always"] for each in shares],
        "note": found.note,
    }


def fresh(program: Named, seed: int, first: Candidate | None, always: Candidate) -> dict[str, float | None]:
    """Return for one fresh seed 1 or 0 for the first-ranked and the constant remedy, and a share for those drawn.

    None for each if nothing is sick on this seed: then no remedy can be judged.
    """
    form = form_of(program, seed)
    assert isinstance(form, Form)
    kind = search.sickness(search.untreated(form, seed))
    if kind is None:
        return {"first": None, "always": None, "random": None}
    draw = random.Random(f"{program.name} {seed}")
    pool = candidates(kind)
    drawn = []
    while len(drawn) < DRAWN:
        outcome = outcome_of(program, draw.choice(pool), seed, kind, form)
        drawn += [] if outcome is None else [outcome]
    return {
        "first": first is not None and (outcome_of(program, first, seed, kind, form) or 0.0),
        "always": outcome_of(program, always, seed, kind, form) or 0.0,
        "random": sum(drawn) / DRAWN,
    }


def outcome_of(program: Named, candidate: Candidate, seed: int, kind: str, form: Form) -> float | None:
    """Return 1 if the candidate cures, 0 if not, None if it does not apply."""
    try:
        return float(search.cures(program, candidate, seed, kind, form))
    except NotApplicableError:
        return None
    except Exception:
        return 0.0


def candidate_of(trial: Trial) -> Candidate:
    """Return the treatments of a trial."""
    return next(each for each in everything() if name_of(each) == trial.remedy and trial.code.endswith(code_of(each)))
