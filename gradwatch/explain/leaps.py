"""Tell what leapt while updates were small: one weight that something else wrote into, or the loss of one batch.

What it measures: at each sample, how far an update moves each weight, and the total gradient norm; and at each step the
loss. An update moves a weight about as far as the sampled one did, times how much larger its gradient is, so that there
is a most that the updates since then can have made of it. A weight a hundred times beyond that was written by something
else. A loss that leaps a thousandfold after updates that small leapt because of its batch.

A run that diverges by its rate leaps, too, but its gradients, its updates or its rate have grown before. No healthy run
has either leap; even so they join the cause of a finding only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwatch.explain.clues import Fact
from gradwatch.explain.current import current_norms
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Leaps"]

BEYOND = 100.0  # times the most that updates can have made of a weight
UNLIKE_SAMPLED = 10.0  # times the sampled move that another update of the same gradient makes at most
ADAPTIVE = 32.0  # times the rate: the longest move of an entry by Adam, 1/√(1 − β₂)
LEAPT = 1e3  # times the loss of the step before
ABOVE_FIRST = 10.0  # times the first loss: near convergence a loss leaps on its own, tiny, scale
QUIET_TOTAL = 3.0  # times the total norm of the latest sample
QUIET_RATE = 1.5  # times its rate
QUIET_MOVE = 0.1  # share of the norm of all weights by which the sampled update moved them
RECENT = 10  # steps for which a leap of the loss explains what follows


@dataclass
class Sample:
    """The figures of a sampled step.

    Attributes:
        update, step: its numbers.
        total: the total gradient norm.
        rate: the learning rate.
        norms: (P,) of the weights before its update.
        moves: (P,) ‖Δw‖ of its update.
    """

    VERSION: ClassVar[int] = 1

    update: int
    step: int
    total: float
    rate: float
    norms: Floats
    moves: Floats


@dataclass
class Leaps:
    """The course of a run as far as it shows what leapt.

    Attributes:
        sample: the latest sampled step; None before.
        earlier: the sampled step before that one.
        first_loss: of the first step.
        loss, total, rate: of the latest step.
        before_total: the total gradient norm of the step before it.
        leap_step, leap_from, leap_to: the latest leap of the loss.
    """

    VERSION: ClassVar[int] = 1

    sample: Sample | None = None
    earlier: Sample | None = None
    first_loss: float = math.nan
    loss: float = math.nan
    total: float = math.nan
    rate: float = math.nan
    before_total: float = math.nan
    leap_step: int = -1
    leap_from: float = math.nan
    leap_to: float = math.nan

    def add(self, report: StepReport) -> None:
        """Take in one step."""
        loss = math.nan if report.loss is None else report.loss
        self._note_leap(report.step, loss)
        if math.isnan(self.first_loss):
            self.first_loss = loss
        self.before_total = self.total
        self.loss, self.total = loss, report.grad_norm_total
        self.rate = math.nan if report.learning_rate is None else report.learning_rate
        norms, ratios = report.figures.get("weight_norm"), report.figures.get("update_ratio")
        if report.sampled and norms is not None:
            moves = norms * ratios if ratios is not None else np.full(len(norms), np.nan)
            self.earlier = self.sample
            self.sample = Sample(report.update, report.step, report.grad_norm_total, self.rate, norms, moves)

    def overwritten(self, layers: Layers, report: StepReport) -> Iterator[Fact]:
        """Yield the weight that lies beyond what its updates can have made of it."""
        is_sampled = self.sample is not None and self.sample.update == report.update
        known = self.earlier if is_sampled else self.sample
        if known is None or report.learning_rate is None:
            return
        now = report.figures["weight_norm"] if is_sampled else _finite(current_norms(layers))
        with np.errstate(over="ignore", invalid="ignore"):
            growth = now / self._most(known, report, layers)
        # a norm that overflows counts, unless the update of this very step has made it of a gradient that is Inf
        is_judged = layers.is_weight & ~np.isnan(growth) & (report.nonfinite == 0)
        growth = np.where(is_judged, growth, 0.0)
        if not len(growth) or growth.max() <= BEYOND:
            return
        worst = int(np.argmax(growth))
        name = layers.names[worst]
        yield Fact(
            f"{name} has norm {now[worst]:.3g}, and had {known.norms[worst]:.3g} at step {known.step}; no update since "
            "was large enough for that, so something other than the optimizer wrote into it.",
            "overwritten",
            name,
        )

    def one_batch(self, step: int) -> Iterator[Fact]:
        """Yield that the loss leapt with one batch."""
        if self.leap_step < 0 or step - self.leap_step > RECENT:
            return
        leap = f"from {self.leap_from:.3g} to {self.leap_to:.3g} at step {self.leap_step}"
        why = "though the updates before were small: the batch of that step is unlike those before it"
        yield Fact(f"The loss leapt {leap}, {why}.", "one batch")

    def _most(self, known: Sample, report: StepReport, layers: Layers) -> Floats:
        """Return (P,) the largest norms that the updates since a sample can have made of the weights."""
        updates = max(report.update - known.update, 1)
        steeper = max(1.0, self.before_total / known.total) if known.total > 0 else math.inf
        faster = max(1.0, self.rate / known.rate) if known.rate > 0 else math.inf
        earlier = UNLIKE_SAMPLED * updates * np.nan_to_num(known.moves, nan=0.0) * steeper * faster
        longest = np.fmax(np.nan_to_num(report.grad_norm, nan=0.0), ADAPTIVE * np.sqrt(layers.size))
        return known.norms + earlier + self.rate * (1 + updates) * longest

    def _note_leap(self, step: int, loss: float) -> None:
        """Note a loss that is far beyond that of the step before, after an update that was small."""
        before = abs(self.loss)
        if not (math.inf > loss > LEAPT * before and loss > ABOVE_FIRST * abs(self.first_loss) and self._was_quiet()):
            return
        self.leap_step, self.leap_from, self.leap_to = step, self.loss, loss

    def _was_quiet(self) -> bool:
        """Tell whether the update of the latest step was as small as the latest sampled one."""
        sample = self.sample
        if sample is None or self.earlier is None or not self.total <= QUIET_TOTAL * sample.total:
            return False
        if self.rate > QUIET_RATE * sample.rate:
            return False
        with np.errstate(over="ignore"):
            moved, size = (float(np.nansum(values**2)) ** 0.5 for values in (sample.moves, sample.norms))
        return moved <= QUIET_MOVE * size


def _finite(norms: Floats) -> Floats:
    """Return norms without those of weights that hold Inf: the update of the sick step itself may have made it."""
    return np.where(np.isfinite(norms), norms, np.nan)
