"""The figures of one run as arrays over steps, checked, and kept until the run has more."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files import format
from gradwatch.event_files.decode import LARGEST_STEP, Table, UnreadableError, floats, refuse_newer
from gradwatch.measure.report import Floats
from gradwatch.tensorboard_plugin.event_files import EventFiles, Source, Tag
from gradwatch.tensorboard_plugin.tables import Tables

__all__ = ["RunLog", "Series", "Shelf"]

_MOST_BYTES = 1 << 30  # of arrays kept: four times the largest that the data server hands over
_MOST_ENTRIES = 1 << 28  # of one array: 1 GiB of float32, more than any run that can be looked at


@dataclass(frozen=True)
class Series:
    """A statistic over time.

    Attributes:
        steps: (S,) strictly rising.
        values: (K, S, P) float32, K rows of P layers at each step.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]


class Shelf:
    """What was read last, by what it was read from; the least recently used goes when it becomes too much."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str], tuple[object, Any, int]] = OrderedDict()
        self.lock = threading.RLock()  # two requests for one tag must not both read it

    def get(self, key: tuple[str, str, str], version: object) -> Any:
        """What was put there for that version, or None."""
        if key in self._kept and self._kept[key][0] == version:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        return None

    def put(self, key: tuple[str, str, str], version: object, content: Any, size: int) -> None:
        """Keeps ``content``, of ``size`` bytes."""
        self._kept.pop(key, None)
        self._kept[key] = (version, content, size)
        while len(self._kept) > 1 and sum(size for _, _, size in self._kept.values()) > _MOST_BYTES:
            self._kept.popitem(last=False)


class RunLog:
    """One run, asked for by one request.

    Args:
        files: where tensors come from.
        shelf: where arrays are kept across requests.
        source: which run.
        tags: of the run, with what changes when one grew.
    """

    def __init__(self, files: EventFiles, shelf: Shelf, source: Source, tags: Mapping[str, Tag]) -> None:
        self._files, self._shelf, self._source, self._tags = files, shelf, source, tags

    @property
    def table(self) -> Table:
        return self._tables.last

    def has(self, name: str) -> bool:
        """Whether the run logged ``gradwatch/<name>``."""
        return f"gradwatch/{name}" in self._tags

    def events(self, name: str) -> list[tuple[int, Any]]:
        """(step, tensor) of ``gradwatch/<name>``.

        Raises:
            UnreadableError: where a later version of gradwatch wrote them.
        """
        if not self.has(name):
            return []
        tag = f"gradwatch/{name}"
        refuse_newer(self._tags[tag].content, tag)
        return self._files.tensors(self._source, tag)

    def totals(self) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        """(steps, each of ``format.TOTALS``)."""
        with self._shelf.lock:
            return self._kept("totals", self._read_totals)

    def series(self, name: str) -> Series:
        """``gradwatch/<name>`` over all layers.

        Raises:
            UnreadableError: where it is missing or is not what gradwatch writes.
        """
        with self._shelf.lock:
            return self._kept(name, lambda: self._read_series(name))

    @property
    def _tables(self) -> Tables:
        with self._shelf.lock:
            return self._kept("layers", lambda: Tables(self.events("layers")))

    def _kept(self, name: str, read: Any) -> Any:
        key = (self._source.experiment, self._source.run, name)
        version = tuple(sorted(self._tags.items())) if name != "layers" else self._tags.get("gradwatch/layers")
        content = self._shelf.get(key, version)
        if content is None:
            content = read()
            size = content.values.nbytes if isinstance(content, Series) else 0
            self._shelf.put(key, version, content, size)
        return content

    def _read_totals(self) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        events = self.events("totals")
        rows = [floats(tensor, (len(format.TOTALS),), f"gradwatch/totals at step {step}") for step, tensor in events]
        columns = np.array(rows, dtype=np.float64).reshape(-1, len(format.TOTALS)).T
        return _checked([step for step, _ in events], "totals"), dict(zip(format.TOTALS, columns, strict=True))

    def _read_series(self, name: str) -> Series:
        events = self.events(name)
        if not events:
            raise UnreadableError(f"gradwatch/{name} is not in this run's files.")
        steps = _checked([step for step, _ in events], name)
        values = _stacked(name, events, self._tables)
        values = _spread(values, steps, *self._owners())
        if name in format.FIGURES:
            values = _not_finite_where_the_gradient_is_not(values, steps, self.series("grad_norm"))
        return Series(steps, values)

    def _owners(self) -> tuple[NDArray[np.int64], Floats]:
        steps, totals = self.totals()
        return steps, totals["optimizer"]


def _checked(steps: Sequence[int], name: str) -> NDArray[np.int64]:
    if steps and not 0 <= steps[0] <= steps[-1] <= LARGEST_STEP:
        raise UnreadableError(f"gradwatch/{name}: expected steps from 0 to 2⁵³, found {steps[0]} to {steps[-1]}.")
    return np.array(steps, dtype=np.int64)


def _stacked(name: str, events: Sequence[tuple[int, Any]], tables: Tables) -> NDArray[np.float32]:
    """(K, S, P), K outermost: the heat map reads one of them."""
    row_names = {"grad_norm": format.NORMS, "band": format.BAND}.get(name, (name,))
    is_flat = name in format.FIGURES
    shape = (len(row_names), len(events), len(tables.last.layers))
    if shape[0] * shape[1] * shape[2] > _MOST_ENTRIES:
        raise UnreadableError(f"gradwatch/{name}: {shape[1]:,} steps of {shape[2]:,} layers are more than can be held.")
    values = np.empty(shape, dtype=np.float32)
    for rows, layers in tables.segments([step for step, _ in events]):
        wanted = (len(layers),) if is_flat else (len(row_names), len(layers))
        for index in range(rows.start, rows.stop):
            step, tensor = events[index]
            values[:, index] = tables.gather(floats(tensor, wanted, f"gradwatch/{name} at step {step}"), layers)
    return values


def _spread(
    values: NDArray[np.float32], steps: NDArray[np.int64], owner_steps: NDArray[np.int64], owners: Floats
) -> NDArray[np.float32]:
    """A row says what happened since the same optimizer's last row: layers of one alone hold it at the rows between."""
    if len(np.unique(owners)) < 2:
        return values
    owner = np.full(len(steps), np.nan)
    at = np.searchsorted(owner_steps, steps).clip(max=len(owner_steps) - 1)
    owner[owner_steps[at] == steps] = owners[at][owner_steps[at] == steps]
    seen = ~np.isnan(values[0])
    for optimizer in np.unique(owner[~np.isnan(owner)]):
        rows = np.flatnonzero(owner == optimizer)
        alone = seen[rows].any(axis=0) & ~seen[owner != optimizer].any(axis=0)
        following = np.searchsorted(rows, np.arange(len(steps)))
        to = np.flatnonzero(following < len(rows))
        values[:, to[:, None], np.flatnonzero(alone)] = values[:, rows[following[to]]][..., alone]
    return values


def _not_finite_where_the_gradient_is_not(
    values: NDArray[np.float32], steps: NDArray[np.int64], norms: Series
) -> NDArray[np.float32]:
    """A figure is NaN where it was not measured, and where it is: the norm of a NaN weight. The second becomes Inf."""
    _, here, there = np.intersect1d(steps, norms.steps, assume_unique=True, return_indices=True)
    highest = norms.values[format.NORMS.index("highest")]
    known = np.isfinite(values).any(axis=(0, 1))
    sick = np.isnan(values[:, here]) & (np.isinf(highest[there]) & known)
    values[:, here] = np.where(sick, np.float32(np.inf), values[:, here])
    return values
