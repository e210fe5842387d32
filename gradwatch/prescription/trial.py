"""One short, watched run of a treated model.

Enters: a problem, treatments, a seed. Leaves: what was found, the loss on held-out batches before and after, the time a
step took. The generators of torch, numpy and random are as they were.
"""

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.optim import Optimizer

from gradwatch.explain.replica import as_it_was
from gradwatch.findings import Finding
from gradwatch.prescription.problem import Problem, apart, given
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.training import forward, held_out_losses, stepper
from gradwatch.prescription.treatments import Treatment
from gradwatch.watcher import Watcher, watch

__all__ = ["FEWEST", "LONGEST", "Run", "run"]

LONGEST = 300  # updates: a few hundred
FEWEST = 30  # updates: the detectors' patience is ten, and a loss takes some to move
HOPELESS = 25  # updates in a row whose loss is not finite end a run: no optimizer comes back from there

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        seed: that it began under.
        steps: updates that it made.
        before: loss on the held-out batches of the model as it was made and treated.
        after: the same as it was trained.
        findings: the watcher's.
        seconds_per_step: of the training loop.
        is_whole: whether it came to its end before the deadline.
        is_hopeless: whether it ended early, its loss not finite for ``HOPELESS`` updates, or raising an error.
        not_done: what of the treatments could not be done, or not by their code, and why; empty where all could.
        given: how the model is given a batch's inputs ``x``, as Python writes it.
        seconds_around: that a treated run takes beside the loop: to make a model and to judge it on held-out batches.
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
    given: str = "x"
    seconds_around: float = 0.0


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
) -> Run:
    """Trains a fresh model for ``steps`` updates.

    Args:
        problem: what is trained.
        treatments: changes made first, in this order.
        seed: of every generator.
        steps: updates at most.
        deadline: on ``time.perf_counter``: the run is broken off there, and not whole.
        enough: on the same clock: a run that has made ``FEWEST`` updates by then ends there, and is whole; the first if
            something was found, the second if nothing was.
        stop_at: a kind of finding: the run ends, whole, as soon as one of it or of severity ``error`` is raised, since
            then it is no cure any more.
        log_dir: where its TensorBoard files go; None writes none.

    Raises:
        NotApplicableError: where a treatment fits nothing in this model.
    """
    recipe = _Recipe(problem, treatments, seed, steps)
    until = _Until(steps, deadline, enough, stop_at)
    calls = 1 if problem.hands_out else 2  # of make_model: the first time it is seen whether it makes another
    with as_it_was(), _silent():
        setup, making = _timed(recipe.make)
        optimizer = problem.fresh_optimizer(setup.model, setup.loss_fn)
        before, judging = _timed(lambda: recipe.untrained_loss(setup, deadline))
        _seed(seed + 1)
        with watch(setup.model, optimizer, clip=setup.clip, log_dir=log_dir, on_finding=until.raised.append) as watcher:
            step = stepper(setup, optimizer, watcher.observe_loss)
            (made, is_hopeless), training = _timed(lambda: _loop(step, recipe, optimizer, watcher, until))
            findings = tuple(watcher.findings)
        if not all(mode.called for mode in setup.modes):  # known no earlier: a branch may be taken late
            raise NotApplicableError("neither the model nor its loss calls, by name, what it would answer")
        after, judging_again = _timed(lambda: recipe.trained_loss(setup, deadline))
    return Run(
        seed, made, before, after, findings,
        seconds_per_step=training / max(made, 1),
        is_whole=time.perf_counter() <= deadline,
        is_hopeless=is_hopeless,
        not_done="; ".join(setup.not_done),
        given=given(setup.model, setup.batches[0][0]),
        seconds_around=making / calls + max(judging, judging_again),
    )  # fmt: skip


@dataclass(frozen=True)
class _Recipe:
    """How a run's setup is made, and made once more."""

    problem: Problem
    treatments: tuple[Treatment, ...]
    seed: int
    steps: int

    def make(self) -> Setup:
        _seed(self.seed)
        batches = list(self.problem.training[: self.steps])  # no treatment looks at one that is not reached
        setup = Setup(self.problem.fresh_model(), batches, apart(self.problem.loss_fn))
        for treatment in self.treatments:
            treatment.change(setup)
        return setup

    def untrained_loss(self, setup: Setup, deadline: float) -> float:
        """On held-out batches, before the run, which begins with the loss as it is.

        Those of which a fresh, untreated model has no finite loss judge no other, if there are any that do.
        """
        losses = held_out_losses(self.problem, replace(setup, loss_fn=apart(setup.loss_fn)), deadline)
        judging = [math.isfinite(loss) for loss in losses]
        if self.treatments or not any(judging):
            return statistics.fmean(losses)
        self.problem.held_out[:] = itertools.compress(self.problem.held_out, judging)
        return statistics.fmean(itertools.compress(losses, judging))

    def trained_loss(self, setup: Setup, deadline: float) -> float:
        """On held-out batches; NaN where training led the model to where this raises."""
        try:
            return statistics.fmean(held_out_losses(self.problem, setup, deadline))
        except Exception:
            if not self.does_untrained(lambda fresh: held_out_losses(self.problem, fresh, deadline)):
                raise
        return math.nan

    def does_untrained(self, attempt: Callable[[Setup], object]) -> bool:
        """Whether the same model, untrained, gets through ``attempt``.

        If so, what a trained one raised is what training did to it: a loss that refuses NaN, say. If not, it is a fault
        of the model or of the batch.
        """
        try:
            attempt(self.make())
        except Exception:
            return False
        return True


@dataclass(frozen=True)
class _Until:
    """When a run ends, and what it has shown so far; the fields as ``run`` takes them."""

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
    step: Callable[[int], float], recipe: _Recipe, optimizer: Optimizer, watcher: Watcher, until: _Until
) -> tuple[int, bool]:
    """(updates made, whether it was given up since the loss stayed NaN or Inf, or there was none)."""
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
    """What a loss that raises is to the watcher: an update whose loss is NaN."""
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
    """What a trial finds is told in the ranking, not line by line."""
    logger = logging.getLogger("gradwatch")
    refuse = lambda record: False
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
