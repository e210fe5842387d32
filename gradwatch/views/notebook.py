"""Show a run as an output of a notebook: a headline, the loss, the depth × time picture, a table of what was found.

The piece of HTML runs nothing, fetches nothing, and takes its colours from the notebook's theme.
"""

from __future__ import annotations

from gradwatch.event_files.run import Run
from gradwatch.views.colours import scale_of
from gradwatch.views.page.charts import charts_of
from gradwatch.views.page.heatmap import heatmap_of, legend_of
from gradwatch.views.phrases import counted, since, unmeasured_words, verdict
from gradwatch.views.templates import render

__all__ = ["in_notebook"]

_MOST = 20  # findings in the table: a cell is to be taken in at a glance
_TITLES = ("", "kind", "where", "when", "what", "cause", "what to try")


def in_notebook(run: Run) -> str:
    """Return HTML: the loss and the picture of ``run``, and the table of its findings."""
    if not len(run.steps):
        words = unmeasured_words(run.coverage) or "no step seen yet"
        return f"<div>gradwatch: {counted(len(run.layers), 'layer')}, {words}.</div>"
    scale = scale_of([run])
    findings = list(zip(run.findings, run.ended, strict=True))
    return render(
        "notebook.html.j2",
        verdict=verdict(run, goes_on=True),
        extent=_extent(run),
        losses=[chart for chart in charts_of(run) if chart.title == "loss"],
        heatmap=heatmap_of(run, scale),
        legend=legend_of(scale),
        titles=_TITLES,
        findings=findings[:_MOST],
        more=max(0, len(findings) - _MOST),
        since=since,
    )


def _extent(run: Run) -> str:
    skipped = f", {counted(run.skipped_steps, 'update')} skipped" if run.skipped_steps else ""
    return f"Steps {run.steps[0]} to {run.steps[-1]}, {counted(len(run.layers), 'layer')}{skipped}."
