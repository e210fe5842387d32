"""``vanishing`` in branches that a residual path leads past: what lies before them and after them learns, they do not.

What is measured, at sampled updates: the gradient of a weight (root mean square), against the larger gradients of the
weights before it and of those after it, on a path of the graph, whichever of the two is smaller.

Why no healthy run shows it. A gradient that reaches weights before this one, but not this one, has gone past it. Where
branches begin at zero, or are scaled by 1e-6 to begin with, their gates learn, and the ratio rises within a few steps.
As long as it rises, nothing is raised. A weight whose gradient is exactly zero may have been left out (stochastic
depth) and is not judged. Neither is one of several layers beside each other, of which others learn (experts, of which
a router sends some no token), nor a layer that has nothing before it (an embedding) or nothing after it (a head).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.branch_vanishing import families_of
from gradwatch.detect.detector import Evidence
from gradwatch.detect.faint_branch import FaintBranch
from gradwatch.detect.wording import times
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Bypassed"]

BYPASSED = 1e-5  # of the weights before and after; a tenth of what fades along depth, because nothing else is faint
ALIVE = 1e-4  # of the same: a layer beside this one that learns; queries and keys fade to 1e-5 where values do not


class Bypassed(FaintBranch):
    """Weights that gradients lead past, on their way to the weights before them.

    ``value`` is the L2 norm of the gradient, ``threshold`` the norm below which the weight is sick: 1e-5 of the largest
    gradient of the weights before it, or of those after it, whichever is smaller, by root mean square.
    ``Thresholds.vanishing_norm`` replaces the rule.
    """

    limit = BYPASSED

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(layers, thresholds)
        self._families = families_of(layers, least=2)
        self._parents = np.array([name.rsplit(".", 2)[0] for name in layers.names])

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, norm = self._layers.names[column], float(report.grad_norm[column])
        usual = self._usual_norm(column)
        measured = (
            f"The gradient norm of {name} is {norm:.3g} at step {report.step}: per entry {times(usual, norm)} less "
            f"than those of weights before and after it (normal: up to {1 / BYPASSED:,.0f} times)."
        )
        cause = (
            "Gradients pass this branch on another path: layers before and after it learn, while a gate, a scale or a "
            "function in it is shut."
        )
        return Evidence(measured, (cause,), ("one branch",))

    def _ratios(self, rms: Floats, report: StepReport, after: NDArray[np.bool_]) -> Floats:
        ratio, judged = np.full(len(rms), np.nan), self._layers.is_weight & report.measured
        known = np.where(judged, rms, 0.0)
        faint = judged & (known > 0) & (known <= BYPASSED * known.max(initial=0.0))
        for column in np.flatnonzero(faint).tolist():
            reference = min(known[after[:, column]].max(initial=0.0), known[after[column]].max(initial=0.0))
            if reference > 0 and not self._has_living_twin(column, known, after, ALIVE * reference):
                ratio[column], self._reference[column] = known[column] / reference, reference
        return ratio

    def _has_living_twin(self, column: int, known: Floats, after: NDArray[np.bool_], alive: float) -> bool:
        """Return True if a weight like this one, which lies beside it, has a gradient of at least ``alive``."""
        in_series = after[column] | after[:, column]
        if (known[(self._parents == self._parents[column]) & ~in_series] >= alive).any():
            return True
        for family in self._families:
            if column in family:
                beside = family[~in_series[family] & (family != column)]
                if (known[beside] >= alive).any():
                    return True
        return False
