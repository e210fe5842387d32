"""Remember the course of a run: its first figures, its latest ones, its losses and rates. It tells nothing of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gradwatch.explain.leaps import Leaps
from gradwatch.explain.rates import RateCourse
from gradwatch.explain.update_sizes import UpdateSizes
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["GREW", "Course", "RunCourse", "shares"]

FIRST_STEPS = 5
GREW = 100.0  # times the first total norms or losses: the run had diverged before its first NaN
GREW_SINCE = 2.0  # times the first norm of a weight, beyond which its module no longer returns what it did at first
FIRST = ("weight_norm", "weight_mean")
TARGETS = ("target_floor", "target_error", "target_size", "target_low", "target_high", "output_low", "output_high")
REMEMBERED = (*TARGETS, "activation_rms", "dead_share", "saturated_share", "update_ratio", "weight_norm", "weight_mean")


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
class RunCourse:
    """The course of a whole run, remembered across steps.

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

    def add(self, layers: Layers, report: StepReport) -> None:
        """Take in one step."""
        if self.first_shares is None and report.gradients_are_finite:
            self.first_shares = shares(layers, report)
        self.total.add(report.step, report.grad_norm_total)
        self.loss.add(report.step, report.loss)
        self.rates.add(report)
        self.sizes.add(report)
        self.leaps.add(report)
        if report.loss is not None:
            self.lowest_loss = report.loss if self.lowest_loss is None else min(self.lowest_loss, report.loss)
        self._follow_first(report)
        if report.sampled:  # not at logged steps, so that the logging changes no cause
            self.latest.update({name: report.figures[name] for name in REMEMBERED if name in report.figures})
            self._note_first_move(layers)

    def arrays(self, columns: int) -> Iterator[tuple[str, Floats, tuple[int, ...]]]:
        """Yield the name of each array, the array, and the shape that it has with so many columns."""
        for what, named in (("first", self.first), ("latest", self.latest)):
            yield from ((f"{what}[{name}]", array, (columns,)) for name, array in named.items())
        yield from ((f"sizes.ranges[{name}]", array, (2, columns)) for name, array in self.sizes.ranges.items())
        if self.first_shares is not None:
            yield "first_shares", self.first_shares, (columns,)

    def _follow_first(self, report: StepReport) -> None:
        """Keep the figures of the first sample: those of activations as long as the weights are about as they were."""
        first, norms = self.first, report.figures.get("weight_norm")
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

    def _note_first_move(self, layers: Layers) -> None:
        """Keep how far the first sampled update moved a weight; its size counts as half of an ordinary one at least."""
        latest = self.latest
        ratios, norms = latest.get("update_ratio"), latest.get("weight_norm")
        if ratios is None or norms is None or not math.isnan(self.first_move):
            return
        with np.errstate(invalid="ignore"):
            moved = ratios * norms / np.fmax(norms, layers.ordinary_norm / 2)
        known = moved[layers.is_weight & np.isfinite(moved)]
        if len(known):
            self.first_move = float(known.max())
            self.first_mover = int(np.flatnonzero(moved == known.max())[0])

    def latest_move(self, layers: Layers) -> float:
        """Return the largest share of its norm by which an update moves a weight: at the latest sample, or by its rate.

        Where every update was rounded away, that of plain descent and that of Adam, lr·g and about lr an entry, bound
        what is asked for.
        """
        latest, first, rate = self.latest, self.first, self.rates.latest
        ratios, norms = latest.get("update_ratio"), latest.get("weight_norm")
        if ratios is None or norms is None or rate is None:
            return math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            by_rate = rate * np.fmax(first.get("grad_norm", norms * 0), np.sqrt(layers.size)) / norms
        known = [moves[layers.is_weight & np.isfinite(moves)] for moves in (ratios, by_rate)]
        largest = [float(moves.max(initial=0.0)) for moves in known]
        return largest[0] or largest[1]


def shares(layers: Layers, report: StepReport) -> Floats:
    """Return (P,) the root mean square of each gradient as a share of the largest; NaN if that is 0 or not finite."""
    rms = report.grad_norm / np.sqrt(np.maximum(layers.size, 1))
    largest = np.nanmax(rms, initial=0.0)
    return rms / largest if 0 < largest < np.inf else np.full(len(rms), np.nan)
