"""Runs as JSON, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradwatch.event_files.run import Run
from gradwatch.findings import Finding
from gradwatch.sinks.jsonl import json_of

__all__ = ["runs_as_json"]

_FIELDS = ("kind", "severity", "layer", "layers", "step", "last_step", "value", "threshold", "cause", "message")


def runs_as_json(runs: Sequence[Run]) -> str:
    """One object for one run, a list for several; numbers that are not finite are null."""
    objects = [_object(run) for run in runs]
    return json_of(objects[0] if len(objects) == 1 else objects)


def _object(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "findings": [_fields(finding) for finding in run.findings],
        "layers": len(run.layers),
        "first_step": int(run.steps[0]) if len(run.steps) else None,
        "last_step": int(run.steps[-1]) if len(run.steps) else None,
        "skipped_steps": run.skipped_steps,
        "problems": run.problems,
    }


def _fields(finding: Finding) -> dict[str, Any]:
    values = finding.as_dict()
    return {name: values[name] for name in _FIELDS}
