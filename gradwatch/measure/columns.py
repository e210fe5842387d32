"""Match the gradients of a step with the columns of the layer table.

Most steps have the gradients of the step before, so one ``GradientColumns`` serves many steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradwatch.fork_safety import lazy_property
from gradwatch.measure.report import Floats
from gradwatch.measure.samples import PartPlaces, sample_segments
from gradwatch.measure.segments import Segments
from gradwatch.ranks.shards import any_is_part, local_parts

__all__ = ["GradientColumns"]

T = TypeVar("T")


class GradientColumns:
    """The n parameters of an update that have a gradient, w of them watched, over P columns.

    Args:
        parameters: n tensors.
        columns: (n,) the column of each, −1 where it is not watched.
        layers: how many columns there are.

    Attributes:
        parameters, columns: as given.
        positions: (w,) which of the n are watched.
        are_distributed: whether any of the n is a ``DTensor``, of which a rank holds a part.
        measured: (P,) bool, the columns that have a gradient; read-only.
    """

    def __init__(self, parameters: Sequence[Tensor], columns: NDArray[np.int64], layers: int) -> None:
        self.parameters, self.columns = parameters, columns
        self.positions = np.flatnonzero(columns >= 0)
        self.are_distributed = any_is_part(parameters)
        self._watched = self.select(parameters)
        self._layers = layers
        self._is_whole_table = np.array_equal(columns, np.arange(layers))
        self.measured = self.place(np.ones(len(self.positions)), absent=0) > 0
        self.measured.flags.writeable = False  # every report of these steps holds it

    @property
    def watched(self) -> Sequence[Tensor]:
        """The w watched parameters, or the part of each that this rank holds."""
        return local_parts(self._watched) if self.are_distributed else self._watched

    @lazy_property
    def part_places(self) -> PartPlaces:
        """The places of those sampled entries of the w watched parameters that this rank holds."""
        return PartPlaces.of(self._watched)

    @lazy_property
    def sample_segments(self) -> Segments:
        """How many entries are sampled of each of the w watched parameters."""
        return sample_segments(self.watched)

    @property
    def watched_columns(self) -> list[int]:
        """The column of each of the w watched parameters."""
        return self.columns[self.positions].tolist()

    def select(self, sequence: Sequence[T]) -> Sequence[T]:
        """Return the w watched ones of n things."""
        if len(self.positions) == len(self.columns):
            return sequence
        return [sequence[i] for i in self.positions.tolist()]

    def spread(self, values: Floats, absent: float = np.nan) -> Floats:
        """Return (P,) over the table from (n,)."""
        return values if self._is_whole_table else self.place(values[self.positions], absent)

    def place(self, values: Floats, absent: float = np.nan) -> Floats:
        """Return (P,) over the table from (w,)."""
        if self._is_whole_table:
            return values
        row = np.full(self._layers, absent, dtype=np.float64)
        row[self.columns[self.positions]] = values
        return row

    def list_of(self, values: Sequence[T]) -> list[T | None]:
        """Return a list of P from one of w, with None where a column has no gradient."""
        row: list[T | None] = [None] * self._layers
        for column, value in zip(self.watched_columns, values, strict=True):
            row[column] = value
        return row
