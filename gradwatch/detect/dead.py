"""``dead``: units that pass no gradient, whatever their inputs are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import SILENT_SAMPLES, StepReport

__all__ = ["Dead"]

SHARE = 0.8  # of a layer's units; healthy rectifiers lose up to two thirds
PATIENCE = 2  # samples


@dataclass
class DeadState:
    """The state of ``Dead`` across steps.

    Attributes:
        samples: the steps of the last five samples.
    """

    VERSION: ClassVar[int] = 1

    samples: list[int] = field(default_factory=list)


class Dead(Detector[DeadState]):
    """A rectifier most of whose units have passed no gradient on any input of five sampled forward passes.

    Units are judged, not entries: half of a healthy ReLU's entries are zero, another half on every batch. ``value`` is
    the share of dead units that follow the layer. ``Thresholds.dead_share`` replaces the share.
    """

    kind = "dead"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(DeadState())
        self._layers = layers
        self._share = thresholds.dead_share or SHARE
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        share = report.figures.get("dead_share")
        if share is None or not report.is_finite:  # no unit passes a NaN on as a gradient
            return None
        samples = self._state.samples = [*self._state.samples, report.step][-SILENT_SAMPLES:]
        known = np.nan_to_num(share, nan=0.0)
        return DetectorResult(
            sick=known >= self._share,
            badness=known - 1e-6 * self._layers.depth,  # of several dead layers, that nearest the input
            value=known,
            threshold=np.full(len(known), self._share),
            onset=np.full(len(known), samples[0]),
        )

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        share, name = report.figures["dead_share"][column], self._layers.names[column]
        passes = count_of(len(self._state.samples), "sampled forward pass", "sampled forward passes")
        return Evidence(
            measured=f"{share:.0%} of the units after {name} passed no gradient on any input of {passes} up to step "
            f"{report.step} (normal: less than {self._share:.0%}).",
            cause=("The inputs of its activation function are so far below zero that the function is flat there.",),
        )
