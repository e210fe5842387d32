"""A run as an output of a notebook: a headline, the depth × time picture, a table of what was found.

Enters: a ``Run``. Leaves: a piece of HTML that runs nothing, fetches nothing, and takes its colours from the notebook's
theme. Every name and every text is escaped.
"""

from __future__ import annotations

from html import escape

from gradwatch.event_files.run import Run
from gradwatch.findings import Finding
from gradwatch.views.page.heatmap import heatmap, legend
from gradwatch.views.phrases import counted, layer_of, measured, since, verdict
from gradwatch.views.picture import scale_of

__all__ = ["in_notebook"]

_MOST = 20  # findings in the table: a cell is to be taken in at a glance
_TITLES = ("", "kind", "where", "when", "what", "cause", "what to try")
_STYLE = """
.gradwatch svg { display: block; width: 100%; max-width: 900px; height: auto; }
.gradwatch svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
.gradwatch text.soft, .gradwatch span.soft { opacity: .75; }
.gradwatch .healthy { color: #1f883d; } .gradwatch .warning { color: #b8650a; }
.gradwatch .error { color: #d9303e; } .gradwatch svg text.sick { fill: #d9303e; font-weight: 600; }
.gradwatch .outline { fill: none; stroke: #000; stroke-width: 1.5; }
.gradwatch .halo { fill: none; stroke: #fff; stroke-width: 3.5; }
.gradwatch svg text.mark { fill: #000; stroke: #fff; stroke-width: 3; paint-order: stroke; font-weight: 700; }
.gradwatch .pixels { image-rendering: pixelated; }
.gradwatch .key { white-space: nowrap; }
.gradwatch .swatch { display: inline-block; width: 1em; height: 1em; vertical-align: -.15em; border: 1px solid #888; }
.gradwatch .scale { display: inline-block; width: 9rem; height: .8em; vertical-align: -.05em; }
.gradwatch td, .gradwatch th { text-align: left !important; vertical-align: top; padding: .2em .6em .2em 0; }
.gradwatch td { min-width: 5em; overflow-wrap: break-word; } .gradwatch td:first-child { min-width: 1em; }
"""  # the outlines lie on the picture, not on the page: black and white whatever the theme


def in_notebook(run: Run) -> str:
    """The picture of ``run`` and the table of its findings."""
    if not len(run.steps):
        return f"<div>gradwatch: {counted(len(run.layers), 'layer')}, no step seen yet.</div>"
    judged, scale = verdict(run), scale_of([run])
    return "".join(
        [
            f'<div class="gradwatch"><style>{_STYLE}</style>',
            f'<p><strong>gradwatch</strong> <strong class="{judged.word}">{judged.word}</strong> '
            f"{escape(judged.words)} {_extent(run)}</p>",
            heatmap(run, scale),
            legend(scale),
            _table(run),
            "</div>",
        ]
    )


def _extent(run: Run) -> str:
    skipped = f", {counted(run.skipped_steps, 'update')} skipped" if run.skipped_steps else ""
    layers = counted(len(run.layers), "layer")
    return f'<span class="soft">Steps {run.steps[0]} to {run.steps[-1]}, {layers}{skipped}.</span>'


def _table(run: Run) -> str:
    if not run.findings:
        return ""
    head = "".join(f"<th>{title}</th>" for title in _TITLES)
    told = list(zip(run.findings, run.ended, strict=True))
    rows = "".join(_row(index, *each) for index, each in enumerate(told[:_MOST], start=1))
    more = f'<p class="soft">And {len(told) - _MOST} more: watcher.findings.</p>' if len(told) > _MOST else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def _row(index: int, finding: Finding, ended: bool) -> str:
    cells = (layer_of(finding), since(finding, ended), measured(finding), finding.cause, "; ".join(finding.remedies))
    return (
        f'<tr><td>{index}</td><td><strong class="{finding.severity}">{finding.kind}</strong></td>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    )
