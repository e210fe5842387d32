"""``exploding`` along depth: signals, or gradients, that every layer multiplies, in the first updates of a run.

What is measured, at the first sampled updates:

- The *rise* of activations: from the root mean square of what the first layer returns to the least that any layer from
  there on returns. Only what stays counts: a normalisation on the way, or at the end, takes it back. The *steady* part
  is the rise without its largest single step, because one step may have its reason: a normalisation after an embedding
  that begins near zero, or a head that has learned raw targets.
- The *leverage* of a weight: ‖g‖·‖w‖ ÷ loss, by how many times its value the loss changes, to first order, where the
  weight changes by as much as its norm.

Why no healthy run shows it. Initialisations, normalisations and skips are there to keep the size of signals: healthy
programs of ours, embeddings included, rise by at most 52 times, and have leverages of at most 111 while the loss is of
the size that it began with. Where each of many layers, or each of many steps through one layer, multiplies by more than
1, the rise is 10³ to 10¹⁰. A network that begins so may still learn; so a moderate rise, or leverage, counts only if
the first ten updates have not brought the loss down. A pretrained network is no exception: its activations may have a
few huge entries, but its last layer returns ordinary ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.wording import count_of, times
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["ExplodingAlongDepth"]

WINDOW = 10  # the last update that is judged
STEADY = 4.0  # decades of steady rise: enough by themselves
RISE, STEADY_OF_RISE = 3.0, 2.0  # decades of rise, and of its steady part: enough if the loss does not come down
INNER = 5.0  # decades above max(1, first layer), in a layer before the last, if no update has moved a weight far
LEVERAGE = 1e4  # times the loss, if the loss does not come down, and ...
STEEP = 1e3  # ... if the gradient's root mean square is so many times that of the weight nearest the output
SLOW = 0.9  # of the first loss: where a loss has not come below in ten updates, it does not come down
LOOKED_AT = 8  # the update from which on that is judged: its sample, and that of update 10
MOVED = 1.0  # times its own norm: what such an update has made was not there at birth
LEVERED = "Gradients are multiplied on their way back, and the loss does not come down."
RECENT = 3  # losses that the recent one is a mean of: a batch may be an easy one


@dataclass
class ExplodingAlongDepthState:
    """The state of ``ExplodingAlongDepth`` across steps.

    Attributes:
        first_loss: the first loss.
        losses: the latest losses, oldest first.
        has_moved: whether an update has moved a weight by more than its own norm.
    """

    VERSION: ClassVar[int] = 1

    first_loss: float | None = None
    losses: tuple[float, ...] = ()
    has_moved: bool = False


class Rise(NamedTuple):
    """How activations rise from the first layer to the last, where no later layer takes it back.

    Attributes:
        first: the column of the first layer.
        columns: the columns of the layers that raise them.
        decades: how far, in decades.
        steady: how far without the largest single step.
        inner: how far above the larger of 1 and the first layer, in the layer before the last.
    """

    first: int
    columns: NDArray[np.int64]
    decades: float
    steady: float
    inner: float

    @classmethod
    def of(cls, rms: Floats, order: NDArray[np.int64]) -> Rise | None:
        """Return the rise of activations, None where fewer than two layers returned anything but zeros.

        Args:
            rms: (P,) root mean square of what each layer returned; NaN where it was not measured.
            order: (P,) the columns from input to output.
        """
        with np.errstate(invalid="ignore"):
            columns = order[((rms > 0) & np.isfinite(rms))[order]]
        if len(columns) < 2:
            return None
        decades = np.log10(rms[columns])
        kept = np.minimum.accumulate(decades[::-1])[::-1]  # what no later layer takes back
        steps = np.diff(kept)
        inner = float(kept[-2]) - max(0.0, float(decades[0]))
        return cls(
            first=int(columns[0]),
            columns=columns[1:][steps > 0],
            decades=float(steps.sum()),
            steady=float(steps.sum() - steps.max()),
            inner=inner,
        )


class ExplodingAlongDepth(Detector[ExplodingAlongDepthState]):
    """Layers over which activations, or gradients, grow geometrically while the run begins.

    ``value`` is how many times larger the activations are than those of the first layer, or the leverage of the
    weight; ``threshold`` is the limit. Sick are the weights after whose layers activations have risen (1) steadily by
    1e4, (2) by 1e3, of which 1e2 steadily, if ten updates have not brought the loss down by a tenth, or (3) to 1e5
    times the larger of 1 and the first layer's, in a layer before the last, while no update has moved a weight by its
    own norm. Sick is (4) a weight whose leverage is 1e4, and whose gradient is 1e3 times that of the weight nearest
    the output, if ten updates have not brought the loss down. ``Thresholds.exploding_growth`` replaces the rule.
    """

    kind = "exploding"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(ExplodingAlongDepthState())
        self._layers = layers
        self._is_over = thresholds.exploding_growth is not None
        self._healthy = healthy(len(layers))
        self._rise: Rise | None = None  # that was judged sick, for explain; None where a leverage was

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_over or report.update > WINDOW:
            self._is_over = True
            return self._healthy
        if not report.is_finite:
            return None  # nonfinite takes over
        self._follow(report)
        if not report.sampled:
            return None
        return self._risen(report) or self._levered(report) or self._healthy

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Allow every step after the last update that is judged.

        Bound: a step that waits comes after every examined one, and nothing is sick after update 10.
        """
        return self._is_over

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        if self._rise is None:
            figure = "a hundredth of its weight decides over the loss"
            measured, cause = self._measured_leverage(report, column), LEVERED
        else:
            figure = "what it returns has grown along depth"
            measured, cause = self._measured_rise(report, column, self._rise), self._course(report, column, self._rise)
        return Evidence(measured, (cause,), ("grows along depth",), figure)

    def _measured_leverage(self, report: StepReport, column: int) -> str:
        share = self._leverage(report)[column] / 100
        return (
            f"The gradient norm of {self._layers.names[column]} is {report.grad_norm[column]:.3g} at step "
            f"{report.step}: a change of the weight by a hundredth would change the loss by {share:.3g} times its "
            f"value (normal: up to {LEVERAGE / 100:g} times)."
        )

    def _measured_rise(self, report: StepReport, column: int, rise: Rise) -> str:
        rms, names = report.figures["activation_rms"], self._layers.names
        return (
            f"What the layer of {names[column]} returns has a root mean square of {rms[column]:.3g} at step "
            f"{report.step}, {times(rms[column], rms[rise.first])} that of {names[rise.first]} (normal: up to "
            f"{self._limit(rise):g} times)."
        )

    def _course(self, report: StepReport, column: int, rise: Rise) -> str:
        if rise.steady < STEADY_OF_RISE:
            return "Activations grow in one layer: it is passed many times, or its weights are far too large."
        each = 10 ** min(rise.decades / len(rise.columns), 300.0)
        layers = count_of(len(rise.columns), "layer", "layers")
        return f"Activations are multiplied layer after layer: by {each:.3g} each, over {layers}."

    def _follow(self, report: StepReport) -> None:
        ours, loss = self._state, report.loss
        if loss is not None:
            ours.first_loss = loss if ours.first_loss is None else ours.first_loss
            ours.losses = (*ours.losses, loss)[-RECENT:]

    def _notes_movement(self, report: StepReport) -> None:
        ratio = report.figures.get("update_ratio")
        if ratio is not None and not report.skipped:
            with np.errstate(invalid="ignore"):
                self._state.has_moved |= bool((ratio[self._layers.is_weight] > MOVED).any())

    def _comes_down(self, report: StepReport) -> bool:
        """Return True if the loss has come down, or if it is too early to say, or if there is none that can tell."""
        ours = self._state
        if report.update < LOOKED_AT or not ours.losses or ours.first_loss is None or ours.first_loss <= 0:
            return True
        return sum(ours.losses) / len(ours.losses) < SLOW * ours.first_loss

    def _risen(self, report: StepReport) -> DetectorResult | None:
        has_moved = self._state.has_moved
        self._notes_movement(report)
        rms = report.figures.get("activation_rms")
        rise = None if rms is None else Rise.of(rms, self._layers.order)
        if rms is None or rise is None:
            return None
        is_slow = rise.decades >= RISE and rise.steady >= STEADY_OF_RISE and not self._comes_down(report)
        is_inner = rise.inner >= INNER and not has_moved
        if not (rise.steady >= STEADY or is_slow or is_inner):
            return None
        self._rise = rise
        with np.errstate(over="ignore", invalid="ignore"):
            growth = rms / rms[rise.first]
        return self._result(rise.columns, growth, self._limit(rise))

    def _limit(self, rise: Rise) -> float:
        """Return the growth that is still normal under the part of the rule that found ``rise``."""
        if rise.steady >= STEADY_OF_RISE:
            return 10.0 ** (STEADY if rise.steady >= STEADY else RISE)
        return 10.0**INNER

    def _levered(self, report: StepReport) -> DetectorResult | None:
        if self._comes_down(report) or "weight_norm" not in report.figures:
            return None
        order = self._layers.order
        weights = order[(self._layers.is_weight & report.measured)[order]]
        if len(weights) < 2:
            return None
        rms = report.grad_norm / np.sqrt(np.maximum(self._layers.size, 1))
        leverage = self._leverage(report)
        sick = weights[(leverage[weights] >= LEVERAGE) & (rms[weights] >= STEEP * rms[weights[-1]])]
        if not len(sick):
            return None
        self._rise = None
        return self._result(sick, leverage, LEVERAGE)

    def _leverage(self, report: StepReport) -> Floats:
        loss = report.loss if report.loss and report.loss > 0 else math.inf
        with np.errstate(over="ignore", invalid="ignore"):
            return np.nan_to_num(report.grad_norm * report.figures["weight_norm"] / loss, nan=0.0, posinf=np.inf)

    def _result(self, columns: NDArray[np.int64], value: Floats, limit: float) -> DetectorResult:
        sick = np.zeros(len(self._layers), dtype=bool)
        sick[columns] = True
        known = np.nan_to_num(value, nan=0.0, posinf=1e300)
        return DetectorResult(sick, known, known, np.full(len(sick), limit))
