"""Make one short, watched run of a treated model. The generators of torch, numpy and random are as they were."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.optim import Optimizer

from gradwatch.explain.replica import as_it_was
from gradwatch.findings import Finding
from gradwatch.prescription.problem import Problem, copy_loss
from gradwatch.prescription.rate_schedule import LONGEST
from gradwatch.prescription.training import forward, held_out_losses, stepper
from gradwatch.prescription.treatments import Treatment
from gradwatch.prescription.trial_program import TrialProgram
from gradwatch.remedies import NotApplicableError
from gradwatch.remedies.safe_modes import unused_modes
from gradwatch.watcher import Watcher

__all__ = ["FEWEST", "LONGEST", "TrialRun", "run"]

FEWEST = 30  # updates: the detectors' patience is ten, and a loss takes some to move
HOPELESS = 25  # updates in a row whose loss is not finite end a run: no optimizer comes back from there

T = TypeVar("T")


@dataclass(frozen=True)
class TrialRun:
    """The outcome of one run.

    Attributes:
        seed: of every generator at its beginning.
        steps: how many updates it made.
        before: loss on the held-out batches of the treated model, before training.
        after: the same after training.
        findings: the watcher's.
        seconds_per_step: of the training loop.
        is_whole: it came to its end before the deadline.
        is_hopeless: it ended early, since its loss was not finite for ``HOPELESS`` updates, or raised an error.
        not_done: what of the treatments could not be done, or not by their code, and why; empty if all could.
        seconds_around: what a treated run takes beside the loop, to make a model and to compute held-out losses.
        processor_seconds: that a step of the loop takes, whatever runs beside it.
    """

    seed: int
    steps: int
    before: float
    after: float
    findings: tuple[Finding, ...]
    seconds_per_step: float
    is_whole: bool
    is_hopeless: bool = False
    not_done: str = ""
    seconds_around: float = 0.0
    processor_seconds: float = 0.0


def run(
    problem: Problem,
    treatments: tuple[Treatment, ...],
    seed: int,
    steps: int,
    deadline: float = math.inf,
    *,
    enough: tuple[float, float] = (math.inf, math.inf),
    stop_at: str | None = None,
    log_dir: Path | None = None,
) -> TrialRun:
    """Train a fresh model for ``steps`` updates.

    Args:
        problem: what is trained.
        treatments: changes made to the training program, in this order.
        seed: of every generator.
        steps: updates at most.
        deadline: on ``time.perf_counter``: the run is broken off there, and is not whole.
        enough: on the same clock: a run that has made ``FEWEST`` updates by then ends there, and is whole; the first if
            something was found, the second if nothing was.
        stop_at: a kind of finding: the run ends, whole, as soon as one of it or of severity ``error`` is raised, since
            then it is no cure any more.
        log_dir: where its TensorBoard files go; None writes none.

    Raises:
        NotApplicableError: if a treatment fits nothing in this model.
    """
    recipe = _Recipe(problem, treatments, seed, steps)
    until = _EndOfRun(steps, deadline, enough, stop_at)
    calls = 1 if problem.hands_out else 2  # of make_model: the first time it is asked for two, to compare them
    with as_it_was(), _silent():
        program, making = _timed(recipe.make)
        optimizer = problem.fresh_optimizer(program.model, program.loss_fn)
        before, judging = _timed(lambda: recipe.untrained_loss(program, deadline))
        _seed(seed + 1)
        with program.watch(optimizer, log_dir, until.raised.append) as watcher:
            step = stepper(program, optimizer, watcher.observe_loss)
            begun = time.process_time()
            (made, is_hopeless), training = _timed(lambda: _loop(step, recipe, optimizer, watcher, until))
            working = time.process_time() - begun
            findings = tuple(watcher.findings)
        if any(unused_modes(program.loss_fn)):  # known only now, since a branch may be taken late
            raise NotApplicableError("neither the model nor its loss calls, by name, what it would answer")
        after, judging_again = _timed(lambda: recipe.trained_loss(program, deadline))
    return TrialRun(
        seed, made, before, after, findings,
        seconds_per_step=training / max(made, 1),
        is_whole=time.perf_counter() <= deadline,
        is_hopeless=is_hopeless,
        not_done="; ".join(program.not_done),
        seconds_around=making / calls + max(judging, judging_again),
        processor_seconds=working / max(made, 1),
    )  # fmt: skip


@dataclass(frozen=True)
class _Recipe:
    """The way in which a run's training program is made, and made once more."""

    problem: Problem
    treatments: tuple[Treatment, ...]
    seed: int
    steps: int

    def make(self) -> TrialProgram:
        _seed(self.seed)
        batches = self.problem.training[: self.steps]  # no treatment needs one that is not reached
        model = self.problem.fresh_model()
        return TrialProgram(model, batches, copy_loss(self.problem.loss_fn), self.treatments)

    def untrained_loss(self, program: TrialProgram, deadline: float) -> float:
        """Return the mean held-out loss before the run, computed by a copy of the loss: one may count its calls.

        Without treatments, held-out batches whose loss is not finite are dropped for good, unless that would drop all.
        """
        losses = held_out_losses(self.problem, program, deadline, copy_loss(program.loss_fn))
        are_finite = [math.isfinite(loss) for loss in losses]
        if self.treatments or not any(are_finite):
            return statistics.fmean(losses)
        self.problem.held_out[:] = itertools.compress(self.problem.held_out, are_finite)
        return statistics.fmean(itertools.compress(losses, are_finite))

    def trained_loss(self, program: TrialProgram, deadline: float) -> float:
        """Return the mean held-out loss; NaN if training led the model to where its loss raises."""
        try:
            return statistics.fmean(held_out_losses(self.problem, program, deadline))
        except Exception:
            if not self.does_untrained(lambda fresh: held_out_losses(self.problem, fresh, deadline)):
                raise
        return math.nan

    def does_untrained(self, attempt: Callable[[TrialProgram], object]) -> bool:
        """Return whether the same model, untrained, gets through ``attempt``.

        If so, an error of the trained one comes from training: a loss that refuses NaN, say. If not, the model or the
        batch is at fault.
        """
        try:
            attempt(self.make())
        except Exception:
            return False
        return True


