"""``dead`` where the scale of a likelihood begins at its floor and stays there.

What is measured, at sampled updates: a rectifier that the loop calls after the last layer, whose result divides
something in the loss and has its logarithm taken, as a deviation or a variance does; whether any of its units passes a
gradient on any input; and how far the layer before it moves.

Why no healthy run shows it. A rectifier in the loss is most often a hinge, which is flat because the loss is satisfied;
but nothing is divided by a hinge. A scale that has shrunk to its floor by training had units that passed a gradient at
some sample. One that begins there is found only while its layer stands still: Adam moves a layer at full speed whose
gradient is ten thousand times smaller than that of others, until it is alive. A scale that is fixed on purpose has no
layer that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["SilentScale"]

STILL = 1e-6  # of the weight, moved by an update
PATIENCE = 6  # samples


@dataclass
class SilentScaleState:
    """The state of ``SilentScale`` across steps.

    Attributes:
        was_alive: (P,) bool, layers of which a unit passed a gradient at some sample.
    """

    VERSION: ClassVar[int] = 1

    was_alive: NDArray[np.bool_]


class SilentScale(Detector[SilentScaleState]):
    """A layer whose outputs are a scale of the loss, behind a rectifier that has been flat since the run began.

    ``value`` is the share of silent units, 1. ``Thresholds.dead_share`` does not apply: no unit passes a gradient.
    """

    kind = "dead"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(SilentScaleState(np.zeros(len(layers), dtype=bool)))
        self._layers = layers
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        silent, moved = report.figures.get("silent_scale"), report.figures.get("update_ratio")
        if silent is None or moved is None or not report.is_finite:
            return None
        ours = self._state
        ours.was_alive = ours.was_alive | (silent == 0)
        sick = (silent == 1) & ~ours.was_alive & (moved <= STILL)
        whole = np.ones(len(sick))
        return DetectorResult(sick, sick - 1e-6 * self._layers.depth, whole, whole)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, moved = self._layers.names[column], report.figures["update_ratio"][column]
        measured = (
            f"No unit after {name} has passed a gradient on any input of a sampled forward pass, and its update was "
            f"{moved:.2g} of it at step {report.step} (normal: above {STILL:g})."
        )
        cause = (
            "What is made of it divides something in the loss, and the function that makes it is flat, at its floor."
        )
        return Evidence(measured, (cause,))
