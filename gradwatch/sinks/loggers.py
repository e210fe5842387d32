"""Pass findings to the loggers of a Lightning ``Trainer``: CSV, Weights & Biases, MLflow, and whatever logs metrics.

Every logger gets a metric, ``gradwatch/open_findings/<kind>``: how many of that kind are open, from the step on where
one opens or ends. Those that hold text get the findings in words, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gradwatch.findings import Finding
from gradwatch.sinks import Row, is_update

__all__ = ["Logger", "Loggers", "is_a"]


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

    def __init__(self, loggers: Sequence[Logger], totals: bool) -> None:
        self._loggers, self._totals = loggers, totals
        self._states: dict[tuple[str, str, int], tuple[Finding, bool]] = {}  # (finding, ended), as they came last
        self._unwritten: int | None = None  # the step of an update that no text holds yet

    def write_row(self, row: Row) -> None:
        report = row.report
        which = f"/optimizer_{report.optimizer}" if report.optimizer else ""
        totals = {
            f"grad_norm_total{which}": report.grad_norm_total,
            f"grad_norm_clipped_total{which}": report.grad_norm_clipped_total,
        }
        for logger in self._loggers if self._totals else ():
            logger.log_metrics(totals, step=report.step)

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._states[(finding.kind, finding.layer, finding.step)] = finding, ended
        if is_update(finding, ended):
            self._unwritten = finding.last_step  # whole tables are not written anew at every row
            return
        count = sum(each.kind == finding.kind and not is_over for each, is_over in self._states.values())
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
        """Leave the loggers open: they are their Trainer's."""

    def _write_texts(self, step: int) -> None:
        findings = [_cells(*state) for state in self._states.values()]
        for logger in self._loggers:
            for name, write in _TEXT.items():
                if is_a(logger, name):
                    write(logger, findings, step)
        self._unwritten = None


def is_a(logger: object, name: str) -> bool:
    """Return whether a class of that name is among its bases: each Lightning has its own, and importing them costs."""
    return any(kind.__name__ == name for kind in type(logger).__mro__)


_COLUMNS = ["kind", "severity", "layer", "step", "last step", "ended", "value", "message"]


def _cells(finding: Finding, ended: bool) -> list[str]:
    value = f"{finding.value:.6g}" if math.isfinite(finding.value) else "not finite"
    steps = [str(finding.step), str(finding.last_step), "yes" if ended else "no"]
    return [finding.kind, finding.severity, finding.layer or "whole run", *steps, value, finding.message]


def _to_wandb(logger: Any, findings: list[list[str]], step: int) -> None:
    logger.log_text("gradwatch/findings", columns=_COLUMNS, data=findings, step=step)


def _to_mlflow(logger: Any, findings: list[list[str]], step: int) -> None:
    lines = ["\t".join(cells) for cells in (_COLUMNS, *findings)]
    logger.experiment.log_text(logger.run_id, "\n".join(lines) + "\n", "gradwatch/findings.tsv")


def _to_tensorboard(logger: Any, findings: list[list[str]], step: int) -> None:
    lines = [
        "    " + "  ".join(cells) for cells in (_COLUMNS, *findings)
    ]  # indented, so that Markdown leaves it as it is
    logger.experiment.add_text("gradwatch/findings", "\n".join(lines), step)


_TEXT: Mapping[str, Callable[[Any, list[list[str]], int], None]] = {
    "WandbLogger": _to_wandb,
    "MLFlowLogger": _to_mlflow,
    "TensorBoardLogger": _to_tensorboard,
}
