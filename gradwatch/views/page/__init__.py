"""Runs as one page to hand on: it holds all that it needs, runs nothing, and fetches nothing.

Every name and every text from a file is escaped; a policy in the page forbids scripts altogether.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from gradwatch.event_files.run import Run
from gradwatch.findings import Finding
from gradwatch.views.page.charts import bars, curves
from gradwatch.views.page.heatmap import heatmap, legend
from gradwatch.views.phrases import changes, facts, layer_of, measured, number, since, verdict
from gradwatch.views.picture import Scale, scale_of
from gradwatch.views.profile import profile_of

__all__ = ["page_of"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MOST_LAYERS = 120  # rows of the profile


def page_of(runs: Sequence[Run], compares: bool = False) -> str:
    """The page; several runs stand side by side on one scale of colours; where ``compares``, what went and came."""
    scale = scale_of(runs)
    title = "gradwatch: " + ", ".join(run.name for run in runs)
    style = files(__name__).joinpath("style.css").read_text(encoding="utf-8")
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body>",
            f'<h1>gradwatch report</h1><p class="soft">Made {time.strftime("%Y-%m-%d %H:%M %Z")}.</p>',
            *(_comparison(*runs) if compares else ()),
            '<div class="runs">',
            *(_section(run, scale) for run in runs),
            "</div></body></html>\n",
        ]
    )


def _section(run: Run, scale: Scale) -> str:
    judged = verdict(run)
    parts = [
        f'<section><h2>{escape(run.name)} <span class="badge {judged.word}">{judged.word}</span></h2>',
        f"<p>{escape(judged.words)}</p>",
        f'<p class="soft">{escape(facts(run, time.time()))}</p>',
        *(f'<p class="warning">Not read: {escape(problem)}.</p>' for problem in run.problems),
    ]
    if len(run.steps):
        parts += ["<h3>Every layer along time, input at the top</h3>", heatmap(run, scale), legend(scale)]
    told = zip(run.findings, run.ended, strict=True)
    parts += [_finding(index, *each) for index, each in enumerate(told, start=1)]
    if len(run.steps):
        parts += [curves(run), "<h3>Along depth: the last finite figures, input at the top</h3>"]
        parts.append(bars(profile_of(run, _MOST_LAYERS)))
    return "".join([*parts, "</section>"])


def _finding(index: int, finding: Finding, ended: bool) -> str:
    remedies = "".join(f"<li>{escape(remedy)}</li>" for remedy in finding.remedies)
    covered = ", ".join(finding.layers)
    layers = f"<details><summary>All {len(finding.layers)} layers</summary>{escape(covered)}</details>"
    return (
        f'<article><strong>{index}. <span class="{finding.severity}">{finding.kind}</span></strong> '
        f"({finding.severity}) in <strong>{escape(layer_of(finding))}</strong>, {escape(since(finding, ended))}."
        f"<p>{escape(measured(finding))}</p>"
        f'<p class="soft">Measured {number(finding.value)}, held against {number(finding.threshold)}.</p>'
        f"<p><strong>Cause.</strong> {escape(finding.cause)}.</p>"
        f"{f'<p><strong>What to try.</strong></p><ul>{remedies}</ul>' if remedies else ''}"
        f"{layers if len(finding.layers) > 1 else ''}</article>"
    )


def _comparison(first: Run, second: Run) -> Iterator[str]:
    rows = [
        f"<tr><td>{change.what}</td><td>{finding.kind}</td><td>{escape(layer_of(finding))}</td>"
        f"<td>{_step(change.before)}</td><td>{_step(change.after)}</td></tr>"
        for change in changes(first, second)
        if (finding := change.before or change.after) is not None
    ]
    yield f"<h3>From {escape(first.name)} to {escape(second.name)}</h3>"
    if not rows:
        yield '<p class="healthy">Neither run has a finding.</p>'
        return
    head = "".join(f"<th>{title}</th>" for title in ("", "kind", "layer", "first run", "second run"))
    yield f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _step(finding: Finding | None) -> str:
    return "–" if finding is None else f"since step {finding.step}"
