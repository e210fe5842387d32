"""Remember the course of a run, and tell the facts of it that join the cause of a finding. It decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gradwatch.detect import state
from gradwatch.explain.clues import Fact
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.starting import WeightFigures, bias_facts, weight_facts
from gradwatch.findings import Clue, Kind
from gradwatch.hooks.guard import Guard, observing
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Background"]

FIRST_STEPS = 5
GREW = 100.0  # times the first total norms or losses: the run had diverged before its first NaN
MUCH = 0.5  # share of dead units or flat entries that is worth a sentence
RATE_ROSE = 1.5
REACHED = 1e-3  # share of the largest gradient, by root mean square, that layers of healthy nets have
LARGE = 10.0  # RMS of what a layer returns: tanh and sigmoid are flat from 3 on
REMEMBERED = ("activation_rms", "dead_share", "saturated_share", "update_ratio", "weight_norm", "weight_mean")
SILENT: tuple[tuple[str, str, Clue | None], ...] = (
    ("dead_share", "After {name}, {share:.0%} of the units are dead.", "dead units"),
    ("saturated_share", "After {name}, the activation function is flat for {share:.0%} of its entries.", None),
)
STEEPEST = {"Sigmoid": "0.25", "LogSigmoid": "1", "Tanh": "1", "Softsign": "1", "Hardsigmoid": "0.17"}
NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")

OF_UPDATES = ("exploding", "nonfinite", "dead", "saturated", "unstable")  # kinds that updates bring about
UNCLEARED = 3  # updates in a row without zero_grad that are worth a sentence


@dataclass
class Course:
    """The course of one number of the run.

    Attributes:
        first: the first five finite values.
        last_step, last: the latest step with a finite value, and that value; NaN before any.
    """

    VERSION: ClassVar[int] = 1

    first: list[float] = field(default_factory=list)
    last_step: int = 0
    last: float = math.nan

    def add(self, step: int, value: float | None) -> None:
        """Take in the value of one step, unless it is missing, NaN or Inf."""
        if value is None or not math.isfinite(value):
            return
        self.last_step, self.last = step, float(value)
        if len(self.first) < FIRST_STEPS:
            self.first = [*self.first, float(value)]

    def growth(self, what: str) -> str | None:
        """Return "its loss grew from 1 to 200 at step 30" if it has grown a hundredfold."""
        start = float(np.median(np.abs(self.first))) if self.first else 0.0
        if start > 0 and abs(self.last) >= GREW * start:
            return f"its {what} grew from {start:.3g} to {self.last:.3g} at step {self.last_step}"
        return None


@dataclass
class BackgroundState:
    """The state of ``Background`` across steps.

    Attributes:
        total, loss: the courses of the total gradient norm and of the loss.
        lowest_loss: the lowest loss so far.
        lowest_step, lowest_rate: the step and the learning rate of it.
        first_weights: (P,) norms of the weights at their first sample, before any update.
        first_shares: (P,) root mean square of each gradient at the first step, as a share of the largest.
        latest: {name of a figure: (P,) its values at the latest sample}.
    """

    VERSION: ClassVar[int] = 1

    total: Course = field(default_factory=Course)
    loss: Course = field(default_factory=Course)
    lowest_loss: float | None = None
    lowest_step: int = 0
    lowest_rate: float | None = None
    first_weights: Floats | None = None
    first_shares: Floats | None = None
    latest: dict[str, Floats] = field(default_factory=dict)


class Background:
    """The course of the run so far.

    Args:
        layers: the table that the reports' columns follow.
        guard: takes the faults.
        losses: what the losses of the run show.

    Attributes:
        guard: as given.
    """

    def __init__(self, layers: Layers, guard: Guard | None = None, losses: LossGraph | None = None) -> None:
        self.guard = guard or Guard()
        self._layers, self._losses = layers, losses or LossGraph()
        self._state = BackgroundState()

    @observing("background")
    def observe(self, report: StepReport) -> None:
        """Take in one step."""
        ours = self._state
        if ours.first_shares is None and report.gradients_are_finite:
            ours.first_shares = self._shares(report)
        ours.total.add(report.step, report.grad_norm_total)
        ours.loss.add(report.step, report.loss)
        self._follow_lowest_loss(report)
        if ours.first_weights is None and "weight_norm" in report.figures:
            ours.first_weights = report.figures["weight_norm"]
        if report.sampled:  # not at logged steps, so that the logging changes no cause
            ours.latest.update({name: report.figures[name] for name in REMEMBERED if name in report.figures})

    @observing("background")
    def facts(self, kind: Kind, report: StepReport, column: int | None) -> list[Fact]:
        """Return the facts that may join the cause of a finding of ``kind`` that opens now.

        Args:
            kind: of the finding.
            report: of the step.
            column: of the layer that names the finding; None for the whole run.
        """
        found: dict[Kind, tuple[Iterable[Fact], ...]] = {
            "vanishing": (
                self._softmax_of_one(report),
                self._zeros(report, column),
                self._slope(report, column),
                self._activations(),
                self._start(column),
                self._faded(report, column),
            ),
            "exploding": (self._rate(report), self._start(column), self._update(column)),
            "nonfinite": (self._divergence(report), self._biases(column), self._first_step(report)),
            "dead": (self._start(column), self._activation_rms(column), self._rate(report)),
            "saturated": (
                self._softmax_of_one(report),
                self._activation_rms(column),
                self._start(column),
                self._rate(report),
            ),
            "stalled": (self._softmax_of_one(report), self._rate(report)),
            "unstable": (self._rate(report), self._update(None)),
        }
        own = [*_order_of_loop(report)] if kind in OF_UPDATES else []
        return [*own, *(fact for facts in found[kind] for fact in facts)]

    def state(self) -> dict[str, Any]:
        """Return what was learned, as plain values and arrays."""
        return state.plain(self._state)

    def restore(self, saved: object) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: if ``saved`` is of another version.
        """
        self._state = state.read(self._state, saved)

    def _follow_lowest_loss(self, report: StepReport) -> None:
        ours = self._state
        if report.loss is not None and (ours.lowest_loss is None or report.loss < ours.lowest_loss):
            ours.lowest_loss, ours.lowest_step, ours.lowest_rate = report.loss, report.step, report.learning_rate

    @property
    def _weights(self) -> WeightFigures:
        latest = self._state.latest
        return WeightFigures(self._state.first_weights, latest.get("weight_norm"), latest.get("weight_mean"))

    def _softmax_of_one(self, report: StepReport) -> Iterator[Fact]:
        """Yield a softmax over an axis of one entry, where no layer gets a gradient."""
        found = self._losses.softmax_of_one
        if found is not None and report.grad_norm_total == 0:
            shape, axis = found
            words = (
                f"A softmax runs over axis {axis} of shape {shape}, which has one entry: it is 1 whatever it is given."
            )
            yield Fact(words, "softmax of one")

    def _zeros(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        """Yield what multiplies by 0 where the gradient of a weight is exactly 0: what it is given, or what follows.

        A bias that gets a gradient while its weight gets none says that the first is 0, since the gradient of the
        weight is that of the bias times what the layer is given.
        """
        if column is None or report.grad_norm[column] != 0:
            return
        name, names = self._layers.names[column], self._layers.names
        bias = f"{name.removesuffix('weight')}bias"
        norm = float(report.grad_norm[names.index(bias)]) if name.endswith("weight") and bias in names else math.nan
        if 0 < norm < math.inf:
            told = f"The gradient of {name} is exactly 0 while that of {bias} is {norm:.2g}"
            yield Fact(f"{told}: what the layer is given is 0 throughout.", "factor of 0")
        elif (zero := self._zero_after(column)) is not None:
            yield Fact(f"{names[zero]} is 0 throughout, so that no gradient passes it.", "factor of 0")

    def _zero_after(self, column: int) -> int | None:
        """Return the first weight or gain after ``column`` that is 0 throughout; None where none is known to be."""
        norms, depth = self._state.latest.get("weight_norm"), self._layers.depth
        if norms is None:
            return None
        is_factor = self._layers.is_weight | np.array(["Norm" in owner for owner in self._layers.owners])
        is_factor &= np.array([not name.endswith("bias") for name in self._layers.names])
        after = np.flatnonzero(is_factor & (norms == 0) & (depth > depth[column]))
        return int(after[np.argmin(depth[after])]) if after.size else None

    def _slope(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        """Yield how much smaller gradients get from one weight to the next, and through which functions."""
        shrink, through = self._shrink(report, column), self._functions()
        if shrink is not None:
            where = f", through {through}" if through else ""
            yield Fact(f"Per entry they shrink {shrink[0]:.3g} times a weight over {shrink[1]} weights{where}.")
        elif through:
            yield Fact(f"Gradients pass through {through}.")

    def _shrink(self, report: StepReport, column: int | None) -> tuple[float, int] | None:
        """Return (factor for each weight, number of weights) from the strongest gradient down to ``column``."""
        if column is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            rms = report.grad_norm / np.sqrt(self._layers.size)
        weights = [c for c in np.argsort(self._layers.depth) if self._layers.is_weight[c] and np.isfinite(rms[c])]
        onward = weights[weights.index(column) :] if column in weights else []
        if len(onward) < 2 or rms[column] <= 0:
            return None
        strongest = max(range(1, len(onward)), key=lambda place: float(rms[onward[place]]))
        with np.errstate(over="ignore"):
            ratio = float(rms[onward[strongest]] / rms[column])
        return (ratio ** (1 / strongest), strongest) if math.isfinite(ratio) else None

    def _functions(self) -> str:
        """Return the squashing functions of the model and their steepest slopes; "" where it has none."""
        types = self._layers.module_types
        squashing = [f"{name} (slope at most {STEEPEST[name]})" for name in STEEPEST if name in types]
        normalises = any(norm in name for name in types for norm in NORMALISING)
        return f"{' and '.join(squashing)}{'' if normalises or not squashing else ' without normalisation'}"

    def _activations(self) -> Iterator[Fact]:
        for name, words, clue in SILENT:
            shares = self._state.latest.get(name)
            if shares is not None and not np.isnan(shares).all() and np.nanmax(shares) >= MUCH:
                worst = int(np.nanargmax(shares))
                yield Fact(words.format(name=self._layers.names[worst], share=float(shares[worst])), clue)

    def _activation_rms(self, column: int | None) -> Iterator[Fact]:
        rms = self._state.latest.get("activation_rms")
        if column is not None and rms is not None and np.isfinite(rms[column]):
            module = self._layers.names[column].rpartition(".")[0]
            words = f"{module or 'The layer'} returns entries of RMS {rms[column]:.3g}."
            yield Fact(words, "large outputs" if rms[column] > LARGE else None)

    def _start(self, column: int | None) -> Iterator[Fact]:
        if column is not None:
            yield from weight_facts(self._layers, column, self._weights)
            yield from bias_facts(self._layers, column, self._weights)

    def _biases(self, column: int | None) -> Iterator[Fact]:
        return bias_facts(self._layers, column, self._weights)

    def _shares(self, report: StepReport) -> Floats:
        rms = report.grad_norm / np.sqrt(np.maximum(self._layers.size, 1))
        largest = np.nanmax(rms, initial=0.0)
        return rms / largest if 0 < largest < np.inf else np.full(len(rms), np.nan)

    def _faded(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        first = self._state.first_shares
        if column is None or first is None:
            return
        now = float(self._shares(report)[column])
        if first[column] > REACHED > now:
            words = f"At the first step its gradient was {first[column]:.2g} of the largest, now it is {now:.2g}."
            yield Fact(words, "faded later")

    def _first_step(self, report: StepReport) -> Iterator[Fact]:
        if report.update == 0:
            yield Fact("No update that was watched came before.", "before any update")

    def _update(self, column: int | None) -> Iterator[Fact]:
        ratios = self._state.latest.get("update_ratio")
        if ratios is None or np.isnan(ratios).all():
            return
        if column is None:
            column = int(np.nanargmax(ratios))
        if np.isfinite(ratios[column]):
            yield Fact(
                f"The last sampled update moved {self._layers.names[column]} by {ratios[column]:.2g} of its norm."
            )

    def _rate(self, report: StepReport) -> Iterator[Fact]:
        ours, rate = self._state, report.learning_rate
        if rate is None:
            return
        lowest = ours.lowest_rate
        if lowest and ours.lowest_step < report.step and rate > RATE_ROSE * lowest:
            times = f"{rate / lowest:.3g} times that of step {ours.lowest_step}, where the loss was lowest"
            yield Fact(f"The learning rate is {rate:.3g}, {times}.", "rate rose")
        else:
            yield Fact(f"The learning rate is {rate:.3g}.")

    def _divergence(self, report: StepReport) -> Iterator[Fact]:
        for course, what in ((self._state.total, "total gradient norm"), (self._state.loss, "loss")):
            if (growth := course.growth(what)) is not None:
                yield Fact(f"The run had diverged before: {growth}.", "diverged")
                yield from self._rate(report)
                return
        yield from self._grown_weight()

    def _grown_weight(self) -> Iterator[Fact]:
        first, last = self._state.first_weights, self._state.latest.get("weight_norm")
        if first is None or last is None:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.where((first > 0) & np.isfinite(last), last / first, np.nan)
        if not np.isnan(growth).all() and np.nanmax(growth) >= GREW:
            worst = int(np.nanargmax(growth))
            grew = f"the norm of {self._layers.names[worst]} grew from {first[worst]:.3g} to {last[worst]:.3g}"
            yield Fact(f"The run had diverged before: {grew}.", "diverged")


def _order_of_loop(report: StepReport) -> Iterator[Fact]:
    if report.uncleared >= UNCLEARED:
        yield Fact(
            f"zero_grad() was not called before any of the last {report.uncleared} updates: each is made of the "
            "gradients of all updates so far.",
            "never cleared",
        )
