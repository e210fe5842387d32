"""The results on disk: one JSON line a program, in three files beside this one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.external.execute import Outcome
from benchmarks.external.prove import BareRun, bare_run

HERE = Path(__file__).parent
BARE, FIRST, SECOND = HERE / "bare.jsonl", HERE / "first.jsonl", HERE / "second.jsonl"
"""Bare runs; the first watched run, by frozen rules; a run after rules were mended, which has seen the first."""

MOST_FINDINGS = 30


def append_bare(path: Path, name: str, outcome: Outcome) -> None:
    """Add a bare run to ``path``."""
    run = bare_run(outcome.record) if outcome.record else None
    _append(path, {"name": name, "status": outcome.status, "seconds": outcome.seconds,
                   "run": None if run is None else asdict(run)})  # fmt: skip


def append_watched(path: Path, name: str, outcome: Outcome, commit: str) -> None:
    """Add a watched run to ``path``, and the commit of the rules that watched it."""
    findings = [_short(finding) for finding in outcome.findings[:MOST_FINDINGS]]
    _append(path, {"name": name, "status": outcome.status, "seconds": outcome.seconds, "steps": outcome.steps,
                   "commit": commit, "count": len(outcome.findings), "findings": findings})  # fmt: skip


def _short(finding: dict[str, Any]) -> dict[str, Any]:
    kept = ("kind", "layer", "step", "raised_step", "last_step", "measured", "cause")
    return {name: finding[name] for name in kept} | {"remedies": [advice["name"] for advice in finding["remedies"][:3]]}


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of ``path`` by the program's name; the latest counts."""
    if not path.exists():
        return {}
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in read}


def bare_runs(path: Path = BARE) -> dict[str, BareRun]:
    """Return the bare runs that made an update, by the program's name."""
    return {name: BareRun(**row["run"]) for name, row in rows(path).items() if row["run"] and row["run"]["updates"]}
