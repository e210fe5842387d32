"""Residual connections: stacks that vanish, plain and with a way around each layer; and what depth does to those."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from activations import stack
from side_by_side import Table, Way, changed, compare
from torch import nn

from gradwatch.remedies import add_residuals_, init_depth_scaled_, init_he_


def both(name: str, function: Callable[[], nn.Module]) -> list[Way]:
    """Return the ways to train twelve layers without and with residual connections."""
    plain = partial(stack, function, 12)
    return [
        Way(f"do nothing: {name}", plain, 0.05),
        Way(f"residual: {name}", changed(plain, add_residuals_), 0.05),
    ]


def main() -> list[str]:
    """Train three stacks that vanish, and a deep residual network that explodes."""
    deep = changed(partial(stack, nn.ReLU, 24), add_residuals_, init_he_)
    return compare(
        "residual",
        Table(
            "12 layers, plain and residual",
            [
                *both("Sigmoid", nn.Sigmoid),
                *both("ReLU, PyTorch's initialisation", nn.ReLU),
                *both("Tanh, PyTorch's initialisation", nn.Tanh),
            ],
            steps=150,
        ),
        Table(
            "24 residual layers of ReLU, He",
            [
                Way("do nothing", deep, 0.05),
                Way("depth-scaled, branches ÷ √24", changed(deep, init_depth_scaled_), 0.05),
                Way("clip-norm, 1", deep, 0.05, clip=1.0),
                Way("lower-learning-rate, 0.0005", deep, 0.0005),
            ],
            steps=100,
        ),
    )
