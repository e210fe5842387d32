"""Tell the facts of a run that join the cause of a finding. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gradwatch.detect import state
from gradwatch.detect.out_of_reach import columns_out_of_reach, reach_in_words
from gradwatch.explain.clues import Fact, module_in_words
from gradwatch.explain.faint_gradients import faded, norm_of_one, slope, zeros
from gradwatch.explain.growth import diverged, growing_targets, raw_numbers, reasons_to_grow
from gradwatch.explain.idle_norms import idle_norms
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.run_course import RunCourse
from gradwatch.explain.scales import raw_inputs
from gradwatch.explain.starting import WeightFigures, bias_facts, weight_facts
from gradwatch.findings import Clue, Kind
from gradwatch.hooks.guard import Guard, observing
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import StepReport

__all__ = ["Background"]

MUCH = 0.5  # share of dead units or flat entries that is worth a sentence
LARGE = 10.0  # RMS of what a layer returns: tanh and sigmoid are flat from 3 on
SILENT: tuple[tuple[str, str, Clue | None], ...] = (
    ("dead_share", "After {name}, {share:.0%} of the units are dead.", "dead units"),
    ("saturated_share", "After {name}, the activation function is flat for {share:.0%} of its entries.", None),
)
OF_UPDATES = ("exploding", "nonfinite", "dead", "saturated", "unstable")  # kinds that updates bring about
OF_SIZES = ("exploding", "dead", "saturated", "vanishing", "unstable")  # kinds that a normalisation keeps away
MISPLACED = 2  # updates in a row that were clipped at the wrong time only, as many as an explosion may take
UNCLEARED = 3  # updates in a row without zero_grad that are worth a sentence


class Background:
    """The course of the run so far, and what it tells.

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
        self._state = RunCourse()

    @observing("background")
    def observe(self, report: StepReport) -> None:
        """Take in one step."""
        self._state.add(self._layers, report)
        if report.grad_norm_total == 0 and report.loss is not None:
            self._losses.seek_flat()

    def rates_to_try(self) -> tuple[float | None, float | None]:
        """Return (a lower learning rate, a higher one) that is worth a try; None where no rate is known."""
        rates = self._state.rates
        return rates.lower(self._state.first_move), rates.higher(self._state.latest_move(self._layers))

    @observing("background")
    def facts(self, kind: Kind, report: StepReport, column: int | None) -> list[Fact]:
        """Return the facts that may join the cause of a finding of ``kind`` that opens now.

        Args:
            kind: of the finding.
            report: of the step.
            column: of the layer that names the finding; None for the whole run.
        """
        layers, course = self._layers, self._state
        rates = course.rates
        found: dict[Kind, tuple[Iterable[Fact], ...]] = {
            "vanishing": (
                self._out_of_reach(report),
                self._shut(report),
                [*zeros(layers, course, report, column)] or norm_of_one(layers, report),
                slope(layers, report, column),
                self._activations(),
                self._start(column),
                faded(layers, course, report, column),
                raw_numbers(layers, course, self._losses),
                rates.decayed() if rates.has_decayed else (),
                rates.risen() if rates.has_risen else (),
            ),
            "exploding": (
                course.sizes.facts(),
                reasons_to_grow(layers, course, self._losses, report),
                self._large_at(column),
                self._update(column),
            ),
            "nonfinite": (
                self._divergence(report, column),
                self._biases(column),
                self._first_step(report),
                raw_numbers(layers, course, self._losses),
            ),
            "dead": (
                self._out_of_reach(report),
                self._shut(report),
                raw_numbers(layers, course, self._losses),
                self._start(column),
                self._activation_rms(column),
                rates.risen(),
            ),
            "saturated": (
                self._out_of_reach(report),
                self._shut(report),
                self._activation_rms(column),
                self._start(column),
                raw_inputs(layers, course.first),
                rates.risen(),
            ),
            "stalled": (
                *(() if column is not None else (self._out_of_reach(report),)),
                self._shut(report),
                rates.decayed(),
            ),
            "unstable": (
                course.sizes.facts(),
                growing_targets(self._losses),
                raw_numbers(layers, course, self._losses),
                rates.risen(),
                self._update(None),
            ),
        }
        own = [*_order_of_loop(report), *self._clipping_out_of_place(kind, report)] if kind in OF_UPDATES else []
        if kind in OF_SIZES:
            own += idle_norms(layers)
        return [*own, *(fact for facts in found[kind] for fact in facts)]

    def _clipping_out_of_place(self, kind: Kind, report: StepReport) -> Iterator[Fact]:
        """Yield that the loop clips where it has no effect; of NaN or Inf only where the run had diverged before."""
        if report.misplaced_clips < MISPLACED or (kind == "nonfinite" and diverged(self._layers, self._state) is None):
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
        read = state.read(self._state, saved)
        for name, array, shape in read.arrays(len(self._layers)):
            if array.shape != shape or array.dtype.kind != "f":
                raise state.refusal(f"RunCourse.{name}", f"numbers of shape {shape}", f"{array.dtype} {array.shape}")
        self._state = read

    @property
    def _weights(self) -> WeightFigures:
        latest = self._state.latest
        return WeightFigures(self._state.first.get("weight_norm"), latest.get("weight_norm"), latest.get("weight_mean"))

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

    def _out_of_reach(self, report: StepReport) -> Iterator[Fact]:
        """Yield targets that the function at the output cannot give, by the latest sample.

        Where that function lets no gradient through, ``_shut`` names it.
        """
        if report.grad_norm_total == 0 and self._losses.flat is not None:
            return
        for column in columns_out_of_reach(self._state.latest)[:1]:
            yield Fact(reach_in_words(self._state.latest, column), "targets out of reach")

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
        fact = diverged(self._layers, self._state)
        if fact is not None:
            yield fact
            yield from self._state.sizes.facts()
            yield from reasons_to_grow(self._layers, self._state, self._losses, report)
            yield from self._large_at(column)

    def _large_at(self, column: int | None) -> Iterator[Fact]:
        """Yield what is unusual about a layer that explodes. Small weights let nothing grow."""
        return (fact for fact in self._start(column) if fact.clue != "weights small")


def _order_of_loop(report: StepReport) -> Iterator[Fact]:
    if report.uncleared >= UNCLEARED:
        yield Fact(
            f"zero_grad() was not called before any of the last {report.uncleared} updates: each is made of the "
            "gradients of all updates so far.",
            "never cleared",
        )
