"""Remember the course of a run, and tell the facts of it that join the cause of a finding. It decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gradwatch.detect import state
from gradwatch.detect.out_of_reach import columns_out_of_reach, reach_in_words
from gradwatch.explain.clues import Fact, module_in_words
from gradwatch.explain.current import spectral_radius
from gradwatch.explain.idle_norms import idle_norms
from gradwatch.explain.leaps import Leaps
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.rates import RateCourse
from gradwatch.explain.scales import grown_along_depth, raw_inputs, raw_targets
from gradwatch.explain.starting import WeightFigures, bias_facts, weight_facts
from gradwatch.explain.update_sizes import UpdateSizes
from gradwatch.findings import Clue, Kind
from gradwatch.hooks.guard import Guard, observing
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Background"]

FIRST_STEPS = 5
GREW = 100.0  # times the first total norms or losses: the run had diverged before its first NaN
MOVED_FAR = 1.0  # size of a weight that one update moves it by; most healthy first updates stay below a tenth
GREW_SINCE = 2.0  # times the first norm of a weight, beyond which its module no longer returns what it did at first
WITHOUT_END = 10.0  # times the first losses that a loss lies below 0, where nothing bounds it
FAINT_GAIN = 1e-3  # of the gradient of its bias: what a normalisation returns before gain and bias is of size 1
STRETCHES = 1.5  # spectral radius: usual initialisations begin at 0.6 to 1
MUCH = 0.5  # share of dead units or flat entries that is worth a sentence
REACHED = 1e-3  # share of the largest gradient, by root mean square, that layers of healthy nets have
LARGE = 10.0  # RMS of what a layer returns: tanh and sigmoid are flat from 3 on
FIRST = ("weight_norm", "weight_mean")
TARGETS = ("target_floor", "target_error", "target_size", "target_low", "target_high", "output_low", "output_high")
REMEMBERED = (*TARGETS, "activation_rms", "dead_share", "saturated_share", "update_ratio", "weight_norm", "weight_mean")
SILENT: tuple[tuple[str, str, Clue | None], ...] = (
    ("dead_share", "After {name}, {share:.0%} of the units are dead.", "dead units"),
    ("saturated_share", "After {name}, the activation function is flat for {share:.0%} of its entries.", None),
)
STEEPEST = {"Sigmoid": "0.25", "LogSigmoid": "1", "Tanh": "1", "Softsign": "1", "Hardsigmoid": "0.17"}
NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")

OF_UPDATES = ("exploding", "nonfinite", "dead", "saturated", "unstable")  # kinds that updates bring about
OF_SIZES = ("exploding", "dead", "saturated", "vanishing", "unstable")  # kinds that a normalisation keeps away
MISPLACED = 2  # updates in a row that were clipped at the wrong time only, as many as an explosion may take
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
        rates: the course of the learning rate.
        leaps: what leapt while updates were small.
        lowest_loss: the lowest loss so far.
        first: {name of a figure: (P,) its values at the first sample}; of weights and gradients, before any update.
        first_move: the largest share of its size by which the first sampled update moved a weight; the size is at least
            half of an ordinary one.
        first_mover: the column of that weight.
        first_shares: (P,) root mean square of each gradient at the first step, as a share of the largest.
        latest: {name of a figure: (P,) its values at the latest sample}.
        sizes: how large updates and gradients were.
    """

    VERSION: ClassVar[int] = 3

    total: Course = field(default_factory=Course)
    loss: Course = field(default_factory=Course)
    rates: RateCourse = field(default_factory=RateCourse)
    leaps: Leaps = field(default_factory=Leaps)
    lowest_loss: float | None = None
    first: dict[str, Floats] = field(default_factory=dict)
    first_move: float = math.nan
    first_mover: int = 0
    first_shares: Floats | None = None
    latest: dict[str, Floats] = field(default_factory=dict)
    sizes: UpdateSizes = field(default_factory=UpdateSizes)


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
        ours.rates.add(report)
        ours.sizes.add(report)
        ours.leaps.add(report)
        if report.loss is not None:
            ours.lowest_loss = report.loss if ours.lowest_loss is None else min(ours.lowest_loss, report.loss)
        self._follow_first(report)
        if report.sampled:  # not at logged steps, so that the logging changes no cause
            ours.latest.update({name: report.figures[name] for name in REMEMBERED if name in report.figures})
            self._note_first_move()
        if report.grad_norm_total == 0 and report.loss is not None:
            self._losses.seek_flat()

    def rates_to_try(self) -> tuple[float | None, float | None]:
        """Return (a lower learning rate, a higher one) that is worth a try; None where no rate is known."""
        rates = self._state.rates
        return rates.lower(self._state.first_move), rates.higher(self._latest_move())

    @observing("background")
    def facts(self, kind: Kind, report: StepReport, column: int | None) -> list[Fact]:
        """Return the facts that may join the cause of a finding of ``kind`` that opens now.

        Args:
            kind: of the finding.
            report: of the step.
            column: of the layer that names the finding; None for the whole run.
        """
        rates = self._state.rates
        found: dict[Kind, tuple[Iterable[Fact], ...]] = {
            "vanishing": (
                self._out_of_reach(report),
                self._shut(report),
                [*self._zeros(report, column)] or self._norm_of_one(report),
                self._slope(report, column),
                self._activations(),
                self._start(column),
                self._faded(report, column),
                self._raw(),
                rates.decayed() if rates.has_decayed else (),
                rates.risen() if rates.has_risen else (),
            ),
            "exploding": (
                self._state.sizes.facts(),
                self._reasons_to_grow(report),
                self._large_at(column),
                self._update(column),
            ),
            "nonfinite": (
                self._divergence(report, column),
                self._biases(column),
                self._first_step(report),
                self._raw(),
            ),
            "dead": (
                self._out_of_reach(report),
                self._shut(report),
                self._raw(),
                self._start(column),
                self._activation_rms(column),
                rates.risen(),
            ),
            "saturated": (
                self._out_of_reach(report),
                self._shut(report),
                self._activation_rms(column),
                self._start(column),
                self._raw_inputs(),
                rates.risen(),
            ),
            "stalled": (
                *(() if column is not None else (self._out_of_reach(report),)),
                self._shut(report),
                rates.decayed(),
            ),
            "unstable": (self._state.sizes.facts(), self._targets(), self._raw(), rates.risen(), self._update(None)),
        }
        own = [*_order_of_loop(report), *self._clipping_out_of_place(kind, report)] if kind in OF_UPDATES else []
        if kind in OF_SIZES:
            own += idle_norms(self._layers)
        return [*own, *(fact for facts in found[kind] for fact in facts)]

    def _clipping_out_of_place(self, kind: Kind, report: StepReport) -> Iterator[Fact]:
        """Yield that the loop clips where it has no effect; of NaN or Inf only where the run had diverged before."""
        if report.misplaced_clips < MISPLACED or (kind == "nonfinite" and self._diverged() is None):
            return
        where = "after step()" if report.clips_late else "before backward()"
        yield Fact(
            f"clip_grad_norm_ is called {where}, where it has no effect: the gradients of the last "
            f"{report.misplaced_clips} updates were not clipped.",
            "clipped out of place",
        )

    def state(self) -> dict[str, Any]:
        """Return what was learned, as plain values and arrays."""
        return state.plain(self._state)

    def restore(self, saved: object) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: if ``saved`` is of another version.
        """
        self._state = state.read(self._state, saved)

    @property
    def _weights(self) -> WeightFigures:
        latest = self._state.latest
        return WeightFigures(self._state.first.get("weight_norm"), latest.get("weight_norm"), latest.get("weight_mean"))

    def _follow_first(self, report: StepReport) -> None:
        """Keep the figures of the first sample: those of activations as long as the weights are about as they were."""
        first, norms = self._state.first, report.figures.get("weight_norm")
        if norms is None or "activation_rms" in first:
            return
        if not first:
            first.update({name: report.figures[name] for name in FIRST if name in report.figures})
            first["grad_norm"] = report.grad_norm.astype(np.float64)
        if "activation_rms" in report.figures:
            rms = report.figures["activation_rms"]
            with np.errstate(invalid="ignore"):
                has_grown = norms > GREW_SINCE * first["weight_norm"]
            first["activation_rms"] = np.where(has_grown, np.nan, rms)

    def _note_first_move(self) -> None:
        """Keep how far the first sampled update moved a weight; its size counts as half of an ordinary one at least."""
        latest = self._state.latest
        ratios, norms = latest.get("update_ratio"), latest.get("weight_norm")
        if ratios is None or norms is None or not math.isnan(self._state.first_move):
            return
        with np.errstate(invalid="ignore"):
            moved = ratios * norms / np.fmax(norms, self._layers.ordinary_norm / 2)
        known = moved[self._layers.is_weight & np.isfinite(moved)]
        if len(known):
            self._state.first_move = float(known.max())
            self._state.first_mover = int(np.flatnonzero(moved == known.max())[0])

    def _latest_move(self) -> float:
        """Return the largest share of its norm by which an update moves a weight: at the latest sample, or by its rate.

        Where every update was rounded away, that of plain descent and that of Adam, lr·g and about lr an entry, bound
        what is asked for.
        """
        latest, first, rate = self._state.latest, self._state.first, self._state.rates.latest
        ratios, norms = latest.get("update_ratio"), latest.get("weight_norm")
        if ratios is None or norms is None or rate is None:
            return math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            by_rate = rate * np.fmax(first.get("grad_norm", norms * 0), np.sqrt(self._layers.size)) / norms
        known = [moves[self._layers.is_weight & np.isfinite(moves)] for moves in (ratios, by_rate)]
        largest = [float(moves.max(initial=0.0)) for moves in known]
        return largest[0] or largest[1]

    def _shut(self, report: StepReport) -> Iterator[Fact]:
        """Yield the operation that shuts the way from the loss to every layer, where no layer gets a gradient."""
        if report.grad_norm_total != 0:
            return
        found, flat = self._losses.softmax_of_one, self._losses.flat
        if found is not None:
            shape, axis = found
            words = (
                f"A softmax runs over axis {axis} of shape {shape}, which has one entry: it is 1 whatever it is given."
            )
            yield Fact(words, "softmax of one")
        elif flat is not None:
            yield Fact(f"No gradient passes the {flat.name} before the loss: {flat.words}.", flat.clue)

    def _norm_of_one(self, report: StepReport) -> Iterator[Fact]:
        """Yield a normalisation whose results are 0 whatever it is given: its gain gets no gradient, its bias does."""
        names = self._layers.names
        for column, owner in enumerate(self._layers.owners):
            module, _, own = names[column].rpartition(".")
            bias = f"{module}.bias" if module else "bias"
            if own != "weight" or not any(norm in owner for norm in NORMALISING) or bias not in names:
                continue
            gain, shift = float(report.grad_norm[column]), float(report.grad_norm[names.index(bias)])
            if gain < FAINT_GAIN * shift < math.inf:
                words = (
                    f"{module or 'The model'} ({owner}) returns the same for whatever it is given: it normalises over "
                    "single values, or over values that are all alike."
                )
                yield Fact(words, "norm of one", names[column])
                return

    def _leaps(self, report: StepReport) -> Iterator[Fact]:
        """Yield what leapt although updates were small."""
        ours = self._state
        if ours.rates.has_risen:
            return
        overwritten = [*ours.leaps.overwritten(self._layers, report)]
        if overwritten:
            yield from overwritten
        elif not any(self._raw()):  # raw numbers make the loss so steep that a small update is enough
            yield from ours.leaps.one_batch(report.step)

    def _recurrence(self) -> Iterator[Fact]:
        """Yield a recurrent matrix that stretches what it carries from step to step."""
        for column, owner in enumerate(self._layers.owners):
            name = self._layers.names[column]
            if owner not in ("RNN", "RNNCell") or "weight_hh" not in name:
                continue
            radius = spectral_radius(self._layers.tensors[column])
            if radius is not None and radius > STRETCHES:
                words = f"{name} has spectral radius {radius:.3g}: from step to step it stretches what it carries."
                yield Fact(words, "recurrence grows", name)
                return

    def _raw(self) -> Iterator[Fact]:
        yield from self._raw_inputs()
        yield from raw_targets(self._layers, self._state.first, self._losses)

    def _raw_inputs(self) -> Iterator[Fact]:
        return raw_inputs(self._layers, self._state.first)

    def _targets(self) -> Iterator[Fact]:
        """Yield that the targets of the loss grow along with the model."""
        growth = self._losses.target_growth()
        if growth is not None:
            words = f"The targets of the loss have grown from a root mean square of {growth[0]:.3g} to {growth[1]:.3g}"
            why = "as those do that are computed from the model's own outputs"
            yield Fact(f"{words}, {why}.", "targets grow")

    def _moved_far(self) -> Iterator[Fact]:
        """Yield that the first update that was measured moved a weight further than its own size."""
        ours = self._state
        if ours.first_move > MOVED_FAR:
            name = self._layers.names[ours.first_mover]
            yield Fact(
                f"The first sampled update moved {name} by {ours.first_move:.2g} times its size.", "update too large"
            )

    def _without_end(self, report: StepReport) -> Iterator[Fact]:
        """Yield that the loss itself has no lower bound: it falls ever further below 0."""
        ours, loss = self._state, report.loss
        if loss is None or not ours.loss.first or ours.lowest_loss is None:
            return
        scale = float(np.max(np.abs(ours.loss.first)))
        if loss < -WITHOUT_END * scale and loss <= ours.lowest_loss / 2:
            words = f"The loss has fallen to {loss:.3g} from {ours.loss.first[0]:.3g}: nothing bounds it from below."
            yield Fact(words, "no lower bound")

    def _out_of_reach(self, report: StepReport) -> Iterator[Fact]:
        """Yield targets that the function at the output cannot give, by the latest sample.

        Where that function lets no gradient through, ``_shut`` names it.
        """
        if report.grad_norm_total == 0 and self._losses.flat is not None:
            return
        for column in columns_out_of_reach(self._state.latest)[:1]:
            yield Fact(reach_in_words(self._state.latest, column), "targets out of reach")

    def _zeros(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        """Yield what multiplies by 0 where the gradient of a weight is exactly 0: what it is given, or what follows.

        A bias that gets a gradient while its weight gets none says that the first is 0 in each row that a gradient
        comes from: the gradient of the weight is the sum over rows of that of the bias times what the layer is given.
        """
        if column is None or report.grad_norm[column] != 0:
            return
        name, names = self._layers.names[column], self._layers.names
        bias = f"{name.removesuffix('weight')}bias"
        norm = float(report.grad_norm[names.index(bias)]) if name.endswith("weight") and bias in names else math.nan
        if 0 < norm < math.inf:
            told = f"The gradient of {name} is exactly 0 while that of {bias} is {norm:.2g}"
            where = "wherever a gradient comes from"
            if int(self._layers.order[0]) in (column, names.index(bias)):
                yield Fact(f"{told}: the inputs of the model are 0 {where}.", "zero inputs")
            else:
                yield Fact(f"{told}: what the layer is given is 0 {where}.", "factor of 0")
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
            factor, count = shrink
            over = "from the next weight to this one" if count == 1 else f"a weight over {count} weights"
            yield Fact(f"Per entry they shrink {factor:.3g} times {over}{where}.")
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
            words = f"{module_in_words(module, begins=True)} returns entries of RMS {rms[column]:.3g}."
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
        if np.isfinite(ratios[column]) and ratios[column] > 0:
            yield Fact(
                f"The last sampled update moved {self._layers.names[column]} by {ratios[column]:.2g} of its norm."
            )

    def _divergence(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        """Yield that the run had diverged before it met NaN or Inf, and the reasons for that."""
        diverged = self._diverged()
        if diverged is not None:
            yield diverged
            yield from self._state.sizes.facts()
            yield from self._reasons_to_grow(report)
            yield from self._large_at(column)

    def _diverged(self) -> Fact | None:
        for course, what in ((self._state.total, "total gradient norm"), (self._state.loss, "loss")):
            if (growth := course.growth(what)) is not None:
                return Fact(f"The run had diverged before: {growth}.", "diverged")
        return next(self._grown_weight(), None)

    def _reasons_to_grow(self, report: StepReport) -> Iterator[Fact]:
        """Yield why gradients grow without bound."""
        yield from self._leaps(report)
        yield from self._recurrence()
        yield from self._raw()
        yield from self._targets()
        yield from self._without_end(report)
        yield from grown_along_depth(self._layers, self._state.first)
        yield from self._moved_far()
        yield from self._state.rates.risen()

    def _large_at(self, column: int | None) -> Iterator[Fact]:
        """Yield what is unusual about a layer that explodes. Small weights let nothing grow."""
        return (fact for fact in self._start(column) if fact.clue != "weights small")

    def _grown_weight(self) -> Iterator[Fact]:
        first, last = self._state.first.get("weight_norm"), self._state.latest.get("weight_norm")
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
