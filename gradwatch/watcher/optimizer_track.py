"""The updates of one optimizer: what lives across them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gradwatch.clip import Policy
from gradwatch.detect import Detectors
from gradwatch.detect.episode import CLEAR_STEPS
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement, StepPlan
from gradwatch.sinks import RowBuilder

__all__ = ["Cadence", "OptimizerTrack"]

DETECTION_FIGURES = frozenset({"weight_norm", "update_ratio"})
_FIRST_SAMPLES = (0, 1, 2, 4, 8)
_SAMPLE_EVERY = 10


@dataclass(frozen=True)
class Cadence:
    """When to look closer and when to write. Both count each optimizer's own updates.

    Attributes:
        log_every_n_steps: a row is written at every such update.
        row_figures: what it holds beside the norms of the gradients.
        histograms: whether entries go with it.
    """

    log_every_n_steps: int
    row_figures: frozenset[str]
    histograms: bool

    def is_sampled(self, update: int) -> bool:
        """Whether this update is sampled for the detectors, whatever the logging."""
        return update in _FIRST_SAMPLES or update % _SAMPLE_EVERY == 0

    def is_logged(self, update: int) -> bool:
        """Whether a row is written at this update."""
        return update % self.log_every_n_steps == 0


class OptimizerTrack:
    """What lives across the updates of one optimizer, or of a loop without one.

    Attributes:
        index: of the optimizer, in order of first sight.
        detectors, policy, rows: its own, since a GAN's two halves have nothing in common.
        count: updates so far.
        parameters: all of its parameters, watched or not.
        watched: columns of those that are.
        is_settled: the depths of its layers were read off its first backward pass.
        current: the update under way.
        earlier: the last one, where nobody says when its update is made.
    """

    def __init__(self, index: int, detectors: Detectors, policy: Policy | None) -> None:
        self.index, self.detectors, self.policy = index, detectors, policy
        self.rows = RowBuilder()
        self.count = 0
        self.parameters: Sequence[Tensor] = []
        self.watched: frozenset[int] = frozenset()
        self.is_settled = False
        self.current: Measurement | None = None
        self.earlier: Measurement | None = None
        self._placements: dict[
            bool, tuple[list[bool], GradientColumns]
        ] = {}  # the last with all gradients, and without some
        self._last_sick: int | None = None

    def use(self, parameters: Sequence[Tensor], layers: Layers) -> None:
        """Looks columns up where the parameters are not those of the last update."""
        if len(parameters) != len(self.parameters) or not all(map(operator.is_, parameters, self.parameters)):
            found = [layers.column(parameter) for parameter in parameters]
            self.parameters, self._placements = parameters, {}
            self.watched = frozenset(column for column in found if column is not None)

    def placement(self, gradients: Sequence[Tensor | None], layers: Layers) -> GradientColumns:
        """Of those parameters that have a gradient at this update; that of the last update where they are the same."""
        has_gradient = [gradient is not None for gradient in gradients]
        known = self._placements.get(all(has_gradient))
        if known is None or known[0] != has_gradient:
            parameters = list(itertools.compress(self.parameters, has_gradient))
            columns = [-1 if (column := layers.column(p)) is None else column for p in parameters]
            known = has_gradient, GradientColumns(parameters, np.array(columns, dtype=np.int64), len(layers))
            self._placements[all(has_gradient)] = known
        return known[1]

    def begins_to_be_sick(self) -> bool:
        """Whether this sick update follows healthy ones, so many that a finding before has ended."""
        last, self._last_sick = self._last_sick, self.count
        return last is None or self.count - last > CLEAR_STEPS

    def plan(
        self, step: int, cadence: Cadence, has_scaler: bool, already_clipped: bool, rate: float | None
    ) -> StepPlan:
        """What the coming update is asked for."""
        sampled, logged = cadence.is_sampled(self.count), cadence.is_logged(self.count)
        figures = (DETECTION_FIGURES if sampled else frozenset()) | (cadence.row_figures if logged else frozenset())
        entries = logged and cadence.histograms
        return StepPlan(step, self.index, self.count, sampled, figures, entries, has_scaler, already_clipped, rate)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run goes on from."""
        clip = {} if self.policy is None else {name: value.clone() for name, value in self.policy.state.items()}
        return {"count": self.count, "detectors": self.detectors.state(), "clip": clip}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        self.count = state["count"]
        self.detectors.restore(state["detectors"])
        if self.policy is not None:
            self.policy.state.update(state["clip"])
