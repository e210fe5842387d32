"""Assemble the arrays of one run from decoded rows and findings, in the order in which they were written.

``gradwatch report`` adds whole rows to a ``RunAssembler``. The tab of TensorBoard, which reads a tag at a time, uses
the same parts one by one: ``LayerTables``, ``LayerRows``, ``TotalRows``, ``last_course``, ``latest_states``.

A run that was cut and goes on writes the steps since its checkpoint once more: in another file or, as a second fit with
one logger does, in the same. What was written of them before is dropped (``begin_anew``, ``last_course``).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.decode import UnreadableError
from gradwatch.event_files.format import NORMS, PACKED_FIGURES, PREFIX, ROW_NAMES, TOTALS
from gradwatch.event_files.run import (
    Coverage,
    Environment,
    FindingEvent,
    Floats,
    LayerSeries,
    LayerTable,
    LoggedRow,
    Run,
    RunEnd,
    TimeSeries,
    Totals,
    Written,
)

__all__ = ["MOST_ENTRIES", "LayerRows", "LayerTables", "RunAssembler", "TotalRows", "last_course", "latest_states"]

Content = TypeVar("Content")

MOST_ENTRIES = 1 << 28  # of one array: 1 GiB of float32, more than any run that can be looked at
_NO_LAYERS = LayerTable((), np.zeros(0, np.int64), np.zeros(0, np.int64))
_MOST_OPTIMIZERS = 100  # whose curves are told apart: a damaged file may name any number
_CURVES = ("grad_norm_total", "grad_norm_clipped_total", "loss", "learning_rate")


class LayerTables:
    """Every table of layers of a run; the last one counts, and earlier rows are put into its order."""

    def __init__(self) -> None:
        self._since: list[int] = []
        self._tables: list[LayerTable] = []

    @property
    def only(self) -> LayerTable | None:
        """The table, if there has been no other."""
        return self._tables[0] if len(self._tables) == 1 else None

    @property
    def last(self) -> LayerTable:
        """The table now in force.

        Raises:
            UnreadableError: if there is none.
        """
        if not self._tables:
            raise UnreadableError("gradwatch/layers is missing: the names of the layers are not in this run's files.")
        return self._tables[-1]

    def add(self, step: int, table: LayerTable) -> None:
        """Take in the table that holds from ``step`` on."""
        self._since.append(step)
        self._tables.append(table)

    def at(self, step: int) -> LayerTable:
        """Return the table that holds for the row at ``step``; rows before the first table have the first.

        Raises:
            UnreadableError: if there is none.
        """
        last = self.last
        return last if step >= self._since[-1] else self._tables[max(0, bisect.bisect_right(self._since, step) - 1)]

    def begin_anew(self, step: int) -> None:
        """Drop the tables from ``step`` on but for the last, which holds until the run writes another."""
        kept = bisect.bisect_left(self._since, step)
        if kept < len(self._tables):
            self._since[kept:], self._tables[kept:] = [step], [self._tables[-1]]


@dataclass
class _Block:
    """Neighbouring rows whose columns are the same layers."""

    layers: tuple[str, ...]
    steps: list[int] = field(default_factory=list)
    rows: list[Floats] = field(default_factory=list)


class LayerRows:
    """The rows of one tag, a column per layer.

    Args:
        name: the tag, one of ``ROW_NAMES``.
        tables: say which layers the columns are; rows are added after the table that holds for them.
    """

    def __init__(self, name: str, tables: LayerTables) -> None:
        self._name, self._tables = name, tables
        self._blocks: list[_Block] = []

    @property
    def last_step(self) -> int | None:
        """The step of the last row; None if there is none."""
        return self._blocks[-1].steps[-1] if self._blocks else None

    def add(self, step: int, row: Floats) -> None:
        """Take in the (K, P) figures of ``step``, which is later than all others.

        Raises:
            UnreadableError: if they are not as many as the layers of the table that holds for them.
        """
        table = self._tables.at(step)
        self.refuse(step, row, table)
        if not self._blocks or self._blocks[-1].layers is not table.layers:
            self._blocks.append(_Block(table.layers))
        self._blocks[-1].steps.append(step)
        self._blocks[-1].rows.append(row)

    def refuse(self, step: int, row: Floats, table: LayerTable) -> None:
        """Check that ``row``, of ``step``, has as many layers as ``table``.

        Raises:
            UnreadableError: if it has not.
        """
        if row.shape[1] != len(table.layers):
            raise UnreadableError(
                f"{PREFIX}{self._name} at step {step}: expected {len(table.layers)} layers, found {row.shape[1]}."
            )

    def begin_anew(self, step: int) -> None:
        """Drop the rows from ``step`` on."""
        while self._blocks and self._blocks[-1].steps[-1] >= step:
            block = self._blocks[-1]
            kept = bisect.bisect_left(block.steps, step)
            del block.steps[kept:], block.rows[kept:]
            if not block.steps:
                self._blocks.pop()

    def series(self) -> LayerSeries:
        """Return all rows in the order of the last table: NaN for layers that a row's own table did not have.

        Raises:
            UnreadableError: if there are more than can be held.
        """
        layers = self._tables.last.layers if self._blocks else ()
        known = set(layers)
        blocks = [block for block in self._blocks if not known.isdisjoint(block.layers)]
        steps = [step for block in blocks for step in block.steps]
        shape = (len(ROW_NAMES[self._name]), len(steps), len(layers))
        if shape[0] * shape[1] * shape[2] > MOST_ENTRIES:
            raise UnreadableError(
                f"{PREFIX}{self._name}: {shape[1]:,} steps of {shape[2]:,} layers are more than can be held."
            )
        values = np.empty(shape, dtype=np.float32)  # K outermost: a heat map reads one of them
        rows = itertools.chain.from_iterable(_rows_in_order(block, layers) for block in blocks)
        for place, row in enumerate(rows):
            values[:, place] = row
        left_out = sum(len(block.steps) for block in self._blocks) - len(steps)
        return LayerSeries(np.array(steps, dtype=np.int64), values, left_out)


class TotalRows:
    """The rows of ``gradwatch/totals``."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._rows: list[Floats] = []

    def add(self, step: int, row: Floats) -> None:
        """Take in the (T,) totals of ``step``, which is later than all others."""
        self._steps.append(step)
        self._rows.append(row)

    def begin_anew(self, step: int) -> None:
        """Drop the rows from ``step`` on."""
        kept = bisect.bisect_left(self._steps, step)
        del self._steps[kept:], self._rows[kept:]

    def totals(self) -> Totals:
        """Return all rows."""
        with np.errstate(invalid="ignore"):  # a damaged file may hold a NaN that signals
            columns = np.array(self._rows, dtype=np.float64).reshape(-1, len(TOTALS)).T
        return Totals(np.array(self._steps, dtype=np.int64), dict(zip(TOTALS, columns, strict=True)))


