"""What a watcher holds in memory → a ``Run``, as if it had been read from event files, and that as HTML."""

from __future__ import annotations

import numpy as np

from gradwatch.event_files.run import Run, Series
from gradwatch.measure.layers import Layers
from gradwatch.sinks.memory import History
from gradwatch.views.notebook import in_notebook
from gradwatch.watcher.record import Record

__all__ = ["html_of"]


def html_of(layers: Layers, record: Record) -> str:
    """The last steps as a picture and all findings as a table; everything has arrived on the host."""
    return in_notebook(_run_of(layers, record))


def _run_of(layers: Layers, record: Record) -> Run:
    history = record.history
    norms, steps = history["grad_norm"].astype(np.float32), history.steps
    highest = np.where(history["nonfinite"].astype(bool), np.float32(np.inf), norms)
    findings = tuple(record.findings() or ())
    return Run(
        name="",
        layers=layers.names,
        depth=layers.depth,
        size=layers.size,
        packed={
            "grad_norm": Series(steps, norms),
            "highest": Series(steps, highest),
            "lowest": Series(steps, norms),
        },
        curves=_totals(history),
        findings=findings,
        ended=tuple(record.has_ended(finding) for finding in findings),
        skipped_steps=record.skipped_steps,
        written_at=0.0,
        problems=(),
    )


def _totals(history: History) -> dict[str, Series]:
    """The total norm of each optimizer."""
    optimizer, curves = history["optimizer"], {}
    with np.errstate(over="ignore"):  # beyond float32 it is Inf here
        total = history["grad_norm_total"].astype(np.float32)
    for number in np.unique(optimizer):
        name = "grad_norm_total" if number == 0 else f"grad_norm_total/optimizer_{number}"
        curves[name] = Series(history.steps[optimizer == number], total[optimizer == number])
    return curves
