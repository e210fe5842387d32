"""Findings and totals as JSON lines: one object a line, numbers that are not finite as null."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gradwatch.findings import Finding
from gradwatch.sinks import Row

__all__ = ["JsonLines", "json_of"]


class JsonLines:
    """Appends to ``path``: ``{"event": "row", …}`` at logged steps, ``"opened"`` and ``"ended"`` for findings.

    Args:
        path: the file; its directory is made.

    Raises:
        OSError: where it cannot be opened for appending.
    """

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (open for as long as the sink lives)

    def write_row(self, row: Row) -> None:
        report = row.report
        self._write(
            event="row",
            step=report.step,
            optimizer=report.optimizer,
            grad_norm_total=report.grad_norm_total,
            grad_norm_clipped_total=report.grad_norm_clipped_total,
            loss=report.loss,
            skipped_steps=row.skipped_steps,
            grad_norm=dict(zip(report.layers, report.grad_norm.tolist(), strict=True)),
            grad_norm_highest=dict(zip(report.layers, row.highest.tolist(), strict=True)),
            grad_norm_lowest=dict(zip(report.layers, row.lowest.tolist(), strict=True)),
        )

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._write(event="ended" if ended else "opened", **finding.as_dict())
        self.flush()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **values: Any) -> None:
        self._file.write(json_of(values) + "\n")


def json_of(values: Any) -> str:
    """As JSON, numbers that are not finite as null."""
    return json.dumps(_finite(values))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
