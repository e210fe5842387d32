"""Write rows and findings as comma-separated values, for pandas and spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradwatch.findings import Finding
from gradwatch.sinks import Row, event_of, is_update
from gradwatch.sinks.appended_file import AppendedFile
from gradwatch.sinks.tables import LAYER_COLUMNS, layer_table, totals

__all__ = ["Csv"]

_TOTALS = (
    "step",
    "optimizer",
    "loss",
    "learning_rate",
    "grad_norm_total",
    "grad_norm_clipped_total",
    "grad_norm_total_highest",
    "grad_norm_total_lowest",
    "clipped_steps",
    "skipped_steps",
)
_LAYERS = ("step", "optimizer", *LAYER_COLUMNS)
_FINDINGS = (
    "event",
    "kind",
    "severity",
    "layer",
    "step",
    "raised_step",
    "last_step",
    "value",
    "threshold",
    "message",
    "measured",
    "cause",
)


class Csv:
    """Three files to whose ends lines are added; each begins with the names of its columns.

    ``run.csv`` holds a line for each logged step: loss, learning rate, total norms, clipped and skipped steps.
    ``run.layers.csv`` holds a line for each logged step and layer, so
    ``frame.pivot(index="step", columns="layer", values="grad_norm")`` shows layers along time.
    ``run.findings.csv`` holds a line for each finding that was ``"opened"``, was ``"updated"`` because it goes on, or
    has ``"ended"``.

    A cell is empty where a figure was not measured. A loss or total that is not finite is ``nan`` or ``inf``, which
    pandas reads as numbers. Each line is handed to the system whole, so a killed process leaves whole lines. A line
    that is torn nevertheless is taken away when the file is continued.

    Args:
        path: the first file; the others are beside it. Its directory is made. Files of an earlier run are continued.
        fsync: whether findings and what was flushed are on the disk, and survive a loss of power; what the system was
            handed survives the end of the process in any case.

    Raises:
        OSError: if a file cannot be opened for appending.
        ValueError: if a file holds something else.

    Examples:
        >>> import tempfile
        >>> sink = Csv(f"{tempfile.mkdtemp()}/run.csv")
        >>> sink.close()
    """

    def __init__(self, path: str | Path, fsync: bool = False) -> None:
        path, self._fsync = Path(path), fsync
        self._totals = _Table(path, _TOTALS)
        self._layers = _Table(path.with_name(f"{path.stem}.layers{path.suffix}"), _LAYERS)
        self._events = _Table(path.with_name(f"{path.stem}.findings{path.suffix}"), _FINDINGS)
        self._known: set[tuple[str, str, int]] = set()  # identities of the findings that were written
        self._half_written: Row | None = None  # its layers are in their file, should its totals have to come again

    def write_row(self, row: Row) -> None:
        step, optimizer = row.report.step, row.report.optimizer
        figures = {"step": step, "optimizer": optimizer, **totals(row)}
        self._events.begin()  # a healthy run has a file without findings
        if row is not self._half_written:
            self._layers.add([step, optimizer, *line] for line in layer_table(row))
        self._half_written = row
        self._totals.add([[figures.get(name) for name in _TOTALS]])

    def write_finding(self, finding: Finding, ended: bool) -> None:
        values = {"event": event_of(finding, ended, self._known), **finding.as_dict()}
        self._events.add([[values[name] for name in _FINDINGS]])
        self._known.add(finding.identity)
        if ended or not is_update(finding, ended):
            self.flush()

    def flush(self) -> None:
        if self._fsync:  # each line was handed to the system whole
            for table in (self._totals, self._layers, self._events):
                table.sync()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            for table in (self._totals, self._layers, self._events):
                table.close()
            self._known, self._half_written = set(), None


class _Table:
    """One file of a ``Csv``.

    Args:
        path: the file.
        columns: their names, which are its first line.

    Raises:
        OSError: if the file cannot be opened for appending.
        ValueError: if its first line is another.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = AppendedFile(path)
        self._header = ",".join(columns)
        self._has_begun = False
        if self._file.first_line() not in ("", self._header):
            self._file.close()
            raise ValueError(f"Csv: {path} holds something else than rows of gradwatch. Give another path, or move it.")

    def begin(self) -> None:
        """Write the names of the columns where they are missing; not sooner, since of several ranks one writes."""
        if self._has_begun and not self._file.is_deleted:
            return
        self._file.drop_torn_line()
        if not self._file.first_line():
            self._file.write(self._header + "\n")
        self._has_begun = True

    def add(self, lines: Iterable[Sequence[object]]) -> None:
        """Write lines, one cell a column."""
        self.begin()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue())

    def sync(self) -> None:
        """Have what was written on the disk, where anything was: a table that has not begun is empty."""
        if self._has_begun:
            self._file.sync()

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._file.close()
        self._has_begun = False
