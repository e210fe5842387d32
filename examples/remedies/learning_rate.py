"""The learning rate: too high, too low, and too high in the first steps only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from activations import stack
from side_by_side import Table, Way, compare, squared_error
from torch import nn


def rising(steps: int) -> object:
    """Return a schedule that warms up over so many steps."""
    return lambda step: min(1.0, (step + 1) / steps)


def divided_by_zero(step: int) -> float:
    """Return 1 up to step 20, and what a ratio of two zeros is from there on."""
    return 1.0 if step < 20 else math.nan


def finite(schedule: Callable[[int], float]) -> Callable[[int], float]:
    """Return ``schedule`` with 0 in place of what is no number."""
    return lambda step: rate if math.isfinite(rate := schedule(step)) else 0.0


def over_after(steps: int) -> Callable[[int], float]:
    """Return a schedule that falls to 0 over so many steps."""
    return lambda step: max(0.0, 1.0 - step / steps)


def of_a_copy(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return an optimizer that holds the first layer, and copies of all others."""
    weight, bias, *others = parameters
    return torch.optim.SGD([weight, bias, *(nn.Parameter(each.detach().clone()) for each in others)], lr=lr)


RELU = partial(stack, nn.ReLU, 2)
LOOPS = (
    Table(
        "A loop that never clears its gradients",
        [
            Way("do nothing", RELU, clears="never"),
            Way("zero-grad", RELU),
            Way("lower-learning-rate, 0.01", RELU, 0.01, clears="never"),
        ],
        steps=150,
    ),
    Table(
        "A loop that clears its gradients between backward and step",
        [
            Way("do nothing", RELU, clears="before step"),
            Way("zero-grad-after-step", RELU),
            Way("higher-learning-rate, 1", RELU, 1.0, clears="before step"),
        ],
        steps=150,
    ),
)


def main() -> list[str]:
    """Train at four rates that are wrong."""
    relu = partial(stack, nn.ReLU, 2)
    raw = partial(Way, model=relu, rate=0.04, loss=squared_error)
    return compare(
        "learning_rate",
        Table(
            "Plain descent at a rate of 10",
            [
                Way("do nothing", relu, 10.0),
                Way("lower-learning-rate, 3", relu, 3.0),
                Way("lower-learning-rate, 1", relu, 1.0),
                Way("lower-learning-rate, 0.1", relu, 0.1),
                Way("warm-up over 50 steps", relu, 10.0, schedule=rising(50)),
                Way("clip-norm, 1", relu, 10.0, clip=1.0),
            ],
            steps=150,
        ),
        Table(
            "Squared error on unscaled pixels, a rate that only the first steps cannot bear",
            [
                raw("do nothing: 0.04"),
                raw("warm-up over 10 steps", schedule=rising(10)),
                raw("warm-up over 50 steps", schedule=rising(50)),
                raw("lower-learning-rate, 0.01", rate=0.01),
                raw("clip-norm, 1", clip=1.0),
                raw("do nothing: 0.1", rate=0.1),
                raw("warm-up over 50 steps: 0.1", rate=0.1, schedule=rising(50)),
            ],
            steps=150,
            scale=16.0,
        ),
        Table(
            "Plain descent at a rate of 1e-8",
            [
                Way("do nothing", relu, 1e-8),
                Way("higher-learning-rate, 1e-4", relu, 1e-4),
                Way("higher-learning-rate, 0.1", relu, 0.1),
                Way("Adam at 1e-8", relu, 1e-8, optimizer=torch.optim.Adam),
            ],
            steps=120,
        ),
        Table(
            "A schedule that divides by 0 from step 20 on",
            [
                Way("do nothing", relu, 0.3, schedule=divided_by_zero),
                Way("finite-rate", relu, 0.3, schedule=finite(divided_by_zero)),
            ],
            steps=30,
        ),
        Table(
            "A schedule that is over after three steps",
            [
                Way("do nothing", relu, 0.1, schedule=over_after(3)),
                Way("longer-schedule", relu, 0.1, schedule=over_after(150)),
                Way("higher-learning-rate, 0.3", relu, 0.3, schedule=over_after(3)),
            ],
            steps=150,
        ),
        Table(
            "An optimizer that holds copies of all layers but the first",
            [
                Way("do nothing", relu, 0.1, optimizer=of_a_copy),
                Way("own-parameters", relu, 0.1),
                Way("higher-learning-rate, 1", relu, 1.0, optimizer=of_a_copy),
            ],
            steps=150,
        ),
        *LOOPS,
    )