@dataclass(frozen=True)
class _EndOfRun:
    """The conditions under which a run ends, and what it has shown so far; the fields are those of ``run``."""

    steps: int
    deadline: float
    enough: tuple[float, float]
    stop_at: str | None
    raised: list[Finding] = field(default_factory=list)

    def is_over(self, number: int) -> bool:
        now = time.perf_counter()
        is_enough = number >= FEWEST and now > self.enough[0 if self.raised else 1]
        return now > self.deadline or is_enough or (self.stop_at is not None and _is_sick(self.raised, self.stop_at))


def _loop(
    step: Callable[[int], float], recipe: _Recipe, optimizer: Optimizer, watcher: Watcher, until: _EndOfRun
) -> tuple[int, bool]:
    """Return (updates made, whether the run was given up since its loss stayed NaN or Inf, or raised)."""
    lost = 0
    for number in range(until.steps):
        if lost >= HOPELESS:
            return number, True
        if until.is_over(number):
            return number, False
        try:
            loss = step(number)
        except Exception:
            if number == 0 or not recipe.does_untrained(functools.partial(forward, number=number)):
                raise
            _update_without_gradients(optimizer, watcher)
            return number, True
        lost = 0 if math.isfinite(loss) else lost + 1
    return until.steps, False


def _update_without_gradients(optimizer: Optimizer, watcher: Watcher) -> None:
    """Show the watcher a loss that raises as an update whose loss is NaN."""
    watcher.observe_loss(math.nan)
    optimizer.zero_grad()
    optimizer.step()


def _timed(what: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    made = what()
    return made, time.perf_counter() - begin


def _is_sick(raised: Sequence[Finding], kind: str) -> bool:
    return any(finding.kind == kind or finding.severity == "error" for finding in raised)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Log nothing of gradwatch meanwhile: the ranking says what a trial finds."""
    logger = logging.getLogger("gradwatch")
    refuse = lambda record: False
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
