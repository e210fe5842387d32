"""``dead``: units that pass no gradient, whatever they are shown."""

from __future__ import annotations

import numpy as np

from gradwatch.detect.symptoms import Detector, Symptoms
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import SILENT_SAMPLES, StepReport

__all__ = ["Dead"]

SHARE = 0.8  # of a layer's units; healthy rectifiers lose up to two thirds
PATIENCE = 2  # samples


class Dead(Detector):
    """A rectifier most of whose units have passed no gradient on any input of five sampled forward passes.

    Silent is a unit, not an entry: half of a healthy ReLU's entries are zero, another half on every batch. ``value`` is
    the share of dead units behind the layer. ``Thresholds.dead_share`` replaces the share.
    """

    kind = "dead"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__()
        self._layers = layers
        self._share = thresholds.dead_share or SHARE
        self.patience = thresholds.patience or PATIENCE
        self._memory = {"samples": []}

    def examine(self, report: StepReport) -> Symptoms | None:
        share = report.figures.get("dead_share")
        if share is None or not report.is_finite:  # of NaN nothing is alive
            return None
        self._memory["samples"] = [*self._memory["samples"], report.step][-SILENT_SAMPLES:]
        known = np.nan_to_num(share, nan=0.0)
        return Symptoms(
            sick=known >= self._share,
            badness=known - 1e-6 * self._layers.depth,  # of several dead layers, that nearest the input
            value=known,
            threshold=np.full(len(known), self._share),
            onset=np.full(len(known), self._memory["samples"][0]),
        )

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        share, name = report.figures["dead_share"][column], self._layers.names[column]
        measured = (
            f"{share:.0%} of the units behind {name} passed no gradient on any input of {len(self._memory['samples'])} "
            f"sampled forward passes up to step {report.step} (normal: less than {self._share:.0%})."
        )
        return "the inputs of its activation function are so far below zero that it is flat there", measured
