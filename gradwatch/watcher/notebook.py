"""Show what a watcher holds in memory as HTML, as if it had been read from event files."""

from __future__ import annotations

import numpy as np

from gradwatch.event_files.run import Coverage, Run, TimeSeries
from gradwatch.measure.layers import Layers
from gradwatch.sinks.memory import History
from gradwatch.views.notebook import in_notebook
from gradwatch.watcher.report_processor import ReportProcessor

__all__ = ["html_of"]


def html_of(layers: Layers, processor: ReportProcessor, coverage: Coverage) -> str:
    """Return the last steps as a picture and all findings as a table; everything has arrived on the host."""
    return in_notebook(_run_of(layers, processor, coverage))


def _run_of(layers: Layers, processor: ReportProcessor, coverage: Coverage) -> Run:
    history = processor.history
    norms, steps = history["grad_norm"].astype(np.float32), history.steps
    highest = np.where(history["nonfinite"].astype(bool), np.float32(np.inf), norms)
    findings, ended = tuple(processor.findings()), processor.ended
    return Run(
        name="",
        layers=layers.names,
        depth=layers.depth,
        size=layers.size,
        packed={
            "grad_norm": TimeSeries(steps, norms),
            "highest": TimeSeries(steps, highest),
            "lowest": TimeSeries(steps, norms),
        },
        curves={**_losses(history), **_totals(history)},
        findings=findings,
        ended=tuple(finding in ended for finding in findings),
        skipped_steps=processor.skipped_steps,
        coverage=coverage,
        closed_after=None,
        written_at=0.0,
        problems=(),
    )


def _losses(history: History) -> dict[str, TimeSeries]:
    """Return the loss at the steps at which one was observed; NaN is one where the gradients are not finite, either."""
    loss = history["loss"]
    observed = ~np.isnan(loss) | history["nonfinite"].any(axis=1)
    if np.isnan(loss).all():
        return {}
    with np.errstate(over="ignore"):
        return {"loss": TimeSeries(history.steps[observed], loss[observed].astype(np.float32))}


def _totals(history: History) -> dict[str, TimeSeries]:
    """Return the total norm of each optimizer."""
    optimizer, curves = history["optimizer"], {}
    with np.errstate(over="ignore"):  # beyond float32 it is Inf here
        total = history["grad_norm_total"].astype(np.float32)
    for number in np.unique(optimizer):
        name = "grad_norm_total" if number == 0 else f"grad_norm_total/optimizer_{number}"
        curves[name] = TimeSeries(history.steps[optimizer == number], total[optimizer == number])
    return curves
