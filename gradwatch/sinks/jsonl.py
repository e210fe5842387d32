"""Write findings and totals as JSON lines: one object a line, numbers that are not finite as null."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.findings import Finding
from gradwatch.sinks import Row, is_update

__all__ = ["JsonLines", "json_of"]


class JsonLines:
    """A file to whose end lines are added: ``{"event": "row", …}`` at logged steps, and findings.

    A finding is ``"opened"``, ``"updated"`` with a later row if it has gone on, and ``"ended"``.

    Args:
        path: the file; its directory is made.

    Raises:
        OSError: if it cannot be opened for appending.
    """

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(path).open("ab", buffering=0)  # noqa: SIM115 (open for as long as the sink lives)

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
        event = "ended" if ended else "updated" if is_update(finding, ended) else "opened"
        self._write(event=event, **finding.as_dict())

    def flush(self) -> None:
        pass  # each line was handed to the system whole

    def close(self) -> None:
        self._file.close()

    def _write(self, **values: Any) -> None:
        """Add a line at once. It is there whole, or not at all where the disk is full."""
        line = memoryview((json_of(values) + "\n").encode())
        size = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise


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
