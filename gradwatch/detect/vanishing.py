"""``vanishing``: gradients that fade on their way from the output to the input, or that are gone altogether.

The rules have no scale: a gradient is compared with those of the layers between it and the output, or with the first
gradients of the whole model. Structural zeros do not count: a layer without a gradient (frozen, unused) is not
measured, and a single quiet layer in the middle (a bias before normalisation, an expert not routed to) does not block
those before it. Only layers on one path of the graph are compared: an actor and its critic, two towers or two heads lie
beside each other, and neither is deeper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.loss_evidence import LossEvidence
from gradwatch.detect.wording import times
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Vanishing"]

DEPTH_RATIO = 1e-4  # root mean square against the largest nearer the output; healthy nets of ours stay above 1e-3
IDLE_RATIO = 2e-3  # ... and below this is too little, too, in a run that has not begun to learn
FLAT_RATIO = 1e-2  # ... and this in one whose loss has not moved at all
FLAT = 1e-3  # share of its first value within which such a loss has stayed
BEGUN = 0.95  # share of its first value that the loss of a run that learns has come below
RISEN = 2.0  # times its first values: a loss that has doubled does not stand still, whatever else it does
CLIMBED = 1.1  # times its first values: so does one that once rose by a tenth, unless that is the noise of its batches
NOISES = 2.0  # mean changes of the loss: a mean of ten leaves its level by a fifth of one, so chance does not come here
IDLE_STEPS = 10  # steps before a run is called idle; with the patience it is found within 25
LOSSES = 10  # that the recent loss is a mean of
STIRRING = 1.25  # an idle run's ratio that rose by this much within the patience is on its way
GONE_RATIO = 1e-6  # total norm against the largest of the first steps
FIRST_STEPS = 10
CLIFF = 0.1  # gone from above this share of the first total within one update: nobody converges so
UNIMPROVED = 0.5  # share of its first value that the loss must still have for a model to have gone silent
SILENT = 90  # updates without any gradient under a loss of exactly 0: with the patience a hundred
UNLEARNED = 90  # updates after which a loss that stands where it began has learned nothing: with the patience a hundred
UNFINISHED = 1e-3  # ... where the gradient is exactly zero: no minimum is hit so exactly, but a satisfied hinge at 0
PATIENCE = 10  # steps: a zero-initialised branch wakes up within two or three
RECOVERING = 2.0  # a ratio that doubled within the patience is waking up: a zero-initialised head under a slow warm-up


@dataclass
class VanishingState:
    """The state of ``Vanishing`` across steps.

    Attributes:
        ratios: (patience − 1, P) the latest ratios of each sick layer, oldest first; NaN where there is none.
        has_ratios: whether any of them is a number.
        updates: updates so far.
        first_total: the largest total norm of the first ten.
        last_total: the latest total norm.
        was_reached: whether any total was above zero.
        fell: whether the total fell to nothing within one of the first ten updates.
        first_loss: the first loss.
        losses: finite losses so far.
        first_losses: mean of the first ten.
        recent_loss: running mean of about ten losses.
        evidence: what the loss can prove.
        has_learned: whether the recent loss has ever come down to half of the first ones.
        loss_change: the largest distance from the first loss, as a share of it.
        last_loss: the latest finite loss.
        way: the sum of the distances between each finite loss and the next.
        ways: how many these are.
        has_climbed: whether the recent loss has ever risen above the first ones by more than the noise of batches.
        has_zero_weight: whether a weight was zero in all its entries at the latest sample.
    """

    VERSION: ClassVar[int] = 3

    ratios: Floats
    has_ratios: bool = False
    updates: int = 0
    first_total: float = 0.0
    last_total: float = 0.0
    was_reached: bool = False
    fell: bool = False
    first_loss: float | None = None
    losses: int = 0
    first_losses: float = 0.0
    recent_loss: float = 0.0
    has_learned: bool = False
    loss_change: float = 0.0
    last_loss: float | None = None
    way: float = 0.0
    ways: int = 0
    has_climbed: bool = False
    has_zero_weight: bool = False
    evidence: LossEvidence = field(default_factory=LossEvidence)


class Vanishing(Detector[VanishingState]):
    """Layers whose gradient stays below a threshold; ``value`` and ``threshold`` are L2 norms of gradients.

    By default two things are sick. (1) The layers up to a depth before which every weight's gradient has a root mean
    square below 1e-4 of the largest after it. The limit is 2e-3 once 10 steps have not brought the loss down by a
    twentieth, and 1e-2 while the loss has not moved by a thousandth. (2) Every layer, where the total norm fell below
    1e-6 of its first value while the loss is still above half of its own, or where the total is exactly zero while the
    loss is above a thousandth. Where no loss is observed, (2) needs a total that was zero from the start, or one that
    fell so far in one of the first 10 updates. ``Thresholds.vanishing_norm`` replaces both by its literal meaning.
    """

    kind = "vanishing"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        self.patience = thresholds.patience or PATIENCE
        super().__init__(VanishingState(np.full((max(1, self.patience - 1), len(layers)), np.nan)))
        self._layers = layers
        self._literal = thresholds.vanishing_norm
        self._modules = np.array([name.rpartition(".")[0] for name in layers.names])
        self._gone = False
        self._deep: tuple[bytes, NDArray[np.bool_]] | None = None  # a question of ``_as_deep``, and its answer

    def examine(self, report: StepReport) -> DetectorResult | None:
        norm, mending = report.grad_norm.astype(float), None
        if not np.isfinite(report.grad_norm_total) or not report.measured.any():
            return None  # nothing is small beside a NaN, and everything is beside an overflow
        if self._literal is not None:
            threshold = np.full(len(norm), self._literal)
            with np.errstate(invalid="ignore"):
                sick = report.measured & (norm < self._literal)
        else:
            self._gone = self._is_gone(report)
            if self._gone:
                sick, threshold = report.measured, self._gone_threshold(norm)
            else:
                sick, threshold, mending = self._faded(report)
        if not sick.any():
            return healthy(len(sick))
        with np.errstate(divide="ignore", invalid="ignore"):
            badness = np.where(self._layers.is_weight, 0.0, -1e6) - np.log10(np.maximum(norm, 1e-300))
        return DetectorResult(sick, np.nan_to_num(badness, nan=-1e9), norm, threshold, mending=mending)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow fewer steps than the patience.

        Bound: no layer was sick at the last examined step, so a streak is at most as long as the steps that wait.
        """
        return waiting < self.patience

    def floor(self, report: StepReport) -> Floats:
        """Return (P,) norms below which each layer is faint; NaN where nothing nearer the output was measured."""
        if self._literal is not None:
            return np.full(len(self._layers), self._literal)
        judged = self._layers.is_weight & report.measured & np.isfinite(report.grad_norm)
        rms = np.where(judged, self._root_mean_square(report), 0.0)
        after = self._largest_after(rms, judged)
        return self._limit() * np.where(after > 0, after, np.nan) * np.sqrt(self._layers.size)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        if self._literal is not None:
            norm, name = float(report.grad_norm[column]), self._layers.names[column]
            measured = (
                f"The gradient norm of {name} is {norm:.3g} at step {report.step}, below the threshold of "
                f"{self._literal:g} that was set."
            )
            return Evidence(measured, ("The gradient norm is below the threshold that was set.",))
        if self._gone:
            reaches = "No gradient" if report.grad_norm_total == 0 else "Next to no gradient"
            cause = f"{reaches} reaches any layer: the output or the loss is flat."
            return Evidence(self._measured_when_gone(report), (cause,), ("no gradient",))
        weights = int(self._layers.is_weight[covered].sum())
        reached = {0: self._layers.names[column], 1: "the first weight"}.get(weights, f"the first {weights} weights")
        cause = f"Gradients shrink along depth: at step {report.step} they no longer reach {reached}."
        return Evidence(self._measured_when_faded(report, column), (cause,))

    def _measured_when_gone(self, report: StepReport) -> str:
        first, total = self._state.first_total, report.grad_norm_total
        if total == 0:
            found = f"The gradient of every layer is exactly zero at step {report.step}"
        else:
            found = f"The total gradient norm is {total:.3g} at step {report.step}"
        before = ", as it was in the first steps" if first == 0 else f", against {first:.3g} in the first steps"
        has_loss = report.loss is not None and self._state.first_loss is not None
        return f"{found}{before}{', and the loss has not improved' if has_loss else ''}."

    def _measured_when_faded(self, report: StepReport, column: int) -> str:
        name, norm, rms = self._layers.names[column], float(report.grad_norm[column]), self._root_mean_square(report)
        strongest = int(np.nanargmax(np.where(self._may_compare(column, report.measured), rms, np.nan)))
        if rms[strongest] <= rms[column]:
            strongest = int(np.nanargmax(rms))
        other = self._layers.names[strongest]
        if norm == 0:
            return (
                f"The gradient of {name} is exactly zero at step {report.step}, while that of {other} has norm "
                f"{float(report.grad_norm[strongest]):.2g}."
            )
        return (
            f"The gradient norm of {name} is {norm:.3g} at step {report.step}: per entry "
            f"{times(rms[strongest], rms[column])} less than that of {other} (normal: up to "
            f"{1 / self._limit():,.0f} times)."
        )

    def _may_compare(self, column: int, measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (P,) the weights that ``column`` is compared with: those after it; all where paths are not known."""
        judged = self._layers.is_weight & measured
        if (after := self._paths(judged)) is None or not (after[column] & judged).any():
            return self._layers.is_weight
        return after[column] & judged

    def _paths(self, judged: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Return (P, P), whether the second tensor lies after the first; None where a weight's place is not known."""
        layers = self._layers
        if layers.after is None or layers.is_placed is None or not layers.is_placed[judged].all():
            return None
        return layers.after

    def _largest_after(self, rms: Floats, judged: NDArray[np.bool_]) -> Floats:
        """Return (P,) the largest of the weights after each tensor; NaN where none is."""
        if (after := self._paths(judged)) is not None:
            has_any = after[:, judged].any(axis=1)
            return np.where(has_any, np.where(after[:, judged], rms[judged], 0.0).max(axis=1, initial=0.0), np.nan)
        order, largest = self._layers.order, np.full(len(rms), np.nan)
        largest[order[:-1]] = np.maximum.accumulate(rms[order][::-1])[::-1][1:]
        return largest

    def _faded(self, report: StepReport) -> tuple[NDArray[np.bool_], Floats, NDArray[np.bool_]]:
        """Return (sick, threshold, mending) of rule 1: the longest stretch from the input of faint weights alone."""
        rms = self._root_mean_square(report)
        limit = self._limit()
        judged = self._layers.is_weight & report.measured
        after = self._paths(judged)
        if (loudest := self._loudest_where_dead(rms, report.measured)) is not None:
            sick, strongest = self._before_the_last(judged), np.full(len(rms), loudest)
        elif after is None:
            sick, strongest = self._faded_in_order(rms, judged, limit)
        else:
            sick, strongest = self._faded_along_paths(rms, judged, after, limit)
        sick = sick & report.measured & (rms < limit * strongest)
        if (sick & judged & (rms == 0)).any():
            sick &= ~self._cut_off(sick & judged & (rms == 0), judged & ~sick & (rms > 0), judged)
        if not sick.any() and not self._state.has_ratios:
            return sick, rms, sick
        mending = self._recovers(rms / strongest, sick, report.measured)
        return sick, limit * strongest * np.sqrt(self._layers.size), mending

    def _cut_off(
        self, zero: NDArray[np.bool_], loud: NDArray[np.bool_], judged: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return (P,) which weights of ``zero`` have a loud one in their own module: what they do is not used.

        Gradients reach such a module. An example is the recurrent weight of a direction that is read at its first step.
        The weight that takes what the module is given is one of them only where the run learns: a decoder that is fed
        with zeros does. In a run that learns nothing, what is given is what should be used.
        """
        has_module = self._modules != ""
        unused = zero & has_module & np.isin(self._modules, self._modules[loud])
        return unused & ~self._takes_input(judged) if self._has_stood_still() else unused

    def _takes_input(self, judged: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return (P,) which weights come first in their module."""
        order = self._layers.order
        weights = order[judged[order]]
        first = weights[np.unique(self._modules[weights], return_index=True)[1]]
        return np.isin(np.arange(len(judged)), first)

    def _has_stood_still(self) -> bool:
        """Return True if a hundred updates have not brought the loss down by a twentieth, or by no more than its noise.

        ``_is_idle`` asks sooner, and takes noise for a fall: the first of its means is the larger of two.
        """
        ours = self._state
        if ours.updates <= UNLEARNED or ours.losses < LOSSES or ours.first_losses <= 0 or ours.has_climbed:
            return False
        fall = max((1 - BEGUN) * ours.first_losses, ours.way / max(ours.ways, 1))
        still = ours.first_losses - fall < ours.recent_loss <= RISEN * ours.first_losses
        return still and not ours.has_learned and ours.evidence.measures_progress

    def _loudest_where_dead(self, rms: Floats, measured: NDArray[np.bool_]) -> float | None:
        """Return the largest of the vectors where it is all that is reached: every unit is dead but the last ones."""
        is_weight = self._layers.is_weight
        weights, vectors = is_weight & measured, ~is_weight & measured
        if not weights.any() or not vectors.any():
            return None
        loudest = float(rms[vectors].max())
        return loudest if rms[weights].max() < GONE_RATIO * loudest else None

    def _before_the_last(self, weights: NDArray[np.bool_]) -> NDArray[np.bool_]:
        depth = self._layers.depth
        return depth <= depth[weights].max()

    def _faded_in_order(self, rms: Floats, judged: NDArray[np.bool_], limit: float) -> tuple[NDArray[np.bool_], Floats]:
        """Return (what lies up to the last weight up to which all are faint, (P,) the largest after it)."""
        depth, order = self._layers.depth, self._layers.order
        weights = order[judged[order]]
        before = np.maximum.accumulate(rms[weights])[:-1]
        after = np.maximum.accumulate(rms[weights][::-1])[::-1][1:]
        faint = np.flatnonzero(before < limit * after)
        if not len(faint):
            return np.zeros(len(rms), dtype=bool), np.ones(len(rms))
        return depth <= depth[weights[faint[-1]]], np.full(len(rms), after[faint[-1]])

    def _faded_along_paths(
        self, rms: Floats, judged: NDArray[np.bool_], after: NDArray[np.bool_], limit: float
    ) -> tuple[NDArray[np.bool_], Floats]:
        """Return (what is faint with all that lies as deep, (P,) the largest of the weights after it).

        As deep as a weight, or deeper, is whatever has a weight after it in common with it and does not itself lie
        after it. A branch that is faint beside one that is not leaves the layers before it their gradients.
        """
        sick, strongest = np.zeros(len(rms), dtype=bool), np.ones(len(rms))
        columns = np.flatnonzero(judged & (rms < limit * rms[judged].max(initial=0.0)))
        if not len(columns):
            return sick, strongest
        nearer, as_deep = after[columns] & judged, self._as_deep(columns, judged, after)
        largest = np.where(nearer, rms, 0.0).max(axis=1)
        beside = np.where(as_deep & judged & ~nearer, rms, 0.0).max(axis=1)
        for row in np.flatnonzero((rms[columns] < limit * largest) & (beside < limit * largest)):
            covered = as_deep[row] & ~nearer[row] & ~sick
            covered[columns[row]] = True
            sick |= covered
            strongest[covered] = largest[row]
        return sick, strongest

    def _as_deep(
        self, columns: NDArray[np.intp], judged: NDArray[np.bool_], after: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return (C, P), whether each tensor lies as deep as the column.

        The answer is kept, because a sick run asks at every step.
        """
        question = columns.tobytes() + judged.tobytes()
        if self._deep is None or self._deep[0] != question:
            nearer = (after[columns] & judged).astype(np.float32)
            have_common = nearer @ after.T.astype(np.float32) > 0
            self._deep = question, have_common & (~after[columns] | after[:, columns].T)
        return self._deep[1]

    def _recovers(self, ratio: Floats, sick: NDArray[np.bool_], measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
        ratios = self._state.ratios
        if not sick.any() and not self._state.has_ratios:
            return sick
        self._state.has_ratios = bool(sick.any())  # a layer that is not measured meanwhile keeps its own a step longer
        recovers = sick & (ratio > np.where(ratio < DEPTH_RATIO, RECOVERING, STIRRING) * ratios[0])
        ratios[:, measured & ~sick] = np.nan  # a layer without a gradient at this step is neither sick nor healthy
        ratios[:, sick] = np.vstack([ratios[1:, sick], ratio[sick]])
        self._state.has_ratios = not np.isnan(ratios).all()
        return recovers

    def _limit(self) -> float:
        """Return the share of the largest that is too little: more where the run has not begun to learn."""
        if not self._is_idle() or self._state.updates <= IDLE_STEPS:
            return DEPTH_RATIO
        return FLAT_RATIO if self._state.loss_change <= FLAT else IDLE_RATIO

    def _is_idle(self) -> bool:
        """Return True if the loss stands where it began: neither has it come down, nor has it risen by far.

        A loss that was half as large at some time has come back because its targets have moved: the run has learned.
        One that has climbed (the errors of a critic grow with the returns of an actor that learns) measures the task,
        not the progress, and where it stands later tells nothing.
        """
        ours = self._state
        if ours.first_loss is None or ours.first_loss <= 0 or not ours.evidence.measures_progress:
            return False
        begun = max(ours.first_loss, ours.first_losses)  # the first batch may have been an easy one
        if ours.losses >= LOSSES:
            noise = ours.way / max(ours.ways, 1)
            ours.has_learned |= ours.recent_loss < UNIMPROVED * begun
            ours.has_climbed |= ours.recent_loss > max(CLIMBED * begun, begun + NOISES * noise)
        stands = BEGUN * begun < ours.recent_loss <= RISEN * begun
        return stands and not ours.has_learned and not ours.has_climbed

    def _follow_loss(self, loss: float | None) -> None:
        ours = self._state
        ours.evidence.note_sign(loss)
        if loss is None:
            return
        if math.isfinite(loss) and ours.losses < LOSSES:
            ours.losses += 1
            ours.first_losses += (loss - ours.first_losses) / ours.losses
        if math.isfinite(loss):
            if ours.last_loss is not None:
                ours.way, ours.ways = ours.way + abs(loss - ours.last_loss), ours.ways + 1
            ours.last_loss = loss
        if ours.first_loss is None:
            ours.first_loss = ours.recent_loss = loss
        elif math.isfinite(loss):
            ours.recent_loss += (loss - ours.recent_loss) / LOSSES
            change = abs(loss - ours.first_loss) / (abs(ours.first_loss) or 1.0)
            ours.loss_change = max(ours.loss_change, change)

    def _follow_total(self, total: float) -> bool:
        """Take in the total gradient norm of a step, and return whether it is faint against the first ones."""
        ours = self._state
        if ours.updates < FIRST_STEPS:
            ours.first_total = max(ours.first_total, total)
        ours.updates += 1
        ours.was_reached = ours.was_reached or total > 0
        faint = total <= GONE_RATIO * ours.first_total
        if ours.updates <= FIRST_STEPS and faint and ours.last_total > CLIFF * ours.first_total:
            ours.fell = True
        ours.last_total = total
        return faint

    def _is_gone(self, report: StepReport) -> bool:
        ours = self._state
        faint = self._follow_total(report.grad_norm_total)
        self._follow_loss(report.loss)
        self._note_zeros(report)
        if report.loss is None or ours.first_loss is None or not ours.evidence.measures_progress:
            return faint and (ours.first_total == 0 or ours.fell)
        if report.loss == ours.first_loss == 0 and not ours.was_reached:
            return self._is_silent()
        share = UNIMPROVED if report.grad_norm_total > 0 else UNFINISHED
        return faint and report.loss > share * ours.first_loss > 0

    def _is_silent(self) -> bool:
        """Return True if a loss of exactly 0 has left the whole run without gradient, as a softmax over one class does.

        A hinge that is satisfied had to learn it. A head of zeros may be right about 0, until the first reward.
        """
        return self._state.updates > SILENT and not self._state.has_zero_weight

    def _note_zeros(self, report: StepReport) -> None:
        """Note whether a weight is zero in all its entries."""
        sizes = report.figures.get("weight_norm")
        if report.sampled and sizes is not None:
            self._state.has_zero_weight = bool((sizes[self._layers.is_weight] == 0).any())

    def _gone_threshold(self, norm: Floats) -> Floats:
        return np.full(len(norm), GONE_RATIO * self._state.first_total)

    def _root_mean_square(self, report: StepReport) -> Floats:
        return report.grad_norm / np.sqrt(np.maximum(self._layers.size, 1))
