"""What else is known when a finding opens: figures that join its cause. Decides nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradwatch.detect import starting
from gradwatch.detect.clues import Fact
from gradwatch.findings import Clue, Kind
from gradwatch.hooks.guard import harmless
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Background"]

FIRST_STEPS = 5
GREW = 100.0  # times the first total norms or losses: the run had diverged before its first NaN
MUCH = 0.5  # share of dead units or flat entries that is worth a word
RATE_ROSE = 1.5
REACHED = 1e-3  # share of the largest gradient, by root mean square, that layers of healthy nets have
LARGE = 10.0  # RMS of what a layer returns: tanh and sigmoid are flat from 3 on
SILENT: tuple[tuple[str, str, Clue | None], ...] = (
    ("dead_share", "of the units are dead", "dead units"),
    ("saturated_share", "of the entries are flat", None),
)
COURSES = (("totals", "last_total", "total gradient norm"), ("losses", "last_loss", "loss"))
STEEPEST = {"Sigmoid": "0.25", "LogSigmoid": "1", "Tanh": "1", "Softsign": "1", "Hardsigmoid": "0.17"}
NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm")


class Background:
    """Keeps the course of the run so far, and tells it.

    Args:
        layers: the table.
    """

    def __init__(self, layers: Layers) -> None:
        self.broken: set[str] = set()
        self._layers = layers
        self._memory: dict[str, Any] = {
            "totals": [],  # the first ones
            "losses": [],
            "last_total": None,  # (step, norm), the latest that was finite
            "last_loss": None,
            "best": None,  # (loss, step, learning rate) where the loss was lowest
            "first_weights": None,  # norms as they were first sampled, before any update
            "first_shares": None,  # of the largest root mean square of a gradient's entries, at the first step
            "shares": {},  # the latest of the figures of activations
        }

    @harmless
    def observe(self, report: StepReport) -> None:
        """Takes in one step."""
        memory = self._memory
        if memory["first_shares"] is None and report.gradients_are_finite:
            memory["first_shares"] = self._shares(report)
        for first, last, value in (
            ("totals", "last_total", report.grad_norm_total),
            ("losses", "last_loss", report.loss),
        ):
            if value is not None and math.isfinite(value):
                memory[last] = (report.step, float(value))
                if len(memory[first]) < FIRST_STEPS:
                    memory[first] = [*memory[first], float(value)]
        if report.loss is not None and (memory["best"] is None or report.loss < memory["best"][0]):
            memory["best"] = (report.loss, report.step, report.learning_rate)
        if memory["first_weights"] is None and "weight_norm" in report.figures:
            memory["first_weights"] = report.figures["weight_norm"]
        for name in ("activation_rms", "dead_share", "saturated_share", "update_ratio", "weight_norm"):
            if report.sampled and name in report.figures:  # whatever the logging
                memory["shares"][name] = report.figures[name]

    @harmless
    def facts(self, kind: Kind, report: StepReport, column: int | None) -> list[Fact]:
        """What joins the cause of a finding of ``kind`` that opens now.

        Args:
            kind: of the finding.
            report: of the step.
            column: the layer that names it; None for the whole run.
        """
        found = {
            "vanishing": (
                self._slope(report, column),
                self._functions(),
                self._activations(),
                self._start(column),
                self._faded(report, column),
            ),
            "exploding": (self._rate(report), self._start(column), self._update(column)),
            "nonfinite": (self._divergence(report), self._biases(column), self._first_step(report)),
            "dead": (self._start(column), self._activation_rms(column), self._rate(report)),
            "saturated": (self._activation_rms(column), self._start(column), self._rate(report)),
            "stalled": (self._rate(report),),
            "unstable": (self._rate(report), self._update(None)),
        }[kind]
        return [fact for facts in found for fact in facts]

    def state(self) -> dict[str, Any]:
        """A copy of what was learned."""
        return copy.deepcopy(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        self._memory |= copy.deepcopy(state)

    def _slope(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        """How much smaller gradients get from one weight to the next, from the strongest down to ``column``."""
        if column is None:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            rms = report.grad_norm / np.sqrt(self._layers.size)
        weights = [c for c in np.argsort(self._layers.depth) if self._layers.is_weight[c] and np.isfinite(rms[c])]
        behind = weights[weights.index(column) :] if column in weights else []
        if len(behind) < 2 or rms[column] <= 0:
            return
        strongest = max(range(1, len(behind)), key=lambda place: float(rms[behind[place]]))
        shrink = float(rms[behind[strongest]] / rms[column]) ** (1 / strongest)
        yield Fact(f"per entry they shrink {shrink:.3g} times a weight over {strongest} weights")

    def _functions(self) -> Iterator[Fact]:
        types = self._layers.module_types
        squashing = [f"{name} (slope at most {STEEPEST[name]})" for name in STEEPEST if name in types]
        if squashing:
            normalises = any(norm in name for name in types for norm in NORMALISING)
            yield Fact(f"through {' and '.join(squashing)}{'' if normalises else ' without normalisation'}")

    def _activations(self) -> Iterator[Fact]:
        shares = self._memory["shares"]
        for name, what, clue in SILENT:
            if name in shares and not np.isnan(shares[name]).all() and np.nanmax(shares[name]) >= MUCH:
                worst = int(np.nanargmax(shares[name]))
                yield Fact(f"behind {self._layers.names[worst]} {shares[name][worst]:.0%} {what}", clue)

    def _activation_rms(self, column: int | None) -> Iterator[Fact]:
        rms = self._memory["shares"].get("activation_rms")
        if column is not None and rms is not None and np.isfinite(rms[column]):
            module = self._layers.names[column].rpartition(".")[0]
            words = f"{module or 'the layer'} returns entries of RMS {rms[column]:.3g}"
            yield Fact(words, "large outputs" if rms[column] > LARGE else None)

    def _start(self, column: int | None) -> Iterator[Fact]:
        return starting.facts_of(self._layers, column, self._memory["first_weights"])

    def _biases(self, column: int | None) -> Iterator[Fact]:
        return starting.biases(self._layers, column, self._memory["first_weights"])

    def _shares(self, report: StepReport) -> Floats:
        rms = report.grad_norm / np.sqrt(np.maximum(self._layers.size, 1))
        largest = np.nanmax(rms, initial=0.0)
        return rms / largest if 0 < largest < np.inf else np.full(len(rms), np.nan)

    def _faded(self, report: StepReport, column: int | None) -> Iterator[Fact]:
        first = self._memory["first_shares"]
        if column is None or first is None:
            return
        now = float(self._shares(report)[column])
        if first[column] > REACHED > now:
            words = f"at the first step its gradient was {first[column]:.2g} of the largest, now {now:.2g}"
            yield Fact(words, "faded later")

    def _first_step(self, report: StepReport) -> Iterator[Fact]:
        if report.update == 0:
            yield Fact("no update that was watched came before", "before any update")

    def _update(self, column: int | None) -> Iterator[Fact]:
        ratios = self._memory["shares"].get("update_ratio")
        if ratios is None or np.isnan(ratios).all():
            return
        if column is None:
            column = int(np.nanargmax(ratios))
        if np.isfinite(ratios[column]):
            yield Fact(
                f"the last sampled update moved {self._layers.names[column]} by {ratios[column]:.2g} of its norm"
            )

    def _rate(self, report: StepReport) -> Iterator[Fact]:
        rate, best = report.learning_rate, self._memory["best"]
        if rate is None:
            return
        if best is not None and best[2] and best[1] < report.step and rate > RATE_ROSE * best[2]:
            times = f", {rate / best[2]:.3g} times that of step {best[1]}, where the loss was lowest"
            yield Fact(f"the learning rate is {rate:.3g}{times}", "rate rose")
        else:
            yield Fact(f"the learning rate is {rate:.3g}")

    def _divergence(self, report: StepReport) -> Iterator[Fact]:
        memory = self._memory
        for first, last, what in COURSES:
            if not memory[first]:
                continue
            start, (step, value) = float(np.median(np.abs(memory[first]))), memory[last]
            if start > 0 and abs(value) >= GREW * start:
                grew = f"its {what} grew from {start:.3g} to {value:.3g} at step {step}"
                yield Fact(f"the run had diverged before: {grew}", "diverged")
                yield from self._rate(report)
                return
        yield from self._grown_weight()

    def _grown_weight(self) -> Iterator[Fact]:
        first, last = self._memory["first_weights"], self._memory["shares"].get("weight_norm")
        if first is None or last is None:
            return
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.where(first > 0, last / first, np.nan)
        if not np.isnan(growth).all() and np.nanmax(growth) >= GREW:
            worst = int(np.nanargmax(growth))
            grew = f"the norm of {self._layers.names[worst]} grew from {first[worst]:.3g} to {last[worst]:.3g}"
            yield Fact(f"the run had diverged before: {grew}", "diverged")
