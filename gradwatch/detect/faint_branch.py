"""Judge weights that stay far fainter than others: what the rules for single branches have in common.

Each rule says what a weight is compared with. A weight whose ratio is below the limit for eight samples in a row is
sick. As long as its ratio doubles within that time it is waking up, and nothing is raised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, healthy
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["PATIENCE", "FaintBranch"]

PATIENCE = 8  # samples in a row: updates 0 to 30, or eighty steps later in the run
WAKING = 2.0  # a ratio that has doubled within the patience is waking up
SMALLEST = 1e-300  # ratios below count as this: their logarithm is finite


@dataclass
class FaintBranchState:
    """The state of ``FaintBranch`` across steps.

    Attributes:
        ratios: (patience − 1, P) the latest ratios of the weights, oldest first; NaN where one was not judged.
    """

    VERSION: ClassVar[int] = 1

    ratios: Floats


class FaintBranch(Detector[FaintBranchState]):
    """A rule for weights whose gradient is far below that of the weights that they are compared with.

    ``value`` is the L2 norm of the gradient, ``threshold`` the norm below which the weight is sick: ``limit`` times
    what it is compared with, by root mean square. ``Thresholds.vanishing_norm`` replaces the rule.

    Attributes:
        limit: the ratio up to which a weight is sick.
    """

    kind = "vanishing"
    judges_samples_only = True
    limit: float

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        self.patience = thresholds.patience or PATIENCE
        super().__init__(FaintBranchState(np.full((max(1, self.patience - 1), len(layers)), np.nan)))
        self._layers = layers
        self._is_replaced = thresholds.vanishing_norm is not None
        self._healthy = healthy(len(layers))
        self._reference = np.zeros(len(layers))  # what each weight was compared with last, for explain

    def examine(self, report: StepReport) -> DetectorResult | None:
        after = self._layers.after
        if self._is_replaced or after is None or not report.sampled or not math.isfinite(report.grad_norm_total):
            return None  # beside a norm that is NaN, or that overflows, nothing is faint
        root = np.sqrt(np.maximum(self._layers.size, 1))
        ratio = self._ratios(report.grad_norm / root, report, after)
        with np.errstate(invalid="ignore"):
            sick = ratio <= self.limit
            waking = sick & (ratio > WAKING * self._state.ratios[0])
        self._state.ratios = np.vstack([self._state.ratios[1:], ratio])
        if not sick.any():
            return self._healthy
        badness = np.where(sick, -np.log10(np.maximum(np.nan_to_num(ratio), SMALLEST)), -1e9)
        return DetectorResult(sick, badness, report.grad_norm, self.limit * self._reference * root, mending=waking)

    def _ratios(self, rms: Floats, report: StepReport, after: NDArray[np.bool_]) -> Floats:
        """Return (P,) the gradient of each weight ÷ what it is compared with, which is kept; NaN where not judged.

        Args:
            rms: (P,) root mean square of each gradient.
            report: of the step.
            after: (P, P) whether the second tensor lies after the first.
        """
        raise NotImplementedError

    def _usual_norm(self, column: int) -> float:
        """Return the norm that the gradient of a weight would have if it were as large as what it is compared with."""
        return float(self._reference[column] * np.sqrt(self._layers.size[column]))
