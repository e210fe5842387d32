"""Write runs as JSON, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwatch.event_files.run import Run
from gradwatch.sinks.jsonl import json_of

__all__ = ["runs_as_json"]


def runs_as_json(runs: Sequence[Run], indent: int | None = None) -> str:
    """Return one object for one run, a list for several; numbers that are not finite are null.

    Args:
        runs: any number.
        indent: spaces a level, for people; None for one line.
    """
    objects = [_object(run) for run in runs]
    return json_of(objects[0] if len(objects) == 1 else objects, indent)


def _object(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "findings": [finding.as_dict() for finding in run.findings],
        "layers": len(run.layers),
        "first_step": int(run.steps[0]) if len(run.steps) else None,
        "last_step": int(run.steps[-1]) if len(run.steps) else None,
        "skipped_steps": run.skipped_steps,
        "problems": run.problems,
    }
