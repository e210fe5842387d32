"""``stalled``: a run that stays where it began, although gradients arrive.

How far a layer moves is ‖Δw‖/‖w‖ at sampled updates. A layer whose weights were all zero at its first sample does not
count beside others: while it grows out of nothing, this ratio is large however small the update is.

Three things are unlike in what proves them. Weights that *never* moved need no further proof. A run that moves too
little to learn, or that came to rest early, is sick only if its loss has not come down: fine-tuning moves little, too,
and a run at the end of its schedule rests. ``detect/unmoved.py`` judges single layers among others that move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, whole_run
from gradwatch.detect.loss_progress import BEGINNING, LossProgress
from gradwatch.detect.wording import count_of
from gradwatch.findings import Clue, Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport
from gradwatch.measure.samples import SAMPLED_ENTRIES

__all__ = ["Stalled"]

RESOLUTION = 2.0**-24  # half of float32's spacing: an update this small against its weight is rounded away
FLAT = 1e-3  # share of its first value within which the loss has stayed all the time
FLAT_STEPS = 100  # ... for so many steps: minibatch noise alone is wider than this after a few
SAMPLES = 10  # samples of the weights in a row, taken at steps 0, 1, 2, 4, 8 and every tenth: a warm-up may begin at 0
CRAWL = 1e-6  # a hundred such updates move a weight by less than a ten-thousandth; healthy ones are near 1e-3
LASTING = 100  # updates that a run must rest or crawl: a cyclic rate is 0 for one of them
FALLEN = 0.05  # share of its beginning by which the loss of a run at rest has come down, if it has learned
FALLING = 0.01  # ... and that of a run that may move a little: slow is not stalled
ELSEWHERE = 0.25  # share by which it has come down if another optimizer trains while the rate of this one is 0
CLIPPED_AWAY = 1e-4  # clipping that leaves less than this of the gradient is no guard against spikes
BARELY = 10.0  # times what crawls: as far as a layer may move where clipping is seen to be the reason
MOSTLY = 0.1  # of what a format resolves: such an update is lost in all but the smallest entries
ADAM_EPSILON = 1e-8  # what is left per entry below this loses its effect even in optimizers that divide by its size

Rule = Literal["never", "flat", "rests", "crawls"]


@dataclass
class StalledState:
    """The state of ``Stalled`` across steps.

    Attributes:
        weights_moved: whether any sampled update moved a layer by more than rounding.
        loss_moved: whether the loss has left the thousandth around its first value.
        first_loss: the first finite loss.
        losses: finite losses so far.
        change: the largest distance from the first loss, as a share of it.
        progress: how far the loss has come down.
        was_seen: (P,) bool, whether the layer was sampled yet.
        began_at_zero: (P,) bool, whether its weights were all zero then.
        fastest_ratio: the largest ratio so far.
        fastest: the largest ratio so far as a share of what its layer must exceed not to crawl.
        was_clipped_away: whether clipping has left next to nothing of the gradient at every sample.
        rests_since: the update and the step of the first sample at rest; None where the last sample moved.
    """

    VERSION: ClassVar[int] = 2

    was_seen: NDArray[np.bool_]
    began_at_zero: NDArray[np.bool_]
    weights_moved: bool = False
    loss_moved: bool = False
    first_loss: float | None = None
    losses: int = 0
    change: float = 0.0
    progress: LossProgress = field(default_factory=LossProgress)
    fastest_ratio: float = 0.0
    fastest: float = 0.0
    was_clipped_away: bool = True
    rests_since: tuple[int, int] | None = None


class Stalled(Detector[StalledState]):
    """A run that stays where it began, although gradients arrive.

    A run is sick in four cases.

    1. *Never moved*: no sampled update has moved any layer by more than rounding. No healthy run shows it for fifty
       updates. Another optimizer may train meanwhile: at a rate of exactly 0 the loss must not have come down by a
       quarter.
    2. *Flat*: its loss has stayed within 1e-3 of its first value for 100 steps.
    3. *Rests*: no update has moved anything for 100 updates, and for longer than it moved before, while the loss has
       not come down by a twentieth since the beginning. A run at the end of its schedule has learned, or has trained
       for longer than it rests; a rate that touches 0 rises again.
    4. *Crawls*: in at least 100 updates none has moved a layer by more than a millionth of its norm, and the loss has
       not come down by a twentieth; or by more than half of the spacing of its number format, or clipping has left next
       to nothing of every gradient, and the loss has not come down by a hundredth. A run that fine-tunes slowly brings
       its loss down; a warm-up exceeds a millionth within its first steps. *Next to nothing* is less than 1e-4 of the
       gradient that moves no layer by more than 1e-5, or is lost beside Adam's ε: Adam alone moves as far as before.

    The first thing that moves ends the watch of 1, 2 and 4. Without a loss 3 and 4 are not judged. ``value`` is the
    largest update ratio ‖Δw‖/‖w‖ of any layer, ``threshold`` what it should exceed; under (2) both are shares of the
    first loss. ``Thresholds.stalled_update_ratio`` replaces the rules by its literal meaning, at any time of the run.
    """

    kind = "stalled"
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        count = len(layers)
        super().__init__(StalledState(np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)))
        self._layers = layers
        is_embedding = np.array(["Embedding" in owner for owner in layers.owners], dtype=bool)
        self._has_rows = is_embedding & (layers.size > SAMPLED_ENTRIES)
        self._literal = thresholds.stalled_update_ratio
        self.patience = thresholds.patience or SAMPLES
        # of the last result, for its words: the rule, and the layer that moved farthest against its limit
        self._rule: Rule = "never"
        self._column, self._ratio, self._limit = 0, 0.0, RESOLUTION

    def examine(self, report: StepReport) -> DetectorResult | None:
        self._follow_loss(report.loss)
        ratios = self._known_ratios(report)
        if ratios is None:
            return None
        if self._literal is not None:
            self._ratio = float(np.nanmax(ratios))
            return whole_run(self._ratio < self._literal, self._ratio, self._literal)
        column = self._follow_weights(report, self._judged(report, ratios))
        ratio = float(ratios[column])
        self._column, self._ratio = column, ratio
        gradients_arrive = report.grad_norm_total > 0  # without gradients the run is vanishing, not stalled
        rule, lasts = self._rule_of(report)
        if rule is None or not gradients_arrive:
            return whole_run(False, ratio, RESOLUTION)
        self._rule = rule
        if rule == "flat":
            return whole_run(True, self._state.change, FLAT)
        self._limit = float((self._slow if rule == "crawls" else self._still)[column])
        if rule == "crawls" and self._state.was_clipped_away:
            self._limit *= BARELY
        result = whole_run(True, ratio, self._limit)
        return result if lasts else replace(result, mending=np.array([True]))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        ratio = self._ratio
        if self._literal is not None:
            measured = _measured_ratio(report, ratio, self._literal)
            return Evidence(measured, (self._arrival(report, ratio),))
        if self._rule == "rests":
            return self._explain_rest(report)
        if self._rule == "flat":
            measured = (
                f"In {self._state.losses} steps the loss has moved by at most {self._state.change:.2g} of its first "
                f"value, {self._state.first_loss:.6g} (a run that learns moves by more than {FLAT:g} of it)."
            )
        else:
            measured = _measured_ratio(report, ratio, self._limit)
        reason, clues = self._reason(report)
        return Evidence(measured, (self._arrival(report, ratio), *reason), clues)

    def _explain_rest(self, report: StepReport) -> Evidence:
        ours = self._state
        update, step = ours.rests_since or (report.update, report.step)
        still = report.update - update
        measured = (
            f"No update has moved any layer for {count_of(still, 'update', 'updates')}, since step {step}, and the "
            f"loss is {ours.progress.recent:.4g} where it began at {ours.progress.beginning:.4g}."
        )
        if report.learning_rate == 0:
            over = f"The learning rate has been 0 since step {step}: its schedule was over before the loss came down."
            return Evidence(measured, (over,), ("rate zero",))
        reason, clues = self._reason(report)
        return Evidence(measured, (self._arrival(report, 0.0), *reason), clues)

    def _arrival(self, report: StepReport, ratio: float) -> str:
        moves = (
            f"an update moves no layer by more than {ratio:.3g} of its norm" if ratio else "no update moves any layer"
        )
        return f"Gradients arrive (total norm {report.grad_norm_total:.3g}), but {moves}."

    def _reason(self, report: StepReport) -> tuple[tuple[str, ...], tuple[Clue, ...]]:
        """Return (sentences, clues) that say why updates are this small, where the figures tell."""
        if report.learning_rate == 0:
            return (), ("rate zero",)  # the background says what the rate is
        if self._is_clipped_away(report) or self._is_lost_by_clipping(report):
            share, left = report.grad_norm_clipped_total / report.grad_norm_total, self._left_per_entry(report)
            words = f"Clipping leaves {share:.2g} of the gradient, {left:.2g} per entry"
            if left < ADAM_EPSILON:
                words += f": less than the {ADAM_EPSILON:g} that Adam adds to what it divides by"
            return (f"{words}.",), ("clipped away",)
        worst = self._column
        if self._layers.resolution[worst] > RESOLUTION and (self._rule != "flat" or self._rounds_most_away()):
            return (
                f"Weights in {self._layers.format_of(worst)} round away what is less than "
                f"{self._layers.resolution[worst]:.2g} of an entry.",
            ), ("rounded away",)
        return (), ()

    def _rounds_most_away(self) -> bool:
        """Return True if the update that moved a layer farthest lies far below what its format resolves."""
        return self._ratio < MOSTLY * self._layers.resolution[self._column]

    def _is_clipped_away(self, report: StepReport) -> bool:
        """Return True if clipping leaves next to nothing, as far as the run has shown until now."""
        if report.grad_norm_clipped_total >= CLIPPED_AWAY * report.grad_norm_total:
            return False
        if self._left_per_entry(report) < ADAM_EPSILON:
            return True
        return 0 < self._state.fastest <= BARELY  # what has not moved at all may have another reason

    def _is_lost_by_clipping(self, report: StepReport) -> bool:
        """Return True if plain descent by what clipping leaves moves no layer, and by the whole gradient would.

        This is asked where nothing has moved yet. Layers that began at zero are left out, as they are elsewhere.
        """
        norms, rate, ours = report.figures.get("weight_norm"), report.learning_rate, self._state
        if norms is None or not rate or ours.fastest_ratio > RESOLUTION or not report.grad_norm_total > 0:
            return False
        share = report.grad_norm_clipped_total / report.grad_norm_total
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            moves = np.where(ours.began_at_zero, np.nan, rate * report.grad_norm / norms)
        known = moves[np.isfinite(moves)]
        return bool(
            share < CLIPPED_AWAY and len(known) and known.max() * share <= RESOLUTION and known.max() > BARELY * CRAWL
        )

    def _left_per_entry(self, report: StepReport) -> float:
        """Return the root mean square of the gradient's entries after clipping."""
        return report.grad_norm_clipped_total / math.sqrt(float(report.size[report.measured].sum()) or 1.0)

    def _rule_of(self, report: StepReport) -> tuple[Rule | None, bool]:
        """Return (the rule that this sample breaks, whether it was broken for long enough to be raised)."""
        ours, progress = self._state, self._state.progress
        if self._loss_is_flat():
            return "flat", True
        if not ours.weights_moved:
            return self._rule_of_unmoved(report)
        if ours.rests_since is not None and not progress.has_fallen(FALLEN):
            still = report.update - ours.rests_since[0]
            return "rests", still >= LASTING and still >= ours.rests_since[0]
        if self._crawls():
            return "crawls", report.update >= LASTING
        return None, False

    def _rule_of_unmoved(self, report: StepReport) -> tuple[Rule | None, bool]:
        progress = self._state.progress
        if report.learning_rate != 0 or progress.count == 0:
            return "never", True
        if progress.count <= BEGINNING:
            return "never", False  # a few losses do not show whether another optimizer trains
        return (None, False) if progress.has_fallen(ELSEWHERE) else ("never", True)

    def _crawls(self) -> bool:
        """Return True if nothing has moved by much yet and the loss has not come down."""
        ours = self._state
        if ours.fastest_ratio <= CRAWL:
            return not ours.progress.has_fallen(FALLEN, at_once=False)
        return (ours.fastest <= 1 or ours.was_clipped_away) and not ours.progress.has_fallen(FALLING, at_once=False)

    def _known_ratios(self, report: StepReport) -> Floats | None:
        """Return how far a sampled update moved the layers; None where nobody knows, or none was made.

        A large embedding whose sampled rows have not moved is not known: its batch may have met others.
        """
        ratios = report.figures.get("update_ratio")
        if ratios is None or not report.sampled or report.skipped:
            return None
        if report.learning_rate != 0:
            ratios = np.where(self._has_rows & (ratios == 0), np.nan, ratios)
        return None if np.isnan(ratios).all() else ratios

    def _judged(self, report: StepReport, ratios: Floats) -> Floats:
        """Return ``ratios`` without the layers that began at zero, unless all of them did."""
        norms, ours = report.figures.get("weight_norm"), self._state
        if norms is None:
            return ratios
        new = ~np.isnan(norms) & ~ours.was_seen
        ours.began_at_zero |= new & (norms == 0)
        ours.was_seen |= new
        judged = np.where(ours.began_at_zero, np.nan, ratios)
        return ratios if np.isnan(judged).all() else judged

    def _follow_weights(self, report: StepReport, ratios: Floats) -> int:
        """Take in how far the layers moved; return the column of the one that moved farthest against its limit."""
        ours = self._state
        shares = ratios / self._slow
        column = int(np.nanargmax(shares))
        ours.fastest_ratio = max(ours.fastest_ratio, float(np.nanmax(ratios)))
        ours.fastest = max(ours.fastest, float(shares[column]))
        ours.was_clipped_away &= self._is_clipped_away(report)
        moves = bool((ratios > self._still).any())
        ours.weights_moved |= moves
        if moves:
            ours.rests_since = None
        elif ours.rests_since is None:
            ours.rests_since = report.update, report.step
        return column

    @property
    def _still(self) -> Floats:
        """(P,) largest ratio of a layer that has not moved. A format that is coarser than float32 has rounded it."""
        return np.minimum(self._layers.resolution, RESOLUTION)

    @property
    def _slow(self) -> Floats:
        """(P,) largest ratio of a layer that crawls."""
        return np.maximum(self._layers.resolution, CRAWL)

    def _follow_loss(self, loss: float | None) -> None:
        if loss is None or not math.isfinite(loss):
            return
        ours = self._state
        ours.progress.add(loss)
        if ours.first_loss is None:
            ours.first_loss = loss
        scale = abs(ours.first_loss) or 1.0
        ours.losses += 1
        ours.change = max(ours.change, abs(loss - ours.first_loss) / scale)
        ours.loss_moved |= ours.change > FLAT

    def _loss_is_flat(self) -> bool:
        return self._state.losses >= FLAT_STEPS and not self._state.loss_moved


def _measured_ratio(report: StepReport, ratio: float, limit: float) -> str:
    return (
        f"The largest update of any layer at step {report.step} is {ratio:.3g} of its weights (a run that learns moves "
        f"by more than {limit:.3g})."
    )
