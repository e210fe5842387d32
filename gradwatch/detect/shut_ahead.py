"""``vanishing`` of all layers of an optimizer, because what comes after them, before the loss, has become flat.

The disease is that of the minimax game (Goodfellow et al. 2014, section 3; Arjovsky and Bottou 2017): a discriminator
that is sure of itself, log(1 − σ(D(x))) near 0 for every sample, leaves its generator no gradient.

What is measured: the share of entries at which the functions between the loss and the last layer before it are flat,
where that layer is not the optimizer's own; the gradients against the largest of the first ten updates; the loss
against its beginning.

Why no healthy run shows it. Flat functions alone are no sickness: a loss like −log σ(x) is steep where σ(x) is flat,
and the gradient stays. A gradient that has faded a hundredfold is none: the run has converged. So the loss must not
have come down either. A critic without a function at its end (Wasserstein, hinge) has nothing that could be flat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.loss_progress import BEGINNING, LossProgress
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["ShutAhead"]

SHARE = 0.8  # of the entries, as for saturated layers
FADED = 1e-2  # of the largest gradient of the first ten updates
FALLEN = 0.1  # share of its beginning by which a loss has come down
PATIENCE = 3  # samples


@dataclass
class ShutAheadState:
    """The state of ``ShutAhead`` across steps.

    Attributes:
        largest: (P,) the largest norm of each gradient at the first ten updates.
        updates: so far.
        progress: of the loss.
    """

    VERSION: ClassVar[int] = 1

    largest: Floats
    updates: int = 0
    progress: LossProgress = field(default_factory=LossProgress)


class ShutAhead(Detector[ShutAheadState]):
    """Layers whose gradients have faded, while the functions between later layers and the loss are flat.

    ``value`` is the L2 norm of the gradient, ``threshold`` a hundredth of the largest at first.
    ``Thresholds.vanishing_norm`` replaces the rule.
    """

    kind = "vanishing"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(ShutAheadState(np.zeros(len(layers))))
        self._layers = layers
        self._is_replaced = thresholds.vanishing_norm is not None
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        ours = self._state
        ours.progress.add(report.loss)
        if ours.updates < BEGINNING and report.is_finite:
            ours.largest = np.fmax(ours.largest, report.grad_norm)
        ours.updates += 1
        if self._is_replaced or not report.is_finite or ours.updates <= BEGINNING:
            return None
        share = _flat_share(report)
        if share is None:
            return None
        if share < SHARE or ours.progress.has_fallen(FALLEN):
            return healthy(len(self._layers))
        limit = FADED * ours.largest
        sick = report.measured & (report.grad_norm <= limit) & (ours.largest > 0)
        sick &= bool((sick & self._layers.is_weight).any())
        return DetectorResult(sick, self._layers.is_weight - 1e-6 * self._layers.depth, report.grad_norm, limit)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        last = int(np.nanargmax(report.figures["shut_ahead"]))
        share = float(report.figures["shut_ahead"][last])
        name, after = self._layers.names[column], self._layers.names[int(report.figures["shut_after"][last])]
        largest, norm = self._state.largest[column], report.grad_norm[column]
        measured = (
            f"The gradient of {name} has norm {norm:.2g} at step {report.step}; it was up to {largest:.2g} at the "
            f"first {BEGINNING} updates (normal, while the loss has not come down: above a hundredth of that)."
        )
        cause = (
            f"Its loss is computed by layers that this optimizer does not update, and after {after} it is flat for "
            f"{share:.0%} of the entries, so hardly any gradient passes."
        )
        return Evidence(measured, (cause,), ("shut by others",))


def _flat_share(report: StepReport) -> float | None:
    """Return the share of flat entries between other layers and the loss; None where no sample shows it."""
    shut = report.figures.get("shut_ahead")
    if not report.sampled or shut is None or np.isnan(shut).all():
        return None
    return float(np.nanmax(shut))
