"""Run a program until what it trains is known, and read what an adapter has kept of it.

What is kept lies in the scratch folder and is used again by the next run.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

from benchmarks.external.execute import Places, run_kept
from benchmarks.external.program import External
from benchmarks.external.tensors import WRITTEN

LIMIT = 120.0
"""Seconds for a program to come to what it trains."""

UPDATES = 320
"""Updates of a program on torch that are kept: what ``prescribe`` takes of a loader."""


def kept(program: External, places: Places) -> dict[str, Any] | None:
    """Return what is kept of ``program``; None if it did not come so far."""
    file = places.scratch / f"{program.name.replace('/', '-')}.kept"
    if not file.exists():
        places.scratch.mkdir(parents=True, exist_ok=True)
        outcome = run_kept(_prepared(program), places, LIMIT, file)
        file.with_suffix(".log").write_text(outcome.output, encoding="utf-8")
    return pickle.loads(file.read_bytes()) if file.exists() else None


def _prepared(program: External) -> External:
    """Return the program with the adapter that keeps what it trains."""
    if "keras_torch" in program.adapters:
        return dataclasses.replace(program, adapters=("keep_keras", *program.adapters), updates=0)
    targets = WRITTEN[program.name].targets if program.name in WRITTEN else ""
    return dataclasses.replace(
        program,
        adapters=(*program.adapters, "keep_torch"),
        environment=program.environment | {"EXTERNAL_TARGETS": targets},
        updates=program.updates and UPDATES,
    )
