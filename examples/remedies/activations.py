"""Activation functions: twelve sigmoids that vanish, four ReLUs that die, and the same with other functions.

A function alone is half a cure: PyTorch's own initialisation of nn.Linear lets a deep stack of ReLUs fade, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from side_by_side import Way, compare, quiet
from torch import Tensor, nn

WIDTH = 64
RATE = 0.05


class Maxout(nn.Module):
    """The larger of two linear functions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (WIDTH, 2)).amax(-1)


def stack(function: Callable[[], nn.Module], depth: int, gain: str | None = None) -> nn.Sequential:
    """Linear layers with ``function`` behind each; ``gain`` is a nonlinearity whose initialisation they get."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), function())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    for layer in model:
        if isinstance(layer, nn.Linear) and gain is not None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity=gain)
            nn.init.zeros_(layer.bias)
    return model


def maxout(depth: int) -> nn.Sequential:
    """``stack`` of maxout layers, initialised so that the larger of two keeps the variance."""
    model = nn.Sequential(*(Maxout() for _ in range(depth)), nn.Linear(WIDTH, 10))
    for layer in model[:-1]:
        nn.init.kaiming_normal_(layer.linear.weight, nonlinearity="linear")
    return model


def main() -> list[str]:
    """Twelve layers that vanish; four that die."""
    deep = partial(stack, depth=12)
    shallow = partial(stack, depth=4)
    return [
        *compare(
            "activations",
            "12 layers, plain descent",
            [
                Way("do nothing: Sigmoid", partial(deep, nn.Sigmoid), RATE),
                Way("relu, PyTorch's initialisation", partial(deep, nn.ReLU), RATE),
                Way("relu, He", partial(deep, nn.ReLU, gain="relu"), RATE),
                Way("leaky-relu, He", partial(deep, nn.LeakyReLU, gain="leaky_relu"), RATE),
                Way("prelu, He", partial(deep, nn.PReLU, gain="relu"), RATE),
                Way("elu, variance 1/fan_in", partial(deep, nn.ELU, gain="linear"), RATE),
                Way("selu, variance 1/fan_in", partial(deep, nn.SELU, gain="linear"), RATE),
                Way("gelu, He", partial(deep, nn.GELU, gain="relu"), RATE),
                Way("maxout, variance 1/fan_in", partial(maxout, 12), RATE),
            ],
            steps=150,
        ),
        *compare(
            "activations",
            "4 layers, Adam at 0.06",
            [
                Way("do nothing: ReLU", partial(shallow, nn.ReLU), 0.06, optimizer=torch.optim.Adam),
                Way("leaky-relu, slope 0.01", partial(shallow, nn.LeakyReLU), 0.06, optimizer=torch.optim.Adam),
                Way("prelu", partial(shallow, nn.PReLU), 0.06, optimizer=torch.optim.Adam),
                Way("elu", partial(shallow, nn.ELU), 0.06, optimizer=torch.optim.Adam),
                Way("gelu", partial(shallow, nn.GELU), 0.06, optimizer=torch.optim.Adam),
                Way("he", partial(shallow, nn.ReLU, gain="relu"), 0.06, optimizer=torch.optim.Adam),
                Way("lower-learning-rate, 0.003", partial(shallow, nn.ReLU), 0.003, optimizer=torch.optim.Adam),
            ],
            steps=150,
        ),
    ]


if __name__ == "__main__":
    quiet()
    main()
