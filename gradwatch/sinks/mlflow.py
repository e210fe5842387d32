"""Write rows and findings to a run of MLflow."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from gradwatch.findings import Finding
from gradwatch.sinks import Row, is_update
from gradwatch.sinks.tables import FindingTable, layer_text, named_totals

__all__ = ["Mlflow"]


class Mlflow:
    """A sink that writes totals as metrics, findings as tags, and findings and layers as one artifact each.

    Metrics are named ``gradwatch/grad_norm_total`` and so on, ``gradwatch/open_findings/<kind>`` among them, at
    gradwatch's steps. MLflow has no alerts: the tag ``gradwatch.<kind>`` holds the latest finding of that kind in one
    line, so runs can be searched and compared by it. The artifacts ``gradwatch/findings.tsv`` and
    ``gradwatch/layers.tsv``, the latest row's layers, are written as a finding opens or ends, at ``flush`` and at
    ``close``. It waits for the server as ``mlflow.log_metrics`` does, and like that it does not under
    ``MLFLOW_ENABLE_ASYNC_LOGGING``.

    Args:
        run_id: of the run; None for the one that is active when the first row or finding is written. It stays open.

    Raises:
        ModuleNotFoundError: if mlflow is not installed.
        TypeError: if ``run_id`` is no string.
    """

    def __init__(self, run_id: str | None = None) -> None:
        spec = importlib.util.find_spec("mlflow")
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            raise ModuleNotFoundError("Mlflow() needs mlflow. Run: pip install mlflow", name="mlflow")
        if not isinstance(run_id, str | None):
            raise TypeError(f"Mlflow(run_id=…): expected run.info.run_id, a string, got {type(run_id).__name__}.")
        self._given_id = self._run_id = run_id
        self._client: Any = None
        self._findings = FindingTable()
        self._has_news = False  # of findings, which no file holds yet
        self._row: Row | None = None  # the latest, while no file holds it

    def prepare(self) -> None:
        """Look up the active run, which is that of this thread alone."""
        import mlflow

        if self._run_id is None and (run := mlflow.active_run()) is not None:
            self._run_id = str(run.info.run_id)

    def write_row(self, row: Row) -> None:
        from mlflow.entities import Metric

        client, run_id = self._open()
        counts = {f"open_findings/{kind}": float(count) for kind, count in self._findings.open_counts().items()}
        now = int(1000 * time.time())
        metrics = [
            Metric(f"gradwatch/{name}", value, now, row.report.step)
            for name, value in (named_totals(row) | counts).items()
        ]
        client.log_batch(run_id, metrics=metrics)
        self._row = row

    def write_finding(self, finding: Finding, ended: bool) -> None:
        client, run_id = self._open()
        self._findings.add(finding, ended)
        self._has_news = True
        if is_update(finding, ended):
            return
        end = f" (ended: last seen at step {finding.last_step})" if ended else ""
        client.set_tag(run_id, f"gradwatch.{finding.kind}", finding.message + end)
        self._log_tables(client, run_id)

    def flush(self) -> None:
        if self._row is not None or self._has_news:
            self._log_tables(*self._open())

    def close(self) -> None:
        """Forget the findings, but leave the run open: it is the user's. The next one may be another."""
        self._run_id, self._client = self._given_id, None
        self._findings, self._has_news, self._row = FindingTable(), False, None

    def _open(self) -> tuple[Any, str]:
        """Return a client and the run's id.

        Raises:
            RuntimeError: if no run is active.
        """
        import mlflow

        self.prepare()
        if self._run_id is None:
            raise RuntimeError("Mlflow() found no run: call mlflow.start_run() before training, or give run_id=")
        if self._client is None:
            self._client = mlflow.MlflowClient()
        return self._client, self._run_id

    def _log_tables(self, client: Any, run_id: str) -> None:
        if self._has_news:
            client.log_text(run_id, self._findings.as_text(), "gradwatch/findings.tsv")
            self._has_news = False
        if self._row is not None:
            client.log_text(run_id, layer_text(self._row), "gradwatch/layers.tsv")
            self._row = None
