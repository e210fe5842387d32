"""One short, watched run of a treated model.

Enters: a problem, treatments, a seed. Leaves: what was found, the loss on held-out batches before and after, the time a
step took. The generators of torch, numpy and random are as they were.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.findings import Finding
from gradwatch.prescription.problem import Problem, called, owned
from gradwatch.prescription.setup import Setup
from gradwatch.prescription.surgery.calls import evaluating
from gradwatch.prescription.treatments import Treatment
from gradwatch.replica import as_it_was
from gradwatch.watcher import watch

__all__ = ["LONGEST", "Run", "run"]

LONGEST = 300  # updates: a few hundred
HOPELESS = 25  # updates in a row whose loss is not finite end a run: no optimizer comes back from there


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        seed: that it began under.
        steps: updates that it made.
        before, after: loss on the held-out batches, of the model as it was made and as it was trained.
        findings: the watcher's.
        seconds_per_step: of the training loop.
        is_whole: whether it came to its end before the deadline.
    """

    seed: int
    steps: int
    before: float
    after: float
    findings: tuple[Finding, ...]
    seconds_per_step: float
    is_whole: bool


def run(
    problem: Problem,
    treatments: tuple[Treatment, ...],
    seed: int,
    steps: int,
    deadline: float = math.inf,
    *,
    enough: float = math.inf,
    log_dir: Path | None = None,
) -> Run:
    """Trains a fresh model for ``steps`` updates.

    Args:
        problem: what is trained.
        treatments: changes made first, in this order.
        seed: of every generator.
        steps: updates at most.
        deadline: on ``time.perf_counter``: the run is broken off there, and not whole.
        enough: on the same clock: a run that has made ``FEWEST`` updates by then ends there, and is whole.
        log_dir: where its TensorBoard files go; None writes none.

    Raises:
        NotApplicableError: where a treatment fits nothing in this model.
    """
    with as_it_was(), _silent():
        _seed(seed)
        setup = Setup(problem.fresh_model(), list(problem.training), problem.loss_fn)
        for treatment in treatments:
            treatment.change(setup)
        optimizer = problem.make_optimizer(list(setup.model.parameters()))
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"make_optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}.")
        before = _held_out_loss(problem, setup)
        _seed(seed + 1)
        with watch(setup.model, optimizer, clip=setup.clip, log_dir=log_dir) as watcher:
            made, seconds, is_whole = _train(setup, optimizer, steps, watcher.observe_loss, deadline, enough)
            findings = tuple(watcher.findings)
        after = _held_out_loss(problem, setup)
    return Run(seed, made, before, after, findings, seconds / max(made, 1), is_whole)


FEWEST = 30  # updates: the detectors' patience is ten, and a loss takes some to move


def _train(
    setup: Setup, optimizer: Optimizer, steps: int, observe: Any, deadline: float, enough: float
) -> tuple[int, float, bool]:
    """(updates made, seconds, whether the run came to its end)."""
    rates = [group["lr"] for group in optimizer.param_groups]
    begin = time.perf_counter()
    lost = 0
    for step in range(steps):
        now = time.perf_counter()
        if now > deadline or lost >= HOPELESS or (now > enough and step >= FEWEST):
            return step, now - begin, now <= deadline
        warm = min(1.0, (step + 1) / setup.warm_up) if setup.warm_up else 1.0
        if setup.rate != 1.0 or setup.warm_up:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * setup.rate * warm
        loss = _step(setup, optimizer, step, observe)
        lost = 0 if math.isfinite(loss) else lost + 1
    seconds = time.perf_counter() - begin
    return steps, seconds, True


def _step(setup: Setup, optimizer: Optimizer, step: int, observe: Any) -> float:
    inputs, targets = owned(setup.batches[step % len(setup.batches)])
    optimizer.zero_grad()
    with _within(setup):
        loss = setup.loss_fn(called(setup.model, inputs), setup.targets_of(targets))
    observe(_scalar(loss))
    total = loss if setup.penalty is None else loss + setup.penalty(setup.model, inputs)
    (total * setup.loss_scale).backward()
    if setup.loss_scale != 1.0:
        _divide_gradients_(setup.model, setup.loss_scale)
    optimizer.step()
    if setup.after_update is not None:
        setup.after_update(setup.model)
    return float(loss.detach())


def _divide_gradients_(model: nn.Module, scale: float) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale


def _held_out_loss(problem: Problem, setup: Setup) -> float:
    """The mean of the user's loss over the held-out batches; NaN where any is."""
    _seed(0)  # models that draw noise meet the same noise in every trial
    with evaluating(setup.model), _within(setup):
        losses = [float(_scalar(setup.loss_fn(called(setup.model, x), y))) for x, y in map(owned, problem.held_out)]
    return float(np.mean(losses))


@contextlib.contextmanager
def _within(setup: Setup) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in setup.modes:
            stack.enter_context(mode)
        yield


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _scalar(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    found = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise TypeError(f"loss_fn: expected it to return a scalar tensor, found {found}.")


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
