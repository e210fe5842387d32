"""``vanishing`` of scores that go through a softmax over an axis of one entry: attention over the wrong axis.

What is seen, in the graph of a sampled forward pass: a layer of one unit, and after it a softmax over that unit alone,
where another axis than that of the batch has several entries. Its results are 1 and its slope is 0, whatever the layer
computes. The weights of that layer, and those before it, are sick if their gradients have been exactly zero at every
sample so far.

Why no healthy run shows it. Scores of several items are made to be compared with each other, and these never are.
Attention over a single token normalises a product of two layers, not the result of one. A mixture of one expert or of
one component gives its router rows of a matrix, (N, 1), and those are not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["SoftmaxOfOne"]

PATIENCE = 6  # samples: updates 1, 2, 4, 8, 10, 20


@dataclass
class SoftmaxOfOneState:
    """The state of ``SoftmaxOfOne`` across steps.

    Attributes:
        was_reached: (P,) bool, layers that had a gradient other than zero at some sample.
    """

    VERSION: ClassVar[int] = 1

    was_reached: NDArray[np.bool_]


class SoftmaxOfOne(Detector[SoftmaxOfOneState]):
    """Layers of one unit before a softmax over that unit, and what lies before them.

    ``value`` is the L2 norm of the gradient, 0, and ``threshold`` is 0, too. ``Thresholds.vanishing_norm`` replaces the
    rule.
    """

    kind = "vanishing"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        self.patience, count = thresholds.patience or PATIENCE, len(layers)
        super().__init__(SoftmaxOfOneState(np.zeros(count, dtype=bool)))
        self._layers = layers
        self._modules = np.array([name.rpartition(".")[0] for name in layers.names])
        self._is_replaced = thresholds.vanishing_norm is not None
        self._healthy = healthy(count)

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_replaced or not report.sampled or not report.is_finite:
            return None
        ours = self._state
        ours.was_reached |= report.grad_norm > 0
        if "dead_share" not in report.figures and "activation_rms" not in report.figures:
            return None  # no forward pass was seen
        if "softmax_of_one" not in report.figures:
            return self._healthy
        before = report.figures["softmax_of_one"] == 1
        sick = before | np.isin(self._modules, self._modules[before])
        if self._layers.after is not None:
            sick |= self._layers.after[:, before].any(axis=1)
        sick &= report.measured & ~ours.was_reached
        badness = before + 0.5 * self._layers.is_weight
        return DetectorResult(sick, badness, np.zeros(len(sick)), np.zeros(len(sick)))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, parameters = self._layers.names[column], count_of(len(covered), "parameter", "parameters")
        measured = (
            f"The gradient of {name} is exactly zero at step {report.step}, as it was at every sample so far, while "
            f"the total gradient norm is {report.grad_norm_total:.3g}."
        )
        cause = (
            f"The softmax after {self._modules[column] or name} goes over an axis of one entry, so it always gives 1 "
            f"and passes no gradient: {parameters} cannot learn. Take it over the axis of the items that are compared."
        )
        return Evidence(measured, (cause,), ("softmax of one",))
