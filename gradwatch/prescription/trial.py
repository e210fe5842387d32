"""One short, watched run of a treated model.

Enters: a problem, treatments, a seed. Leaves: what was found, the loss on held-out batches before and after, the time a
step took. The generators of torch, numpy and random are as they were.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim import Optimizer

from gradwatch.findings import Finding
from gradwatch.prescription.problem import Problem
from gradwatch.prescription.setup import Setup
from gradwatch.prescription.training import forward, held_out_loss, stepper
from gradwatch.prescription.treatments import Treatment
from gradwatch.replica import as_it_was
from gradwatch.watcher import watch

__all__ = ["FEWEST", "LONGEST", "Run", "run"]

LONGEST = 300  # updates: a few hundred
FEWEST = 30  # updates: the detectors' patience is ten, and a loss takes some to move
HOPELESS = 25  # updates in a row whose loss is not finite end a run: no optimizer comes back from there


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        seed: that it began under.
        steps: updates that it made.
        before: loss on the held-out batches of the model as it was made, if it is untreated; else NaN.
        after: the same as it was trained.
        findings: the watcher's.
        seconds_per_step: of the training loop.
        is_whole: whether it came to its end before the deadline.
        is_hopeless: whether it ended early, its loss not finite for ``HOPELESS`` updates, or raising an error.
        not_done: what of a treatment could not be done, and why; empty where all could.
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
    with as_it_was(), _silent():
        _seed(seed)
        setup = _treated(problem, treatments)
        optimizer = problem.make_optimizer(list(setup.model.parameters()))
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"make_optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}.")
        before = math.nan if treatments else held_out_loss(problem, setup, deadline)
        does_untrained = functools.partial(_does_untrained, problem, treatments, seed)
        _seed(seed + 1)
        raised: list[Finding] = []
        with watch(setup.model, optimizer, clip=setup.clip, log_dir=log_dir, on_finding=raised.append) as watcher:
            step = stepper(setup, optimizer, watcher.observe_loss)
            begin = time.perf_counter()

            def is_enough(number: int) -> bool:
                is_late = time.perf_counter() > enough[0 if raised else 1]
                return (is_late and number >= FEWEST) or (stop_at is not None and _is_sick(raised, stop_at))

            def step_or_end(number: int) -> float | None:
                try:
                    return step(number)
                except Exception:
                    if number == 0 or not does_untrained(lambda fresh: forward(fresh, number)):
                        raise
                watcher.observe_loss(math.nan)  # to the watcher an update without gradients, whose loss is NaN
                optimizer.zero_grad()
                optimizer.step()
                return None

            made, is_hopeless = _steps(step_or_end, steps, deadline, is_enough)
            seconds = time.perf_counter() - begin
            findings = tuple(watcher.findings)
        try:
            after = held_out_loss(problem, setup, deadline)
        except Exception:
            if not does_untrained(lambda fresh: held_out_loss(problem, fresh, deadline)):
                raise
            after = math.nan
    is_whole = time.perf_counter() <= deadline
    return Run(seed, made, before, after, findings, seconds / max(made, 1), is_whole, is_hopeless, setup.not_done)


def _steps(
    step: Callable[[int], float | None], steps: int, deadline: float, is_enough: Callable[[int], bool]
) -> tuple[int, bool]:
    """(updates made, whether it was given up since the loss stayed NaN or Inf, or there was none)."""
    lost = 0
    for number in range(steps):
        if lost >= HOPELESS:
            return number, True
        if time.perf_counter() > deadline or is_enough(number):
            return number, False
        loss = step(number)
        if loss is None:
            return number, True
        lost = 0 if math.isfinite(loss) else lost + 1
    return steps, False


def _treated(problem: Problem, treatments: tuple[Treatment, ...]) -> Setup:
    setup = Setup(problem.fresh_model(), list(problem.training), problem.loss_fn)
    for treatment in treatments:
        treatment.change(setup)
    return setup


def _does_untrained(
    problem: Problem, treatments: tuple[Treatment, ...], seed: int, attempt: Callable[[Setup], object]
) -> bool:
    """Whether the same model, untrained, gets through ``attempt``.

    If so, what a trained one raised is what training did to it: a loss that refuses NaN, say. If not, it is a fault of
    the model or of the batch.
    """
    _seed(seed)
    try:
        attempt(_treated(problem, treatments))
    except Exception:
        return False
    return True


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
