"""The table of layers of a run, as ``gradwatch/layers`` holds it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.tensorboard_plugin.tensors import UnreadableError, json_object

__all__ = ["Table", "Tables"]

_MOST_LAYERS = 100_000
_LONGEST_NAME = 1_000
_LARGEST_NUMBER = 2**53  # what a browser counts exactly


@dataclass(frozen=True)
class Table:
    """P layers, in order of registration.

    Attributes:
        layers: their names.
        depth: (P,) place of each from input to output.
        size: (P,) entries of each.
    """

    layers: tuple[str, ...]
    depth: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Table:
        """
        Raises:
            UnreadableError: where ``content`` is no table.
        """
        layers = content.get("layers")
        if not isinstance(layers, list) or not 0 < len(layers) <= _MOST_LAYERS:
            raise UnreadableError(f"gradwatch/layers: expected 1 to {_MOST_LAYERS:,} layers.")
        if not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in layers):
            raise UnreadableError(f"gradwatch/layers: expected names of at most {_LONGEST_NAME:,} characters.")
        if len(set(layers)) < len(layers):
            raise UnreadableError("gradwatch/layers: a name stands there twice.")
        return cls(tuple(layers), *(_counts(content.get(name), name, len(layers)) for name in ("depth", "size")))


class Tables:
    """Every table of a run; the last one counts, and rows that an earlier one names are put in its order.

    Attributes:
        last: the table now in force.
    """

    def __init__(self, events: Sequence[tuple[int, Any]]) -> None:
        if not events:
            raise UnreadableError("gradwatch/layers is missing: the names of the layers are not in this run's files.")
        tables = [Table.of(json_object(tensor, f"gradwatch/layers at step {step}")) for step, tensor in events]
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


def _counts(numbers: object, what: str, count: int) -> NDArray[np.int64]:
    valid = isinstance(numbers, list) and len(numbers) == count
    if not valid or not all(type(number) is int and 0 <= number < _LARGEST_NUMBER for number in numbers):  # type: ignore[attr-defined]
        raise UnreadableError(f"gradwatch/layers: expected {count} whole numbers as {what}.")
    return np.array(numbers, dtype=np.int64)
