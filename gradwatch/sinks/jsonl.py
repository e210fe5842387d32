"""Write findings and totals as JSON lines: one object a line, numbers that are not finite as null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.event_files.run import Coverage
from gradwatch.findings import Finding
from gradwatch.sinks import Row, event_of, is_update
from gradwatch.sinks.appended_file import AppendedFile

__all__ = ["JsonLines", "json_of"]


class JsonLines:
    """A file to whose end lines are added: ``{"event": "row", …}`` at logged steps, and findings.

    A finding is ``"opened"``, ``"updated"`` with a later row if it has gone on, and ``"ended"``. ``"coverage"`` says
    how many steps there were, and how many of them were measured, where that is not all, and which rules have failed
    to judge some; ``"lost"``, at the end, how many rows and findings could not be written.

    Args:
        path: the file; its directory is made.
        fsync: whether findings and what was flushed are on the disk, and survive a loss of power; what the system was
            handed survives the end of the process in any case.

    Raises:
        OSError: if it cannot be opened for appending.
    """

    def __init__(self, path: str | Path, fsync: bool = False) -> None:
        self._file, self._fsync = AppendedFile(path), fsync
        self._known: set[tuple[str, str, int]] = set()  # identities of the findings that were written

    def write_row(self, row: Row) -> None:
        report = row.report
        self._write(
            event="row",
            step=report.step,
            optimizer=report.optimizer,
            grad_norm_total=report.grad_norm_total,
            grad_norm_clipped_total=report.grad_norm_clipped_total,
            loss=report.loss,
            learning_rate=report.learning_rate,
            learning_rates=list(report.learning_rates),
            skipped_steps=row.skipped_steps,
            grad_norm=dict(zip(report.layers, report.grad_norm.tolist(), strict=True)),
            grad_norm_highest=dict(zip(report.layers, row.highest.tolist(), strict=True)),
            grad_norm_lowest=dict(zip(report.layers, row.lowest.tolist(), strict=True)),
        )

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._write(event=event_of(finding, ended, self._known), **finding.as_dict())
        self._known.add(finding.identity)
        if ended or not is_update(finding, ended):
            self.flush()

    def write_coverage(self, coverage: Coverage) -> None:
        if not coverage.is_whole:
            self._write(event="coverage", **coverage.as_dict())

    def write_lost(self, lost: Mapping[str, int]) -> None:
        self._write(event="lost", **lost)

    def flush(self) -> None:
        if self._fsync:  # each line was handed to the system whole
            self._file.sync()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()
            self._known.clear()

    def _write(self, **values: Any) -> None:
        self._file.write(json_of(values) + "\n")


def json_of(values: Any, indent: int | None = None) -> str:
    """Return ``values`` as JSON, numbers that are not finite as null.

    Args:
        values: plain values.
        indent: spaces a level, for people; None for one line.
    """
    return json.dumps(_finite(values), indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
