"""Write runs as JSON, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradwatch.event_files.run import Run
from gradwatch.sinks.jsonl import json_of
from gradwatch.views.phrases import verdict

__all__ = ["object_of", "runs_as_json"]


def runs_as_json(runs: Sequence[Run], indent: int | None = None) -> str:
    """Return one object for one run, a list for several; numbers that are not finite are null.

    Args:
        runs: any number.
        indent: spaces a level, for people; None for one line.
    """
    objects = [object_of(run) for run in runs]
    return json_of(objects[0] if len(objects) == 1 else objects, indent)


def object_of(run: Run) -> dict[str, Any]:
    """Return the findings and the extent of ``run`` as plain values."""
    return {
        "run": run.name,
        "verdict": verdict(run).word,
        "findings": [finding.as_dict() for finding in run.findings],
        "layers": len(run.layers),
        "first_step": int(run.steps[0]) if len(run.steps) else None,
        "last_step": int(run.steps[-1]) if len(run.steps) else None,
        "ended": run.closed_after is not None,
        "skipped_steps": run.skipped_steps,
        "unmeasured_steps": 0 if run.coverage is None else run.coverage.unmeasured,
        "not_looked_for": [] if run.coverage is None else [asdict(each) for each in run.coverage.unjudged],
        "lost": dict(run.lost),
        "problems": run.problems,
        "environment": None if run.environment is None else asdict(run.environment),
    }