def last_course(events: Iterable[tuple[int, Content]]) -> list[tuple[int, Content]]:
    """Return the events of one tag, (step, content), without those that a run wrote anew after it was cut.

    Args:
        events: in the order in which they were written.

    Returns:
        Events with strictly rising steps.
    """
    course: list[tuple[int, Content]] = []
    for step, content in events:
        while course and course[-1][0] >= step:
            course.pop()
        course.append((step, content))
    return course


def latest_states(events: Iterable[FindingEvent]) -> list[FindingEvent]:
    """Return each finding once, as it was written last, by onset."""
    latest = {(each.finding.kind, each.finding.layer, each.finding.step): each for each in events}
    return sorted(latest.values(), key=lambda each: (each.finding.step, each.finding.raised_step))


class RunAssembler:
    """A run as far as it has been read: rows and findings are added, and ``build`` may be called at any time."""

    def __init__(self) -> None:
        self._tables = LayerTables()
        self._layer_rows = {name: LayerRows(name, self._tables) for name in ROW_NAMES}
        self._total_rows = TotalRows()
        self._events: list[FindingEvent] = []
        self._coverage: Coverage | None = None
        self._environment: Environment | None = None
        self._end: RunEnd | None = None

    def __bool__(self) -> bool:
        has_rows = self._layer_rows["grad_norm"].last_step is not None
        return has_rows or bool(self._events) or self._coverage is not None

    def add(self, found: Written) -> None:
        """Take in what was written next.

        Raises:
            UnreadableError: for a row that does not fit to the table of layers; it is left out.
        """
        self._end = found if isinstance(found, RunEnd) else None  # what follows an end is of a run that goes on
        if isinstance(found, FindingEvent):
            self._events.append(found)
        elif isinstance(found, Coverage):
            self._coverage = found
        elif isinstance(found, Environment):
            self._environment = found
        elif isinstance(found, LoggedRow):
            self._add_row(found)

    def _add_row(self, found: LoggedRow) -> None:
        norms = self._layer_rows["grad_norm"]
        norms.refuse(found.step, found.figures["grad_norm"], found.table or self._tables.last)
        if norms.last_step is not None and found.step <= norms.last_step:
            self.begin_anew(found.step)
        if found.table is not None:
            self._tables.add(found.step, found.table)
        for name, row in found.figures.items():
            self._layer_rows[name].add(found.step, row)
        if found.totals is not None:
            self._total_rows.add(found.step, found.totals)

    def begin_anew(self, step: int) -> None:
        """Drop what was written of the steps from ``step`` on."""
        self._tables.begin_anew(step)
        for rows in self._layer_rows.values():
            rows.begin_anew(step)
        self._total_rows.begin_anew(step)
        self._events = [event for event in self._events if _moment(event) < step]
        if self._coverage is not None and self._coverage.steps > step:
            self._coverage = None

    def build(self, name: str, written_at: float, problems: Iterable[str]) -> Run:
        """Return all of it as one run."""
        series = {name: rows.series() for name, rows in self._layer_rows.items() if rows.last_step is not None}
        table = self._tables.last if series else _NO_LAYERS
        norms = series.get("grad_norm", self._layer_rows["grad_norm"].series())
        totals = self._total_rows.totals()
        states = latest_states(self._events)
        return Run(
            name=name,
            layers=table.layers,
            depth=table.depth,
            size=table.size,
            packed=_packed(norms, series),
            curves=_curves(totals),
            findings=tuple(state.finding for state in states),
            ended=tuple(state.ended for state in states),
            skipped_steps=_count(totals.values["skipped_steps"]),
            coverage=self._coverage,
            closed_after=None if self._end is None else self._end.steps,
            written_at=written_at,
            problems=(*problems, *_left_out(norms)),
            environment=self._environment,
            lost={} if self._end is None else self._end.lost,
        )


