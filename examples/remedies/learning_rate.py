"""The learning rate: too high, too low, and too high in the first steps only."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    )
