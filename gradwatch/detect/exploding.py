"""``exploding``: a gradient norm that outgrows its layer's own history, or overflows while its entries are finite.

The rule works on log10 of the norms, so that the scale of loss and gradients plays no part. Each layer, and the total,
has a running level. The part of a norm above level + margin is evidence, in decades, and adds up from step to step
(Page's CUSUM, 1954).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.loss_evidence import LossEvidence
from gradwatch.detect.loss_level import LossLevel, loss_suffers, runs_away
from gradwatch.detect.wording import times
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Exploding"]

HORIZON = 30  # steps that a level remembers: long enough to be steady, short enough to follow a run that changes
MARGIN = np.log10(2.0)  # twice the level is within what healthy minibatches do
SPREADS = 3.0  # ... and so are three of the layer's own usual deviations
EVIDENCE = 3.0  # decades above the margin, summed over steps in a row: ×2,000 once, ×63 twice, ×20 thrice
EVIDENCE_ALONE = 8.0  # the same where no loss confirms that the run suffers; a healthy ViT leaves its plateau with 5
FIRST_STEPS = 10
NEGLIGIBLE = 0.1  # times the first total: without a loss, what is below has converged
OUTGROWN = 1e4  # times the largest of the first steps, three steps in a row: enough without a loss, however slowly
IN_A_ROW = 3
DISPLACED = 2.0  # times its own norm that an update moves a weight by; healthy first updates reach 1.9
LONGEST_PROVEN = 16  # steps for which the bound of ``may_wait`` holds
COME_DOWN = 0.5  # a loss that has halved since its peak has settled: a catapult at the edge of stability, one bad batch
LOST = 5.0  # times the largest of the first losses: more is lost than was ever learned; healthy transients reach 3
LASTING = 10  # steps near its peak for a loss below that: a weight that was scheduled up settles after three to seven
CAME_WITH_DATA = 0.5  # share of the change of the loss beyond the reach of the updates: the targets changed, not they
SINCE_DATA = 10.0  # times the total since then, below which it is the same explosion of the data
ASCENDED = 4.0  # times the loss at which the evidence began, below zero: a likelihood improves by less meanwhile
USUAL = 2.0  # deviations above its level, to which a loss on both sides of zero is as good as ever
BEYOND_DATA = 1e3  # times its first values, and the loss at which the evidence began: whoever made it rise, it suffers
WORSE = 0.5  # share by which the loss must have risen since the evidence began; after a change of task it only falls


@dataclass
class ExplodingState:
    """The state of ``Exploding`` across steps; arrays have an entry for each of P layers, and a last one for the total.

    Attributes:
        count: usable norms so far.
        level: running mean of log10 of the norm.
        spread: running mean of the distance from it, in decades.
        evidence: decades above the margin, added up.
        onset: the step at which the evidence began to gather.
        first_peak: the largest norm of the first ten steps.
        outgrown: steps in a row above ``OUTGROWN`` times that.
        first_total: the first total norm.
        first_logs: (10, P + 1) log10 of the first norms of each; rows from ``count`` on mean nothing.
        has_level: whether the level was taken from all of them.
        was_displaced: whether a measured update has moved a weight by more than twice its own norm.
        evidence_of_loss: what the loss can prove.
        loss: the level of the loss.
        loss_at_onset: the loss of the step at which the total's evidence began to gather.
        peak_since_onset: the largest finite loss since that step.
        came_at_once: whether the evidence of that step was enough.
        goes_on: whether the loss has risen further since then, or the evidence came at once.
        near_peak: steps since the loss has risen further at which it was above half of its peak.
        largest_before: the largest absolute value of the first losses before that step.
        total_of_data: the total norm at that step, if gradients and loss leapt together with the data; else 0.
    """

    VERSION: ClassVar[int] = 2

    count: NDArray[np.int64]
    level: Floats
    spread: Floats
    evidence: Floats
    onset: NDArray[np.int64]
    first_peak: Floats
    outgrown: NDArray[np.int64]
    first_logs: Floats
    has_level: bool = False
    was_displaced: bool = False
    first_total: float = 0.0
    evidence_of_loss: LossEvidence = field(default_factory=LossEvidence)
    loss: LossLevel = field(default_factory=LossLevel)
    loss_at_onset: float | None = None
    peak_since_onset: float = 0.0
    came_at_once: bool = False
    goes_on: bool = False
    near_peak: int = 0
    largest_before: float = 0.0
    total_of_data: float = 0.0

    @classmethod
    def of(cls, columns: int) -> ExplodingState:
        """Return a state that has seen nothing."""
        return cls(
            count=np.zeros(columns, dtype=np.int64),
            level=np.zeros(columns),
            spread=np.zeros(columns),
            evidence=np.zeros(columns),
            onset=np.zeros(columns, dtype=np.int64),
            first_peak=np.zeros(columns),
            outgrown=np.zeros(columns, dtype=np.int64),
            first_logs=np.zeros((FIRST_STEPS, columns)),
        )


class Exploding(Detector[ExplodingState]):
    """Growth of a layer's norm against its own level. ``value`` and ``threshold`` are that growth as a factor.

    By default a layer is sick above its margin once it has gathered ``EVIDENCE`` decades, while the total has evidence
    too and the loss, if observed, has risen: a run whose loss falls while its gradients grow is leaving a plateau.
    Where the evidence took several steps, the loss must have gone on rising: under a change of task both leap once. And
    it must have risen to five times its first values, or stay near its peak for ten steps: a weight of the loss that is
    scheduled up, or momentum at the end of a plateau, makes both leap, and the run settles. A rise that
    came with the data counts only if it is a thousandfold, from its first values and since the evidence began. A norm
    that overflows is sick at once. Where no loss is observed, more evidence is asked for, or that layer and total
    outgrow the largest of their first steps by 1e4. ``Thresholds.exploding_growth`` replaces all this by its literal
    meaning.
    """

    kind = "exploding"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        columns = len(layers) + 1  # the last one is the total
        super().__init__(ExplodingState.of(columns))
        self._layers = layers
        self._literal = thresholds.exploding_growth
        self.patience = thresholds.patience or 1
        self._norm, self._healthy = np.zeros(columns), healthy(len(layers))
        self._usual: Floats = np.zeros(0)  # what this step was compared with, for explain
        self._threshold: Floats = np.zeros(0)

    def examine(self, report: StepReport) -> DetectorResult | None:
        suffers = self._suffers(report)
        if not report.gradients_are_finite:
            return None  # no norm can be compared with a NaN; nonfinite takes over
        norm = self._norm
        norm[:-1], norm[-1] = report.grad_norm, report.grad_norm_total
        level, margin = self._state.level.copy(), self._margin()
        known = self._state.count[:-1] > 0
        deviation = self._learn(report.step, norm, margin, asks=suffers is None)[:-1]
        goes_on = self._goes_on(report)
        suffers = self._is_beyond_data(report.loss) if suffers is False else suffers
        self._take_level(suffers)
        self._note_displacement(report)
        overflow = np.isinf(report.grad_norm)
        if self._literal is None and not overflow.any() and not self._state.evidence.any():
            outgrown = self._outgrown(suffers)
            if not outgrown.any():
                return self._healthy
        growth = 10.0 ** np.clip(deviation, -300, 300)
        self._usual = np.where(known, 10 ** level[:-1], np.nan)
        threshold = 10 ** margin[:-1]
        if self._literal is not None:
            sick = growth > self._literal
            threshold = np.full(len(sick), float(self._literal))
        else:
            sick = self._has_evidence(suffers and goes_on and self._is_lost(report.loss), report) & (growth > threshold)
            outgrown = self._outgrown(suffers) & ~sick
            sick, threshold = sick | outgrown, np.where(outgrown, OUTGROWN, threshold)
            self._usual = np.where(outgrown, self._state.first_peak[:-1], self._usual)
            growth = np.divide(report.grad_norm, self._usual, out=growth, where=outgrown)
        self._threshold = threshold
        value = np.where(overflow, np.inf, growth)
        # a sick layer may have turned sick some steps ago; one that overflows without warning does so now
        gathering = self._state.evidence[:-1] > 0
        onset = np.where(gathering, self._state.onset[:-1], report.step)
        return DetectorResult(sick | overflow, np.where(np.isfinite(value), value, 1e300), value, threshold, onset)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow steps whose total gathers no evidence, wherever its level and margin have moved meanwhile.

        Bound: no layer is sick without evidence in the total, and none overflows under a finite total. The total
        gathers evidence above level + margin, where margin = max(MARGIN, SPREADS · spread). A norm that lies t margins
        from the level, cut to |t| ≤ 1, moves level + margin by (t + 3|t| − 1) · margin / 30 or by t · margin / 30,
        which is at least −margin / 30. The margin itself grows by at most a fifteenth in a step. So in w steps
        level + margin falls by at most ((16/15)^w − 1) / 2 first margins. Subtracted here are 1 − (29/30)^w + w/30 of
        them, which is more for every w up to ``LONGEST_PROVEN``.
        """
        ours = self._state
        has_settled = ours.has_level and ours.count[-1] >= HORIZON and ours.evidence[-1] <= 0
        if self._literal is not None or not has_settled or total <= 0 or waiting > LONGEST_PROVEN:
            return False
        if loss is None and total > OUTGROWN * ours.first_peak[-1]:
            return False
        margin = max(MARGIN, SPREADS * ours.spread[-1])
        kept = (1 - 1 / HORIZON) ** waiting
        return bool(math.log10(total) <= ours.level[-1] + (kept - waiting / HORIZON) * margin)

    def ceiling(self) -> Floats:
        """Return (P,) norms above which each layer outgrows its level; NaN where none was measured."""
        margin = self._margin() if self._literal is None else np.log10(self._literal)
        with np.errstate(over="ignore"):
            return np.where(self._state.count > 0, 10.0 ** (self._state.level + margin), np.nan)[:-1]

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        loss = "" if report.loss is None else f", and the loss is {report.loss:.4g}"
        count = len(self._layers)
        if np.isinf(report.grad_norm[column]) and np.isnan(self._usual[column]):  # no level that it could outgrow
            grown = f"The gradient norms of {len(covered)} of {count} layers overflow"
        elif count == 1:
            grown = "The gradient norm of the only layer outgrows its level"
        elif len(covered) == 1:
            grown = f"The gradient norm of 1 of {count} layers outgrows its level"
        else:
            grown = f"The gradient norms of {len(covered)} of {count} layers outgrow their level"
        return Evidence(self._measured(report, column), (f"{grown}{loss}.",))

    def _measured(self, report: StepReport, column: int) -> str:
        name, norm, usual = self._layers.names[column], report.grad_norm[column], self._usual[column]
        if np.isinf(norm):
            level = "" if np.isnan(usual) else f"; its level was {usual:.3g}"
            return (
                f"The gradient of {name} overflows its norm while its entries are still finite at step "
                f"{report.step}{level}."
            )
        return (
            f"The gradient norm of {name} is {norm:.3g} at step {report.step}, {times(norm, usual)} its level of "
            f"{usual:.3g} (normal: up to {self._threshold[column]:.3g} times)."
        )

    def _learn(self, step: int, norm: Floats, margin: Floats, *, asks: bool) -> Floats:
        """Return the decades of each norm above its level, 0 where there is none; then learn from the norm.

        Args:
            asks: whether it matters if norms outgrow their first steps, as it does where no loss is observed.
        """
        ours = self._state
        usable = np.isfinite(norm) & (norm > 0)
        log = np.log10(norm if usable.all() else np.where(usable, norm, 1.0))
        first = usable & (ours.count == 0)
        if first.any():
            ours.level[first] = log[first]
            if first[-1]:
                ours.first_total = float(norm[-1])
        deviation = np.where(usable, log - ours.level, 0.0)
        self._compare_with_first(norm, usable, asks=asks)
        if not ours.has_level:
            early = np.flatnonzero(usable & (ours.count < FIRST_STEPS))
            ours.first_logs[ours.count[early], early] = log[early]
        self._gather(step, usable, deviation - margin)
        rate = usable / np.minimum(ours.count + 1, HORIZON)
        taken = np.minimum(np.maximum(deviation, -margin), margin)  # a spike must not become the new normal
        ours.level += rate * taken
        ours.spread += rate * (np.abs(taken) - ours.spread)
        ours.count += usable
        return deviation

    def _take_level(self, suffers: bool | None) -> None:
        """Take level and spread from the first ten norms together, unless the run suffers just now.

        A level that was learned from one norm is none: the first batch may have held nothing to learn from. What has
        gathered against such a level is no evidence.
        """
        ours = self._state
        if ours.has_level or suffers or ours.count[-1] < FIRST_STEPS:
            return
        ours.has_level = True
        seen = ours.count > 0
        is_filled = np.arange(FIRST_STEPS)[:, None] < ours.count[seen]
        first = np.where(is_filled, ours.first_logs[:, seen], np.nan)
        ours.level[seen] = np.nanmedian(first, axis=0)
        ours.spread[seen] = np.nanmean(np.abs(first - ours.level[seen]), axis=0)
        ours.evidence[:] = 0.0

    def _note_displacement(self, report: StepReport) -> None:
        """Note whether an update moved a weight further than its own norm: growth that follows needs no level."""
        ratio = report.figures.get("update_ratio")
        if ratio is not None and report.sampled and not self._state.was_displaced:
            with np.errstate(invalid="ignore"):
                self._state.was_displaced = bool((ratio[self._layers.is_weight] > DISPLACED).any())

    def _gather(self, step: int, usable: NDArray[np.bool_], excess: Floats) -> None:
        evidence, onset = self._state.evidence, self._state.onset
        begins = usable & (evidence <= 0) & (excess > 0)
        if not begins.any() and not evidence.any():
            return
        onset[begins] = step
        evidence[:] = np.where(usable, np.maximum(0.0, evidence + excess), evidence)

    def _compare_with_first(self, norm: Floats, usable: NDArray[np.bool_], *, asks: bool) -> None:
        ours = self._state
        early = usable & (ours.count < FIRST_STEPS)
        if early.any():
            ours.first_peak[early] = np.maximum(ours.first_peak, norm)[early]
        if not asks:
            ours.outgrown[:] = 0
            return
        outgrows = usable & ~early & (norm > OUTGROWN * ours.first_peak)
        if outgrows.any() or ours.outgrown.any():
            ours.outgrown = np.where(outgrows, ours.outgrown + 1, np.where(usable, 0, ours.outgrown))

    def _suffers(self, report: StepReport) -> bool | None:
        """Return whether the loss suffers; None where there is none, or where its level measures nothing.

        A loss that runs away below zero suffers, too, because an error is ascended, unless the data made it so large.
        """
        ours = self._state
        reach = ours.evidence_of_loss.take_in(report)
        if report.loss is None:
            return None
        if ours.evidence[-1] <= 0:
            ours.largest_before = ours.loss.largest
        suffers = loss_suffers(ours.loss, report.loss, reach)
        if ours.evidence_of_loss.measures_progress:
            return suffers
        return suffers if runs_away(ours.loss, report.loss) and not self._is_of_data(report) else None

    def _is_of_data(self, report: StepReport) -> bool:
        """Return True if gradients and loss leapt together with the data, and the total has not grown on since."""
        return bool(report.grad_norm_total <= SINCE_DATA * self._state.total_of_data)

    def _is_beyond_data(self, loss: float | None) -> bool:
        """Return True if, while the evidence gathered, the loss has risen further than any change of the data.

        The updates need not have made such a rise: the loss itself may multiply, while the loop clips its gradients.
        """
        ours = self._state
        if loss is None or ours.loss_at_onset is None or ours.evidence[-1] <= 0:
            return False
        return loss > BEYOND_DATA * max(ours.loss.largest, abs(ours.loss_at_onset))

    def _margin(self) -> Floats:
        return np.maximum(MARGIN, SPREADS * self._state.spread)

    def _has_evidence(self, suffers: bool | None, report: StepReport) -> NDArray[np.bool_]:
        evidence, total = self._state.evidence, report.grad_norm_total
        level = self._state.loss
        is_usual = report.loss is not None and report.loss <= level.mean + USUAL * level.spread
        if suffers is None:
            is_large = total > NEGLIGIBLE * self._state.first_total
            enough = evidence[:-1] >= EVIDENCE_ALONE
            is_believed = (self._state.has_level or self._state.was_displaced) and not is_usual
            is_excused = self._has_settled(report.loss) or self._is_of_data(report)
            return enough & (evidence[-1] >= EVIDENCE) & (is_large and is_believed and not is_excused)
        return (evidence[:-1] >= EVIDENCE) & (evidence[-1] > 0) & suffers

    def _goes_on(self, report: StepReport) -> bool:
        """Return True if the evidence came at once, or the loss has risen further since the evidence began.

        A loss that has come down to half of its peak has settled.
        """
        ours, loss = self._state, report.loss
        if ours.onset[-1] == report.step:
            self._begin_evidence(report)
        elif loss is not None and ours.loss_at_onset is not None:
            before = ours.loss_at_onset
            has_risen = not loss - before <= WORSE * abs(before)
            ours.goes_on |= has_risen or (loss < 0 and loss < -ASCENDED * abs(before))
        if loss is None or not math.isfinite(loss):
            return bool(ours.goes_on)
        ours.peak_since_onset = max(ours.peak_since_onset, loss)
        has_come_down = 0 < loss < COME_DOWN * ours.peak_since_onset
        ours.near_peak += ours.goes_on and not has_come_down
        return bool(ours.goes_on) and not has_come_down

    def _begin_evidence(self, report: StepReport) -> None:
        """Note the loss at the step at which the total's evidence begins, and whether the data made both leap."""
        ours, level = self._state, self._state.loss
        ours.loss_at_onset, ours.peak_since_onset, ours.near_peak = report.loss, -math.inf, 0
        ours.came_at_once = bool((ours.evidence[:-1] >= EVIDENCE).any())
        ours.goes_on = report.loss is None or ours.came_at_once
        is_leap = report.loss is not None and abs(level.change) > USUAL * level.spread
        came_with_data = is_leap and abs(level.beyond) > CAME_WITH_DATA * abs(level.change)
        ours.total_of_data = report.grad_norm_total if came_with_data else 0.0

    def _has_settled(self, loss: float | None) -> bool:
        """Return True if the loss has come back from its peak by more than half of the way to its level."""
        ours = self._state
        if loss is None or not math.isfinite(loss) or ours.peak_since_onset <= ours.loss.mean:
            return False
        return loss - ours.loss.mean < COME_DOWN * (ours.peak_since_onset - ours.loss.mean)

    def _is_lost(self, loss: float | None) -> bool:
        """Return True if the loss has gone far beyond its first values since the evidence began, or stays at its peak.

        Below them a run has something left of what it had learned. It settles within some steps where a weight of the
        loss was scheduled up, or where momentum overshoots on the way out of a plateau.
        """
        ours = self._state
        if loss is None or not math.isfinite(loss) or ours.came_at_once or ours.near_peak >= LASTING:
            return True
        return max(ours.peak_since_onset, abs(loss)) > LOST * ours.largest_before

    def _outgrown(self, suffers: bool | None) -> NDArray[np.bool_]:
        lasting = self._state.outgrown >= IN_A_ROW
        return lasting[:-1] & lasting[-1] & (suffers is None)