def _rows_in_order(block: _Block, layers: tuple[str, ...]) -> Iterator[Floats]:
    """Yield the rows of ``block`` with a column for each of ``layers``: NaN for those that the block does not have."""
    columns = _columns(block.layers, layers)
    for row in block.rows:
        yield row if columns is None else np.where(columns >= 0, row[:, columns], np.nan)


def _columns(own: tuple[str, ...], wanted: tuple[str, ...]) -> NDArray[np.int64] | None:
    """Return where each of ``wanted`` is in ``own``, -1 for nowhere; None if both are the same."""
    if own == wanted:
        return None
    place = {name: index for index, name in enumerate(own)}
    return np.array([place.get(name, -1) for name in wanted], dtype=np.int64)


def _moment(event: FindingEvent) -> int:
    return event.finding.last_step if event.ended else event.finding.raised_step


def _packed(norms: LayerSeries, series: Mapping[str, LayerSeries]) -> dict[str, TimeSeries]:
    packed = {name: TimeSeries(norms.steps, values) for name, values in zip(NORMS, norms.values, strict=True)}
    for name in PACKED_FIGURES:
        if name in series:
            packed[name] = TimeSeries(series[name].steps, series[name].values[0])
    return packed


def _curves(totals: Totals) -> dict[str, TimeSeries]:
    """Return each of ``_CURVES`` of each optimizer at the steps at which it was observed."""
    owners = np.nan_to_num(totals.values["optimizer"], nan=-1, posinf=-1, neginf=-1)
    curves: dict[str, TimeSeries] = {}
    for owner in range(_MOST_OPTIMIZERS):
        own = owners == owner
        suffix = f"/optimizer_{owner}" if owner else ""
        for name in _CURVES if own.any() else ():
            values = totals.values[name]
            observed = own & ~np.isnan(values) if name in ("loss", "learning_rate") else own
            if name == "loss":
                values = np.where(np.isinf(values), np.nan, values)  # Inf stands for a loss that was not finite
            if observed.any():
                curves[name + suffix] = TimeSeries(totals.steps[observed], values[observed].astype(np.float32))
    return dict(sorted(curves.items()))


def _count(counts: Floats) -> int:
    """Return the sum of ``counts``, those of a damaged file left out."""
    return int(counts[(counts >= 0) & (counts < 2**31)].sum())


def _left_out(norms: LayerSeries) -> list[str]:
    if not norms.left_out:
        return []
    return [f"rows of another model, from before it was resumed, left out: {norms.left_out}"]
