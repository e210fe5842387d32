"""Activation functions: sigmoids that vanish, ReLUs that die, a sigmoid that is asked for 10, and what helps.

A function alone is half a cure: PyTorch's own initialisation of nn.Linear lets a deep stack of ReLUs fade, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from side_by_side import Table, Way, changed, compare
from torch import Tensor, nn
from torch.nn import functional as F

from gradwatch.remedies import init_he_, init_lecun_, remove_output_activation_, replace_activations_, use_maxout_

WIDTH = 64
RATE = 0.05


def stack(function: Callable[[], nn.Module], depth: int) -> nn.Sequential:
    """Return linear layers, each followed by ``function``, and a linear layer for the classes."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), function())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def other(function: nn.Module) -> Callable[[nn.Module, Tensor], None]:
    """Return the change that puts ``function`` in the place of every activation function."""
    return partial(replace_activations_, activation=function)


def maxout(model: nn.Module, _: Tensor) -> None:
    """Put maxout in the place of every layer and its activation function."""
    use_maxout_(model)


def squashed() -> nn.Sequential:
    """Return a network whose outputs lie between 0 and 1."""
    return nn.Sequential(stack(nn.ReLU, depth=1), nn.Sigmoid())


def linear_output(model: nn.Module, inputs: Tensor) -> None:
    """Take the activation function away that ends the model."""
    remove_output_activation_(model, inputs)


def error_of_tens(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return the squared error of the classes as ten numbers, 10 for the right one, summed over the ten."""
    return (outputs - 10.0 * F.one_hot(classes, 10)).square().sum(1).mean()


def main() -> list[str]:
    """Train twelve layers that vanish, four that die, and an output that cannot reach its targets."""
    deep = partial(stack, nn.Sigmoid, depth=12)
    fast = partial(Way, rate=0.06, optimizer=torch.optim.Adam)
    shallow = partial(stack, nn.ReLU, depth=4)
    return compare(
        "activations",
        Table(
            "12 layers, plain descent",
            [
                Way("do nothing: Sigmoid", deep, RATE),
                Way("relu, PyTorch's initialisation", changed(deep, other(nn.ReLU())), RATE),
                Way("relu, He", changed(deep, other(nn.ReLU()), init_he_), RATE),
                Way("leaky-relu, He", changed(deep, other(nn.LeakyReLU(0.1)), init_he_), RATE),
                Way("prelu, He", changed(deep, other(nn.PReLU()), init_he_), RATE),
                Way("elu, variance 1/fan_in", changed(deep, other(nn.ELU()), init_lecun_), RATE),
                Way("selu, variance 1/fan_in", changed(deep, other(nn.SELU()), init_lecun_), RATE),
                Way("gelu, He", changed(deep, other(nn.GELU()), init_he_), RATE),
                Way("maxout, variance 1/fan_in", changed(deep, maxout, init_lecun_), RATE),
            ],
            steps=150,
        ),
        Table(
            "4 layers, Adam at 0.06",
            [
                fast("do nothing: ReLU", shallow),
                fast("leaky-relu, slope 0.1", changed(shallow, other(nn.LeakyReLU(0.1)))),
                fast("prelu", changed(shallow, other(nn.PReLU()))),
                fast("elu", changed(shallow, other(nn.ELU()))),
                fast("gelu", changed(shallow, other(nn.GELU()))),
                fast("he", changed(shallow, init_he_)),
                fast("lower-learning-rate, 0.003", shallow, rate=0.003),
            ],
            steps=150,
        ),
        Table(
            "A sigmoid at the output, squared error of targets of 10",
            [
                Way("do nothing", squashed, 0.01, loss=error_of_tens),
                Way("linear-output", changed(squashed, linear_output), 0.01, loss=error_of_tens),
            ],
            steps=300,
        ),
    )
