"""The tables of layers of a run, as it grew or was resumed, and the order of columns that they come to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.decode import UnreadableError, table_of

__all__ = ["Tables"]


class Tables:
    """Every table of a run; the last one counts, and rows that an earlier one names are put in its order.

    Attributes:
        last: the table now in force.
    """

    def __init__(self, events: Sequence[tuple[int, Any]]) -> None:
        if not events:
            raise UnreadableError("gradwatch/layers is missing: the names of the layers are not in this run's files.")
        tables = [table_of(tensor, f"gradwatch/layers at step {step}") for step, tensor in events]
        self.last = tables[-1]
        self._since = [step for step, _ in events]
        self._layers = [table.layers for table in tables]

    def segments(self, steps: Sequence[int]) -> list[tuple[slice, tuple[str, ...]]]:
        """Stretches of the rows at ``steps``, each with the names of its columns."""
        bounds = [0, *np.searchsorted(steps, self._since[1:]).tolist(), len(steps)]
        pairs = zip(itertools.pairwise(bounds), self._layers, strict=True)
        return [(slice(start, end), layers) for (start, end), layers in pairs if end > start]

    def gather(self, values: NDArray[np.floating], layers: tuple[str, ...]) -> NDArray[np.floating]:
        """``values`` (…, columns of ``layers``) in the last table's order; NaN for layers that it did not have."""
        if layers == self.last.layers:
            return values
        column = {name: index for index, name in enumerate(layers)}
        found = np.array([column.get(name, -1) for name in self.last.layers])
        gathered: NDArray[np.floating] = np.where(found >= 0, values[..., found], np.nan).astype(values.dtype)
        return gathered
