"""Assemble the arrays of one run from TensorBoard's events, and keep them until the run has more."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from gradwatch.event_files import decode
from gradwatch.event_files.assemble import MOST_ENTRIES, LayerRows, LayerTables, TotalRows
from gradwatch.event_files.decode import UnreadableError, refuse_newer, refuse_step
from gradwatch.event_files.format import PACKED_FIGURES, PREFIX, ROW_NAMES
from gradwatch.event_files.run import LayerSeries, LayerTable, Totals
from gradwatch.tensorboard_plugin.file_events import FileEvents
from gradwatch.tensorboard_plugin.gaps import held_between_rows, infinite_where_the_gradient_is
from gradwatch.tensorboard_plugin.provider import ProviderEvents, RunKey, TagVersion

__all__ = ["ArrayCache", "CachedRun"]

_MOST_BYTES = 1 << 30  # of arrays kept: four times the largest that the data server hands over

Content = TypeVar("Content")


class ArrayCache:
    """The arrays that were read last, by what they are of; the least recently used go when they are too large."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str], tuple[object, Any, int]] = OrderedDict()
        self.lock = threading.RLock()  # two requests for one tag must not both read it

    def get(self, key: tuple[str, str, str], version: object) -> Any:
        """Return what was put there for that version, or None."""
        if key in self._kept and self._kept[key][0] == version:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        return None

    def put(self, key: tuple[str, str, str], version: object, content: Any, size: int) -> None:
        """Keep ``content``, of ``size`` bytes."""
        self._kept.pop(key, None)
        self._kept[key] = (version, content, size)
        while len(self._kept) > 1 and sum(size for _, _, size in self._kept.values()) > _MOST_BYTES:
            self._kept.popitem(last=False)


class CachedRun:
    """One run, asked for by one request.

    Args:
        events: where tensors come from.
        cache: where arrays are kept across requests.
        key: which run.
        versions: of the run's tags; an array is read again once they changed.
    """

    def __init__(
        self, events: FileEvents | ProviderEvents, cache: ArrayCache, key: RunKey, versions: Mapping[str, TagVersion]
    ) -> None:
        self._events, self._cache, self._key, self._versions = events, cache, key, versions

    @property
    def table(self) -> LayerTable:
        """The table of layers now in force.

        Raises:
            UnreadableError: if there is none, or it cannot be read.
        """
        return self._tables().last

    def has(self, name: str) -> bool:
        """Return whether the run logged ``gradwatch/<name>``."""
        return PREFIX + name in self._versions

    def events(self, name: str) -> list[tuple[int, Any, str]]:
        """Return (step, tensor, what it is called in an error) of every event of ``gradwatch/<name>``.

        Raises:
            UnreadableError: if a later version of gradwatch wrote them.
        """
        tag = PREFIX + name
        if tag not in self._versions:
            return []
        refuse_newer(self._versions[tag].content, tag)
        events = self._events.tensors(self._key, tag)
        return [(step, tensor, f"{tag} at step {step}") for step, tensor in events]

    def totals(self) -> Totals:
        """Return what concerns the whole run.

        Raises:
            UnreadableError: if it cannot be read.
        """
        return self._kept("totals", self._read_totals, tuple(sorted(self._versions.items())))

    def series(self, name: str) -> LayerSeries:
        """Return ``gradwatch/<name>`` over all layers.

        Raises:
            UnreadableError: if it is missing, or cannot be read.
        """
        return self._kept(name, lambda: self._read_series(name), tuple(sorted(self._versions.items())))

    def derived(self, name: str, make: Callable[[], Content]) -> Content:
        """Return what ``make`` computes of the run, kept under a name of its own until the run grows."""
        return self._kept(f"derived {name}", make, tuple(sorted(self._versions.items())))

    def _tables(self) -> LayerTables:
        return self._kept("layers", self._read_tables, self._versions.get(f"{PREFIX}layers"))

    def _kept(self, name: str, read: Callable[[], Content], version: object) -> Content:
        key = (self._key.experiment, self._key.run, name)
        with self._cache.lock:
            content: Content | None = self._cache.get(key, version)
            if content is None:
                content = read()
                size = content.values.nbytes if isinstance(content, LayerSeries) else 0
                self._cache.put(key, version, content, size)
        return content

    def _read_tables(self) -> LayerTables:
        tables = LayerTables()
        for step, tensor, what in self.events("layers"):
            tables.add(step, decode.layer_table_of(tensor, what))
        return tables

    def _read_totals(self) -> Totals:
        events = list(self._steps_checked("totals"))
        at_once = decode.totals_at_once([tensor for _, tensor, _ in events])
        rows = TotalRows()
        for place, (step, tensor, what) in enumerate(events):
            rows.add(step, decode.totals_of(tensor, what) if at_once is None else at_once[place])
        return rows.totals()

    def _read_series(self, name: str) -> LayerSeries:
        events = list(self._steps_checked(name))
        series = self._series_at_once(name, events) or self._series_row_by_row(name, events)
        if not len(series.steps):
            raise UnreadableError(f"{PREFIX}{name} is not in this run's files.")
        series = held_between_rows(series, self.totals())
        return infinite_where_the_gradient_is(series, self.series("grad_norm")) if name in PACKED_FIGURES else series

    def _series_at_once(self, name: str, events: Sequence[tuple[int, Any, str]]) -> LayerSeries | None:
        """Return the series; None if its rows are not all alike: in a damaged run, or one whose layers changed."""
        table = self._tables().only
        if table is None or len(events) * len(table.layers) * len(ROW_NAMES[name]) > MOST_ENTRIES:
            return None
        rows = decode.layer_rows_at_once(name, [tensor for _, tensor, _ in events], len(table.layers))
        if rows is None:
            return None
        return LayerSeries(np.array([step for step, _, _ in events], dtype=np.int64), rows.transpose(1, 0, 2), 0)

    def _series_row_by_row(self, name: str, events: Sequence[tuple[int, Any, str]]) -> LayerSeries:
        rows = LayerRows(name, self._tables())
        for step, tensor, what in events:
            rows.add(step, decode.layer_rows_of(name, tensor, what))
        return rows.series()

    def _steps_checked(self, name: str) -> Iterator[tuple[int, Any, str]]:
        for event in self.events(name):
            refuse_step(event[0], PREFIX + name)
            yield event
