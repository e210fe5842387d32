"""Write rows and findings to a run of Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections import deque
from typing import Any

import numpy as np

from gradwatch.findings import Finding
from gradwatch.sinks import Row, event_of
from gradwatch.sinks.tables import FindingTable, measured_layers, named_totals

__all__ = ["Wandb"]

_MOST_WAITING = 10_000  # rows, of some ten numbers each
_BINS = 32
_LONGEST_TITLE = 64  # characters, of an alert


class Wandb:
    """A sink that writes totals as metrics, findings as alerts, and the layers of the latest row as one table.

    Metrics are named ``gradwatch/grad_norm_total`` and so on, ``gradwatch/open_findings/<kind>`` among them. Their axis
    is a metric, too, ``gradwatch/step``. ``gradwatch/log10_grad_norm`` is a histogram over the layers.
    ``gradwatch/findings`` and ``gradwatch/layers`` are tables, written as a finding opens or ends, at ``flush`` and at
    ``close``.

    Once your loop has called ``run.log`` without a step, each row is a step of W&B's, as
    each of your calls is. If you give steps, ``run.log(…, step=epoch)``, rows do not advance them, for W&B drops what
    comes with an earlier step: a row is added to the step that W&B is at, and the next one replaces it there. Until
    your loop has logged anything, rows wait; those that still wait are written by ``close``.

    Args:
        run: what ``wandb.init`` returned; None for ``wandb.run`` when the first row or finding is written. It stays
            open.

    Raises:
        ModuleNotFoundError: if ``run`` is None and wandb is not installed.
        TypeError: if ``run`` is no run.
    """

    _run: Any
    _is_defined: bool
    _advances: bool
    _findings: FindingTable
    _row: Row | None  # the latest, while no table holds it
    _waiting: deque[dict[str, Any]]

    def __init__(self, run: Any = None) -> None:
        spec = importlib.util.find_spec("wandb")
        if run is None and (
            spec is None or spec.origin is None
        ):  # a mere folder ./wandb, as W&B makes it, has no origin
            raise ModuleNotFoundError("Wandb() needs wandb. Run: pip install wandb", name="wandb")
        if run is not None and not hasattr(run, "define_metric"):
            raise TypeError(f"Wandb(run=…): expected what wandb.init() returns, got {type(run).__name__}.")
        self._given = run
        self._begin()

    def write_row(self, row: Row) -> None:
        run = self._open()
        values = {f"gradwatch/{name}": value for name, value in named_totals(row).items()}
        counts = {f"gradwatch/open_findings/{kind}": count for kind, count in self._findings.open_counts().items()}
        self._waiting.append({"gradwatch/step": row.report.step, **values, **counts, **_histogram(row)})
        try:
            self._log_waiting(run)
        except Exception:
            self._waiting.pop()  # it comes again
            raise
        self._row = row

    def write_finding(self, finding: Finding, ended: bool) -> None:
        run = self._open()
        event = event_of(finding, ended, self._findings)
        if event == "opened":
            level = "ERROR" if finding.severity == "error" else "WARN"
            run.alert(title=_title_of(finding), text=str(finding), level=level)
        self._findings.add(finding, ended)
        if event != "updated":
            self._log_tables(run)

    def flush(self) -> None:
        if self._row is not None or self._findings.lines():
            self._log_tables(self._open())

    def close(self) -> None:
        """Write the rows that wait, and forget the findings; leave the run open. The next one may be another."""
        try:
            if self._waiting:
                self._log_waiting(self._open(), is_end=True)
        finally:
            self._begin()

    def _begin(self) -> None:
        self._run = self._given
        self._is_defined = self._advances = False
        self._findings = FindingTable()
        self._row = None
        self._waiting = deque(maxlen=_MOST_WAITING)

    def _open(self) -> Any:
        """Return the run, with an axis for our metrics.

        Raises:
            RuntimeError: if there is none.
        """
        if self._run is None:
            import wandb

            self._run = wandb.run
        if self._run is None:
            raise RuntimeError("Wandb() found no run: call wandb.init() before the first update, or give Wandb(run)")
        if not self._is_defined:
            self._run.define_metric("gradwatch/step", hidden=True)
            self._run.define_metric("gradwatch/*", step_metric="gradwatch/step")
            self._advances = self._run.settings.mode == "shared"  # the server counts the steps there
            self._is_defined = True
        return self._run

    def _log_waiting(self, run: Any, is_end: bool = False) -> None:
        """Log each row as a step of its own; only the last, and without a step, if the user counts the steps.

        While the user may be going to count them, rows wait for the end.
        """
        if _has_given_steps(run):
            run.log(self._waiting[-1], commit=False)
            self._waiting.clear()
        elif is_end or self._advances or _was_logged_to(run):
            self._advances = True
            while self._waiting:
                run.log(self._waiting[0])
                self._waiting.popleft()

    def _log_tables(self, run: Any) -> None:
        """Add the tables to the step that W&B is at; that of layers, which may be large, only once a row."""
        from wandb import Table

        tables = {}
        if findings := self._findings.lines():
            tables["gradwatch/findings"] = Table(columns=list(self._findings.COLUMNS), data=findings)
        if (row := self._row) is not None:
            columns, lines = measured_layers(row)
            tables["gradwatch/layers"] = Table(columns=[*columns], data=[*lines])
        run.log(tables, commit=False)
        self._row = None


def _has_given_steps(run: Any) -> bool:
    """Return whether the user has called ``run.log`` with a step, or may have: W&B keeps that to itself."""
    telemetry = getattr(run, "_telemetry_obj", None)
    return telemetry is None or bool(telemetry.feature.set_step_log)


def _was_logged_to(run: Any) -> bool:
    """Return whether the user has called ``run.log``.

    Raises:
        Exception: wandb's own, if the run is over.
    """
    run.log({}, commit=False)  # raises at once where the run is over: its step would wait for half a minute
    return run.step > run.starting_step


def _histogram(row: Row) -> dict[str, Any]:
    """Return how the layers' norms are spread, by orders of magnitude; nothing if none is above 0 and finite."""
    from wandb import Histogram

    norms = row.report.grad_norm
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if not len(norms):
        return {}
    return {"gradwatch/log10_grad_norm": Histogram(np_histogram=np.histogram(np.log10(norms), bins=_BINS))}


def _title_of(finding: Finding) -> str:
    """Return a title of its own: W&B leaves out an alert with the title of one a minute before."""
    title = f"{finding.kind} since step {finding.step} in {finding.layer or 'the whole run'}"
    return title if len(title) < _LONGEST_TITLE else title[: _LONGEST_TITLE - 2] + "…"
