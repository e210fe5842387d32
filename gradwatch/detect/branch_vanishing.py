"""``vanishing`` in one branch, while a residual path keeps the rest of the model learning.

What is measured, at sampled updates. The gradient of a weight (root mean square) is compared with that of its
*siblings*: weights of the same type and shape whose names differ from its own in one index, and that lie in series
with it, before or after, on a path of the graph. So a block of a stack is compared with the other blocks.

Why no healthy run shows it. Layers beside each other (experts, towers, heads) may lack a gradient for good reasons; in
a stack the same layer of another block meets the same signal. Where all blocks begin at zero, or all have converged,
all are alike. Where one begins at zero among others, its gate gets a gradient, and the ratio rises: as long as it does,
nothing is raised. A block that was left out (stochastic depth, an expert that no token was sent to) has no gradient at
all, or gradients that are exactly zero in all of its tensors. It is not judged. Neither are frozen layers, which have
no gradient, nor layers whose place in the graph is not known.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import DetectorResult, Evidence
from gradwatch.detect.faint_branch import FaintBranch
from gradwatch.detect.wording import count_of, times
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["BranchVanishing", "families_of"]

BRANCH_RATIO = 1e-4  # of the median of the siblings; blocks of healthy stacks differ by less than 100 times
SIBLINGS = 2  # that have a gradient: one alone may be the odd one
INDEX = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")


class BranchVanishing(FaintBranch):
    """A weight whose gradient is far below that of the same weight in the other blocks of a stack.

    ``value`` is the L2 norm of the gradient, ``threshold`` the norm below which the weight is sick: 1e-4 of the median
    of its siblings, by root mean square. ``Thresholds.vanishing_norm`` replaces the rule.
    """

    limit = BRANCH_RATIO

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(layers, thresholds)
        self._families = families_of(layers, least=SIBLINGS + 1)
        self._blocks = np.array([_block(name) for name in layers.names])
        self._sequences = np.array([_sequence(name) for name in layers.names])

    def examine(self, report: StepReport) -> DetectorResult | None:
        return super().examine(report) if self._families else None

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, norm = self._layers.names[column], float(report.grad_norm[column])
        usual = self._usual_norm(column)
        less = "" if norm == 0 else f", {times(usual, norm)} less than it"
        measured = (
            f"The gradient norm of {name} is {norm:.3g} at step {report.step}{less}, while that of the same layer in "
            f"other blocks is {usual:.3g} (normal: up to {1 / BRANCH_RATIO:,.0f} times less)."
        )
        where = self._sequences[column] or self._blocks[column]
        cause = (
            f"Next to no gradient passes through {where}, while its siblings learn: a gate, a scale or a function in "
            f"this branch is shut for {count_of(len(covered), 'weight', 'weights')}."
        )
        return Evidence(measured, (cause,), ("one branch",))

    def _ratios(self, rms: Floats, report: StepReport, after: NDArray[np.bool_]) -> Floats:
        ratio, in_series = np.full(len(rms), np.nan), after | after.T
        for family in self._families:
            present = family[report.measured[family]]
            if len(present) <= SIBLINGS or rms[present].min() > BRANCH_RATIO * rms[present].max():
                continue  # nearly always: no member is faint beside the loudest, so none is beside the median
            for column in present:
                siblings = present[in_series[column, present] & (present != column)]
                median = float(np.median(rms[siblings])) if len(siblings) >= SIBLINGS else 0.0
                if median <= 0 or (rms[column] == 0 and not self._is_used(column, report, in_series)):
                    continue
                if not rms[column] / median >= ratio[column]:  # of two families, the one that it is faintest in
                    ratio[column], self._reference[column] = rms[column] / median, median
        return ratio

    def _is_used(self, column: int, report: StepReport, in_series: NDArray[np.bool_]) -> bool:
        """Return True if any other tensor of the block of this weight has a gradient that is not zero."""
        sequence = self._sequences[column]
        of_block = self._blocks == self._blocks[column]
        if sequence:  # of layers one after another; experts of one layer each have such names, too
            of_block |= (self._sequences == sequence) & in_series[column]
        return bool((report.grad_norm[of_block & report.measured] > 0).any())


def families_of(layers: Layers, least: int) -> list[NDArray[np.int64]]:
    """Return the columns of weights that are alike but for one index of their names, ``least`` or more at a time."""
    found: dict[tuple[object, ...], list[int]] = {}
    for column in np.flatnonzero(layers.is_weight).tolist():
        name = layers.names[column]
        for index in INDEX.finditer(name):
            pattern = f"{name[: index.start()]}*{name[index.end() :]}"
            shape = tuple(layers.tensors[column].shape)
            found.setdefault((pattern, layers.owners[column], shape), []).append(column)
    return [np.array(columns) for columns in found.values() if len(columns) >= least]


def _block(name: str) -> str:
    """Return the part of a name up to its last index: the block, or the expert, that the tensor belongs to."""
    indices = list(INDEX.finditer(name))
    return name[: indices[-1].end()] if indices else ""


def _sequence(name: str) -> str:
    """Return ``blocks.3`` of ``blocks.3.1.weight``, where the last index may be that of a layer in a sequence."""
    parts = name.split(".")
    is_layer_of_one = len(parts) > 2 and parts[-2].isdigit() and parts[-3].isdigit()
    return ".".join(parts[:-2]) if is_layer_of_one else ""
