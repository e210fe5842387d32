"""``stalled`` because weights and optimizer do not belong together.

A weight that has a gradient, is held by no optimizer of the process and has not moved may be left out on purpose: a
backbone under a linear probe, a loss network, a model around trained prompts. So this alone is no finding, and
``close`` says it in one line. It is a finding where something shows that nobody meant it:

- The optimizer holds tensors that are no parameters of the model and have no gradient, or the model has exchanged the
  tensor by that name: the optimizer was made of a copy, or before the model was changed.
- One weight matrix alone is left out, it is a small part of the model, and weights before it are trained: a forgotten
  head. A backbone lies before what is trained; loss networks and language models have more weights than one.
- All that is left out is as torch makes new layers, and lies before weights that are trained: an encoder that was to
  learn. A pretrained backbone has left the bounds within which its entries began, filters that are set by hand have
  others or repeat themselves, and the copy that a critic is compared with lies beside what is trained. Who wants random
  features and does not freeze them computes gradients for nothing, and reads it here.

An optimizer none of whose parameters ever gets a gradient changes nothing. It may have its turn later, while another
trains: beside others the loss must not have come down, either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.loss_progress import LossProgress
from gradwatch.detect.wording import count_of, names_of
from gradwatch.findings import Clue, Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, Ownership, StepReport

__all__ = ["Disconnected"]

LASTING = 90  # updates before anything is said: an optimizer for layers that are unfrozen may come later
LOOKS = 3  # looks in a row at which a weight had a gradient, no owner, and had not moved since the look before
SMALL = 0.25  # share of all entries with a gradient below which a weight left out was forgotten, not chosen
LEARNED = 0.05  # share by which the loss has come down where another optimizer trains


@dataclass
class DisconnectedState:
    """The state of ``Disconnected`` across steps.

    Attributes:
        unowned: (P,) looks in a row at which each layer belonged to nobody.
        was_reached: whether any update of this optimizer had a gradient; one of zeros is ``vanishing``.
        progress: how far the loss has come down.
    """

    VERSION: ClassVar[int] = 1

    unowned: NDArray[np.int64]
    was_reached: bool = False
    progress: LossProgress = field(default_factory=LossProgress)


class Disconnected(Detector[DisconnectedState]):
    """Weights that get gradients and belong to no optimizer, or an optimizer whose weights never get one.

    Ownership is looked up at a few updates of a run (``watcher/ownership_survey.py``); all others say nothing.
    ``value`` is how far the layer has moved, 0, and ``threshold`` is 0, too.
    ``Thresholds.stalled_update_ratio`` switches this rule off, because it replaces all of ``stalled``.
    ``Thresholds.patience`` does not apply: looks are few, and several of them have to agree already.
    """

    kind = "stalled"
    judges_samples_only = True  # all looks are
    patience = 1

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(DisconnectedState(np.zeros(len(layers), dtype=np.int64)))
        self._layers = layers
        self._is_off = thresholds.stalled_update_ratio is not None
        self._is_idle = False  # of the last result: the optimizer has never had a gradient

    def examine(self, report: StepReport) -> DetectorResult | None:
        ours, owners = self._state, report.ownership
        ours.progress.add(report.loss)
        ours.was_reached = ours.was_reached or bool(report.measured.any())
        if owners is None or self._is_off or report.emptied:
            return None
        ours.unowned = np.where(owners.unowned, ours.unowned + 1, 0)
        if report.update < LASTING:
            return None
        others_learn = owners.others > 0 and ours.progress.has_fallen(LEARNED)
        self._is_idle = not ours.was_reached and not others_learn
        unowned = ours.unowned >= LOOKS
        sick = unowned & self._was_not_meant(owners, unowned, report)
        if self._is_idle:
            sick |= unowned | owners.held
        if not sick.any():
            return healthy(len(sick))
        nothing = np.zeros(len(sick))
        return DetectorResult(sick, self._badness(), nothing, nothing)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        owners = report.ownership
        assert owners is not None, "a result comes only from a look"
        unowned = self._state.unowned >= LOOKS
        if not self._is_idle:
            cause_of_unowned = _why_unowned(owners, unowned)
            measured = self._measured_unowned(report, covered)
            return Evidence(measured, (cause_of_unowned,), ("not owned",), "no optimizer holds it")
        measured = (
            f"None of the {count_of(int(owners.held.sum()), 'parameter', 'parameters')} that this optimizer holds has "
            f"had a gradient in {count_of(report.update + 1, 'update', 'updates')}."
        )
        cause = [self._why_idle(owners)]
        if unowned.any():
            cause.append(
                f"Those that get gradients belong to no optimizer: {self._names(np.flatnonzero(unowned).tolist())}."
            )
        is_cut = not unowned.any() and self._is_reachable(owners)
        clues: tuple[Clue, ...] = ("not owned", "not reached") if is_cut else ("not owned",)
        return Evidence(measured, tuple(cause), clues, "this optimizer's parameters never have a gradient")

    def _was_not_meant(self, owners: Ownership, unowned: NDArray[np.bool_], report: StepReport) -> bool:
        if not unowned.any():
            return False
        was_swapped = owners.strangers > 0 or bool((owners.replaced & unowned).any())
        is_new = owners.unowned_are_new and self._lie_before_trained(unowned, report)
        return was_swapped or is_new or self._is_forgotten(unowned, report)

    def _lie_before_trained(self, unowned: NDArray[np.bool_], report: StepReport) -> bool:
        """Return True if on a path of the graph after each unowned weight there is a trained one."""
        after, is_weight = self._layers.after, self._layers.is_weight
        left, trained = unowned & is_weight, report.measured & is_weight
        return after is not None and bool(left.any() and after[left][:, trained].any(axis=1).all())

    def _is_forgotten(self, unowned: NDArray[np.bool_], report: StepReport) -> bool:
        """Return True if one weight alone is unowned, lies after a trained one, and is a small part of the model."""
        trained, forgotten = report.measured & self._layers.is_weight, unowned & self._layers.is_weight
        if not trained.any() or forgotten.sum() != 1:
            return False
        lies_after = report.depth[forgotten].min() > report.depth[trained].min()
        size = self._layers.size
        return bool(lies_after) and size[unowned].sum() < SMALL * size[unowned | report.measured].sum()

    def _badness(self) -> Floats:
        """Let a weight name the finding rather than a bias, and one without an owner rather than one that is held."""
        return 2.0 * (self._state.unowned >= LOOKS) + self._layers.is_weight

    def _measured_unowned(self, report: StepReport, covered: list[int]) -> str:
        others = count_of(len(covered), "layer has", "layers have")
        return (
            f"{others} a gradient but no optimizer, and no entry of them has changed up to step {report.step}: "
            f"{self._names(covered)}."
        )

    def _why_idle(self, owners: Ownership) -> str:
        if not (owners.held & ~owners.frozen).any():
            return "All of them are frozen (requires_grad is False)."
        if (owners.held & owners.replaced).any():
            return "The model no longer holds these tensors: it was changed after the optimizer was made."
        return "The loss does not depend on them: they are detached, copied, or left out of the forward pass."

    @staticmethod
    def _is_reachable(owners: Ownership) -> bool:
        """Return True if the model still holds all tensors of the optimizer, and not all of them are frozen."""
        return bool((owners.held & ~owners.frozen).any()) and not (owners.held & owners.replaced).any()

    def _names(self, columns: Iterable[int]) -> str:
        return names_of([self._layers.names[column] for column in columns])


def _why_unowned(owners: Ownership, unowned: NDArray[np.bool_]) -> str:
    if (owners.replaced & unowned).any():
        return "The model holds other tensors by these names than when watching began, and no optimizer was given them."
    if owners.strangers:
        held = count_of(owners.strangers, "tensor", "tensors")
        return (
            f"The optimizer holds {held} without a gradient that the model does not: it was made of a copy, or before "
            "the model was changed."
        )
    given = "No optimizer of this process was given them"
    return f"{given}, and they are as they were made." if owners.unowned_are_new else f"{given}."
