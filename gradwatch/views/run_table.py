"""Show many runs in a terminal as a table with a line each, worst on top."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from gradwatch.event_files.run import Run
from gradwatch.views.phrases import counted, lost_words, number, unmeasured_words, verdict

__all__ = ["STYLES", "run_table", "worst_first"]

STYLES = {"healthy": "bold green", "unknown": "bold magenta", "warning": "bold yellow", "error": "bold red"}
_RANK = {"error": 0, "warning": 1, "unknown": 2, "healthy": 3}
_SHOWN_KINDS = 3


def worst_first(runs: Sequence[Run]) -> list[Run]:
    """Return ``runs`` by the gravest that was found, then by how much was found; equal ones in their order."""
    return sorted(runs, key=lambda run: (_RANK[verdict(run).word], -len(run.findings)))


def run_table(runs: Sequence[Run]) -> Table:
    """Return a table with a line for each of ``runs``, in their order."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("found", overflow="fold")
    for name, run in zip(_without_shared(runs), runs, strict=True):
        word = verdict(run).word
        table.add_row(Text(name), Text(word.upper(), STYLES[word]), _steps(run), _loss(run), Text(_found(run)))
    return table


def _without_shared(runs: Sequence[Run]) -> list[str]:
    """Return the names of ``runs`` without the directories that all are in."""
    names = [run.name for run in runs]
    shared = os.path.commonprefix(names).rfind(os.sep) + 1  # noqa: RUF071 (cut at a separator)
    return [name[shared:] or "." for name in names]


def _steps(run: Run) -> str:
    """Return how many steps the run had; a plus sign where it was not closed."""
    if run.closed_after is not None:
        return str(run.closed_after)
    return f"{run.steps[-1] + 1}+" if len(run.steps) else "none"


def _loss(run: Run) -> str:
    losses = run.curves.get("loss")
    if losses is None:
        return "–"
    return number(losses.values[-1]) if np.isfinite(losses.values[-1]) else "NaN"


def _found(run: Run) -> str:
    """Return the kinds that were found and since when, and what was not measured."""
    firsts: dict[str, str] = {}
    for finding in run.findings:
        firsts.setdefault(finding.kind, f"{finding.kind} in {finding.place} since step {finding.step}")
    shown = list(firsts.values())[:_SHOWN_KINDS]
    if len(firsts) > len(shown):
        shown.append(counted(len(firsts) - len(shown), "other kind"))
    if unmeasured := unmeasured_words(run.coverage):
        shown.append(unmeasured)
    if lost := lost_words(run.lost):
        shown.append(lost)
    return "; ".join(shown)
