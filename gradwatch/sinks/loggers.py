"""Pass findings to the loggers of a Lightning ``Trainer``: CSV, Weights & Biases, MLflow, and whatever logs metrics.

Every logger gets a metric, ``gradwatch/open_findings/<kind>``: how many of that kind are open, from the step on where
one opens or ends. Those that hold text get the findings in words, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gradwatch.findings import Finding
from gradwatch.sinks import Row, is_update
from gradwatch.sinks.tables import FindingTable, named_totals

__all__ = ["Logger", "Loggers", "is_a"]

_TOTALS = ("grad_norm_total", "grad_norm_clipped_total")  # Lightning's loggers have loss and learning rate already


class Logger(Protocol):
    """The methods of every logger of Lightning's."""

    @property
    def experiment(self) -> Any: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def save(self) -> None: ...


class Loggers:
    """A sink that translates findings, and rows where asked, into what loggers take.

    Args:
        loggers: Lightning's.
        totals: also log the total norms of each row; for where nobody else does.
    """

    shares_thread = True  # the loop itself calls the loggers, which need not bear two threads

    def __init__(self, loggers: Sequence[Logger], totals: bool) -> None:
        self._loggers, self._totals = loggers, totals
        self._findings = FindingTable()
        self._unwritten: int | None = None  # the step of an update that no text holds yet

    def write_row(self, row: Row) -> None:
        figures = named_totals(row)
        metrics = {name: figures[name] for name in figures if name.split("/")[0] in _TOTALS}
        for logger in self._loggers if self._totals else ():
            logger.log_metrics(metrics, step=row.report.step)

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._findings.add(finding, ended)
        if is_update(finding, ended):
            self._unwritten = finding.last_step  # whole tables are not written anew at every row
            return
        count = self._findings.open_counts()[finding.kind]
        step = finding.last_step + 1 if ended else finding.raised_step  # the first healthy step, or the raising one
        for logger in self._loggers:
            logger.log_metrics({f"gradwatch/open_findings/{finding.kind}": float(count)}, step=step)
        self._write_texts(step)

    def flush(self) -> None:
        if self._unwritten is not None:
            self._write_texts(self._unwritten)
        for logger in self._loggers:
            logger.save()

    def close(self) -> None:
        """Forget the findings, but leave the loggers open: they are their Trainer's."""
        self._findings, self._unwritten = FindingTable(), None

    def _write_texts(self, step: int) -> None:
        for logger in self._loggers:
            for name, write in _TEXT.items():
                if is_a(logger, name):
                    write(logger, self._findings, step)
        self._unwritten = None


def is_a(logger: object, name: str) -> bool:
    """Return whether a class of that name is among its bases: each Lightning has its own, and importing them costs."""
    return any(kind.__name__ == name for kind in type(logger).__mro__)


def _to_wandb(logger: Any, findings: FindingTable, step: int) -> None:
    logger.log_text("gradwatch/findings", columns=list(findings.COLUMNS), data=findings.lines(), step=step)


def _to_mlflow(logger: Any, findings: FindingTable, step: int) -> None:
    logger.experiment.log_text(logger.run_id, findings.as_text(), "gradwatch/findings.tsv")


def _to_tensorboard(logger: Any, findings: FindingTable, step: int) -> None:
    lines = [
        "    " + "  ".join(cells) for cells in (findings.COLUMNS, *findings.lines())
    ]  # indented, so that Markdown leaves it as it is
    logger.experiment.add_text("gradwatch/findings", "\n".join(lines), step)


_TEXT: Mapping[str, Callable[[Any, FindingTable, int], None]] = {
    "WandbLogger": _to_wandb,
    "MLFlowLogger": _to_mlflow,
    "TensorBoardLogger": _to_tensorboard,
}
