"""The memory of one optimizer: all that lives across its updates."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gradwatch.clip import Policy
from gradwatch.detect import CLEAR_STEPS
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement
from gradwatch.ranks.shards import any_is_part
from gradwatch.recover.outliers import Outliers
from gradwatch.sinks import RowBuilder
from gradwatch.watcher.diagnosis import Diagnosis
from gradwatch.watcher.origin_finder import StepOrigin
from gradwatch.watcher.state import TrackState

__all__ = ["OptimizerTrack"]


class OptimizerTrack:
    """The memory of one optimizer, or of a loop without one: all that lives across its updates.

    Attributes:
        index: of the optimizer, in order of first sight.
        diagnosis, policy, rows, outliers: its own, since a GAN's two halves have nothing in common.
        count: updates so far.
        latest_step: the step of the latest of them; before the first, long ago.
        parameters: all of its parameters, watched or not.
        watched: columns of those that are.
        are_distributed: whether any of its parameters is a ``DTensor``.
        is_settled: the depths of its layers were read off its first backward pass.
        current: the update under way.
        skip_flag: () on the device, 1 where it is not to be made; None where that is decided here.
        kept: its parameters and copies of their weights, where the policy may shorten it.
        origin: what that update has left behind, should its NaN or Inf be asked about.
        earlier: the last one, where nobody says when its update is made.
        last_made: the last one whose update was made; None before.
        awaiting: a sampled update that waits for the other ranks: how far they moved their parts of the weights.
        last_total: the total norm at the last processed update whose gradients the loop changed by hand.
        update_rows: how far it moved this rank's; the coming update exchanges them.
        shown: the same update, if its history was read before.
    """

    def __init__(self, index: int, diagnosis: Diagnosis, policy: Policy | None) -> None:
        self.index, self.diagnosis, self.policy = index, diagnosis, policy
        self.rows, self.outliers = RowBuilder(), Outliers()
        self.count = 0
        self.latest_step: float = -math.inf
        self.parameters: Sequence[Tensor] = []
        self.watched: frozenset[int] = frozenset()
        self.are_distributed = False
        self.is_settled = False
        self.current: Measurement | None = None
        self.skip_flag: Tensor | None = None
        self.kept: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None
        self.origin: StepOrigin | None = None
        self.earlier: Measurement | None = None
        self.last_made: Measurement | None = None
        self.awaiting: Measurement | None = None
        self.shown: Measurement | None = None
        self.update_rows: Tensor | None = None
        self.last_total: float | None = None
        # the last columns of an update with all gradients, and of one without some
        self._columns: dict[bool, tuple[list[bool], GradientColumns]] = {}
        self._last_sick: int | None = None

    def use(self, parameters: Sequence[Tensor], layers: Layers) -> bool:
        """Look columns up where the parameters are not those of the last update.

        Returns:
            True where some of them are new and not in the table.
        """
        if len(parameters) != len(self.parameters) or not all(map(operator.is_, parameters, self.parameters)):
            found = [layers.column(parameter) for parameter in parameters]
            self.parameters, self._columns = parameters, {}
            self.are_distributed = any_is_part(parameters)
            self.watched = frozenset(column for column in found if column is not None)
            return None in found
        return False

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

    def all_columns(self, layers: Layers) -> GradientColumns:
        """Return the columns of all parameters, whether they have a gradient or not."""
        return self.columns(self.parameters, layers)

    def take_update_sums(self, rows: Tensor) -> None:
        """Give the update that waits for the other ranks what they have together."""
        waiting = self.awaiting or self.shown
        self.awaiting = self.update_rows = None
        if waiting is not None:
            waiting.take_update_sums(rows)

    def take_shown(self) -> Measurement | None:
        """Return, once, the update whose history was read before the ranks knew how far it moved the weights."""
        if self.shown is None or self.update_rows is not None:
            return None
        shown, self.shown = self.shown, None
        return shown

    def begins_to_be_sick(self, update: int) -> bool:
        """Note a sick ``update``; return whether so many healthy ones came before that an earlier finding has ended."""
        last, self._last_sick = self._last_sick, update
        return last is None or update - last > CLEAR_STEPS

    def release(self) -> None:
        """Hold the parameters no longer, nor the updates that were measured of them."""
        self.parameters, self._columns = [], {}
        self.current = self.earlier = self.last_made = self.awaiting = self.shown = None
        self.origin = self.update_rows = self.kept = self.skip_flag = None

    def state(self) -> TrackState:
        """Return everything that a resumed run goes on from."""
        memory = None if self.policy is None else self.policy.memory
        return TrackState(self.count, self.diagnosis.state(), {} if memory is None else memory.state())

    def learned(self) -> dict[str, Any]:
        """Return what detectors, background and clipping have learned, which a run that goes back goes on from."""
        state = self.state()
        return {"diagnosis": state.diagnosis, "clip": {name: _copied(value) for name, value in state.clip.items()}}

    def restore_learned(self, learned: Mapping[str, Any]) -> None:
        """Go on from what ``learned`` returned; updates are counted on."""
        self.restore(TrackState(self.count, learned["diagnosis"], learned["clip"]))

    def restore(self, state: TrackState) -> None:
        """Go on from what ``state`` returned."""
        self.count = state.updates
        if state.diagnosis:
            self.diagnosis.restore(state.diagnosis)
        if self.policy is not None and self.policy.memory is not None and state.clip:
            self.policy.memory.restore(state.clip)


def _copied(value: Tensor | int) -> Tensor | int:
    return value.clone() if isinstance(value, Tensor) else value
