"""Rows and findings in the order they were written → one run.

Enters: what ``content`` found. Leaves: a ``Run``. Knows nothing of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradwatch.event_files.content import Row
from gradwatch.event_files.decode import Table, Told
from gradwatch.event_files.format import FIGURES, NORMS
from gradwatch.event_files.run import Run, Series
from gradwatch.findings import Finding

__all__ = ["Timeline"]


@dataclass(frozen=True)
class _Placed:
    """A row, and the table that holds for it."""

    row: Row
    table: Table


class Timeline:
    """What has been read of one run so far.

    A run that was cut and goes on tells the steps since its checkpoint once more: in another file, or, as a second fit
    with one logger does, in the same. What was told of them before is dropped.
    """

    def __init__(self) -> None:
        self._rows: list[_Placed] = []
        self._told: list[Told] = []
        self._table: Table | None = None
        self._unusable: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._rows or self._told)

    def add_file(self, found: Sequence[Row | Told]) -> None:
        """Takes in what stands in the next file: it wins from its first step on."""
        steps = [each.step if isinstance(each, Row) else each.finding.raised_step for each in found if _is_new(each)]
        if steps:
            self._begin_anew(min(steps))
        for each in found:
            self._add(each)

    def build(self, name: str, written_at: float, problems: Iterable[str]) -> Run:
        """All of it as one run."""
        table = self._rows[-1].table if self._rows else Table((), np.zeros(0, np.int64), np.zeros(0, np.int64))
        rows = [placed.row for placed in self._rows if placed.table.layers == table.layers]
        unusable = self._unusable.copy()
        unusable["of another model, from before it was resumed"] += len(self._rows) - len(rows)
        findings, ended = _folded(self._told)
        return Run(
            name=name,
            layers=table.layers,
            depth=table.depth,
            size=table.size,
            packed=_packed(rows, len(table.layers)),
            curves=_curves(rows),
            findings=findings,
            ended=ended,
            skipped_steps=_skipped(rows),
            written_at=written_at,
            problems=(
                *problems,
                *(f"rows {which}, left out: {count}" for which, count in unusable.items() if count),
            ),
        )

    def _add(self, found: Row | Told) -> None:
        if isinstance(found, Told):
            self._told.append(found)
            return
        self._table = found.table or self._table
        if self._table is None or len(self._table.layers) != found.norms.shape[1]:
            self._unusable["whose table of layers is missing"] += 1
            return
        if self._rows and found.step <= self._rows[-1].row.step:
            self._begin_anew(found.step)
        self._rows.append(_Placed(found, self._table))

    def _begin_anew(self, step: int) -> None:
        while self._rows and self._rows[-1].row.step >= step:
            self._rows.pop()
        self._told = [told for told in self._told if _moment(told) < step]


def _is_new(found: Row | Told) -> bool:
    """An end may be that of a finding from before the run was cut."""
    return isinstance(found, Row) or not found.ended


def _moment(told: Told) -> int:
    return told.finding.last_step if told.ended else told.finding.raised_step


def _folded(told: Iterable[Told]) -> tuple[tuple[Finding, ...], tuple[bool, ...]]:
    """Each finding once, as it was told last, by onset."""
    latest = {(each.finding.kind, each.finding.layer, each.finding.step): each for each in told}
    by_onset = sorted(latest.values(), key=lambda each: (each.finding.step, each.finding.raised_step))
    return tuple(each.finding for each in by_onset), tuple(each.ended for each in by_onset)


def _packed(rows: list[Row], layers: int) -> dict[str, Series]:
    steps = np.array([row.step for row in rows], dtype=np.int64)
    norms = np.stack([row.norms for row in rows], axis=1) if rows else np.zeros((3, 0, layers), np.float32)
    packed = {name: Series(steps, values) for name, values in zip(NORMS, norms, strict=True)}
    for name in FIGURES:
        measured = [row for row in rows if name in row.figures]
        if measured:
            packed[name] = Series(
                np.array([row.step for row in measured], dtype=np.int64),
                np.stack([row.figures[name] for row in measured]),
            )
    return packed


def _curves(rows: list[Row]) -> dict[str, Series]:
    names = dict.fromkeys(name for row in rows for name in row.curves if name != "skipped_steps")
    return {
        name: Series(
            np.array([row.step for row in rows if name in row.curves], dtype=np.int64),
            np.array([row.curves[name] for row in rows if name in row.curves], dtype=np.float32),
        )
        for name in sorted(names)
    }


def _skipped(rows: list[Row]) -> int:
    """As of the last row that tells."""
    told = (row.curves["skipped_steps"] for row in reversed(rows) if "skipped_steps" in row.curves)
    latest = next(told, 0.0)
    return int(latest) if np.isfinite(latest) else 0
