"""The memory of one optimizer: all that lives across its updates."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gradwatch.clip import Policy
from gradwatch.detect import CLEAR_STEPS
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement
from gradwatch.sinks import RowBuilder
from gradwatch.watcher.diagnosis import Diagnosis
from gradwatch.watcher.origin_finder import StepOrigin
from gradwatch.watcher.state import TrackState

__all__ = ["OptimizerTrack"]


class OptimizerTrack:
    """The memory of one optimizer, or of a loop without one: all that lives across its updates.

    Attributes:
        index: of the optimizer, in order of first sight.
        diagnosis, policy, rows: its own, since a GAN's two halves have nothing in common.
        count: updates so far.
        parameters: all of its parameters, watched or not.
        watched: columns of those that are.
        is_settled: the depths of its layers were read off its first backward pass.
        current: the update under way.
        origin: what that update has left behind, should its NaN or Inf be asked about.
        earlier: the last one, where nobody says when its update is made.
        last_made: the last one whose update was made; None before.
    """

    def __init__(self, index: int, diagnosis: Diagnosis, policy: Policy | None) -> None:
        self.index, self.diagnosis, self.policy = index, diagnosis, policy
        self.rows = RowBuilder()
        self.count = 0
        self.parameters: Sequence[Tensor] = []
        self.watched: frozenset[int] = frozenset()
        self.is_settled = False
        self.current: Measurement | None = None
        self.origin: StepOrigin | None = None
        self.earlier: Measurement | None = None
        self.last_made: Measurement | None = None
        # the last columns of an update with all gradients, and of one without some
        self._columns: dict[bool, tuple[list[bool], GradientColumns]] = {}
        self._last_sick: int | None = None

    def use(self, parameters: Sequence[Tensor], layers: Layers) -> None:
        """Look columns up where the parameters are not those of the last update."""
        if len(parameters) != len(self.parameters) or not all(map(operator.is_, parameters, self.parameters)):
            found = [layers.column(parameter) for parameter in parameters]
            self.parameters, self._columns = parameters, {}
            self.watched = frozenset(column for column in found if column is not None)

    def columns(self, gradients: Sequence[Tensor | None], layers: Layers) -> GradientColumns:
        """Return the columns of those parameters that have a gradient; the same object as long as they are the same."""
        has_gradient = [gradient is not None for gradient in gradients]
        known = self._columns.get(all(has_gradient))
        if known is None or known[0] != has_gradient:
            parameters = list(itertools.compress(self.parameters, has_gradient))
            columns = [-1 if (column := layers.column(p)) is None else column for p in parameters]
            known = has_gradient, GradientColumns(parameters, np.array(columns, dtype=np.int64), len(layers))
            self._columns[all(has_gradient)] = known
        return known[1]

    def begins_to_be_sick(self, update: int) -> bool:
        """Note a sick ``update``; return whether so many healthy ones came before that an earlier finding has ended."""
        last, self._last_sick = self._last_sick, update
        return last is None or update - last > CLEAR_STEPS

    def state(self) -> TrackState:
        """Return everything that a resumed run goes on from."""
        averages = None if self.policy is None else self.policy.averages
        return TrackState(self.count, self.diagnosis.state(), {} if averages is None else averages.state())

    def restore(self, state: TrackState) -> None:
        """Go on from what ``state`` returned."""
        self.count = state.updates
        self.diagnosis.restore(state.diagnosis)
        if self.policy is not None and self.policy.averages is not None and state.clip:
            self.policy.averages.restore(state.clip)
