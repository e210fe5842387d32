"""Show runs as one page to hand on: it holds all that it needs, and fetches nothing.

A policy in the page allows one script, by its hash: the one that shows the figures under the pointer.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradwatch.event_files.run import Environment, Run
from gradwatch.findings import Advice, Finding
from gradwatch.views.colours import ColourScale, scale_of
from gradwatch.views.page.charts import BarTable, Chart, bars_of, charts_of
from gradwatch.views.page.figures import figures_of
from gradwatch.views.page.heatmap import Heatmap, Legend, heatmap_of, legend_of
from gradwatch.views.phrases import Change, Verdict, changes, environment_words, facts, onset, since, verdict
from gradwatch.views.profile import profile_of
from gradwatch.views.run_table import worst_first
from gradwatch.views.templates import render

__all__ = ["page_of"]

_FEW = 2  # runs that stay in the order in which they were named
_MOST_LAYERS = 120  # rows of the profile
_REMEDIES = "https://gradwatch.github.io/gradwatch/remedies.html"


@dataclass(frozen=True)
class _Section:
    """One run as the template shows it; pictures are None where nothing was logged yet."""

    name: str
    verdict: Verdict
    facts: str
    environment: Environment | None
    problems: Sequence[str]
    findings: Sequence[tuple[Finding, bool]]
    heatmap: Heatmap | None
    legend: Legend
    charts: Sequence[Chart]
    bars: BarTable | None


@dataclass(frozen=True)
class _Comparison:
    first: str
    second: str
    changes: Sequence[Change]


def page_of(runs: Sequence[Run], compares: bool = False) -> str:
    """Return the page.

    Args:
        runs: shown side by side on one scale of colours; of more than two the worst first.
        compares: whether to say what went and what came from the first of two runs to the second.
    """
    runs = [_to_hand_on(run) for run in (worst_first(runs) if len(runs) > _FEW else runs)]
    scale = scale_of(runs)
    return render(
        "page.html.j2",
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        comparison=_Comparison(runs[0].name, runs[1].name, list(changes(*runs))) if compares else None,
        runs=[_section(run, scale) for run in runs],
        environment_words=environment_words,
        onset=onset,
        link_of=_link_of,
        figures=figures_of(runs),
        script_hash=_hash_of(render("page.js")),
        since=since,
    )


def _to_hand_on(run: Run) -> Run:
    """Return ``run`` without what says whose it is: folders of a home, and the host in the names of event files."""
    path = Path(run.name)
    if path.is_absolute():
        below = [path.relative_to(each) for each in (Path.cwd(), Path.home()) if path.is_relative_to(each)]
        path = below[0] if below else Path(path.name)
    problems = [re.sub(r"(tfevents\.\d+)\.[^:]*", r"\1", problem) for problem in run.problems]
    return replace(run, name=str(path), problems=tuple(problems))


def _link_of(remedy: Advice) -> str:
    """Return the address of the remedy on the site; ``""`` for a name that no remedy can have."""
    return f"{_REMEDIES}#{remedy.name}" if re.fullmatch(r"[a-z0-9-]{1,40}", remedy.name) else ""


def _hash_of(script: str) -> str:
    """Return what a content security policy allows exactly this script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _section(run: Run, scale: ColourScale) -> _Section:
    has_rows = bool(len(run.steps))
    return _Section(
        name=run.name,
        verdict=verdict(run),
        facts=facts(run, time.time()),
        environment=run.environment,
        problems=run.problems,
        findings=list(zip(run.findings, run.ended, strict=True)),
        heatmap=heatmap_of(run, scale) if has_rows else None,
        legend=legend_of(scale),
        charts=charts_of(run) if has_rows else (),
        bars=bars_of(profile_of(run, _MOST_LAYERS)) if has_rows else None,
    )
