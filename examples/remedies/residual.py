"""Residual connections: stacks that vanish, plain and with a way around each layer; and what depth does to those."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from activations import WIDTH, stack
from side_by_side import Way, compare, quiet
from torch import Tensor, nn


class Residual(nn.Module):
    """x + scale · f(x)."""

    def __init__(self, inner: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


def residual(
    function: Callable[[], nn.Module], depth: int, gain: str | None = None, scale: float = 1.0
) -> nn.Sequential:
    """``stack`` with a connection around each linear layer and its function."""
    parts = iter(stack(function, depth, gain))
    blocks = [Residual(nn.Sequential(next(parts), next(parts)), scale) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 10))


def main() -> list[str]:
    """Two stacks that vanish, and a deep residual network that explodes."""
    return [
        *compare(
            "residual",
            "12 layers, plain and residual",
            [
                Way("do nothing: Sigmoid", partial(stack, nn.Sigmoid, 12), 0.05),
                Way("residual: Sigmoid", partial(residual, nn.Sigmoid, 12), 0.05),
                Way("do nothing: ReLU, PyTorch's initialisation", partial(stack, nn.ReLU, 12), 0.05),
                Way("residual: ReLU, PyTorch's initialisation", partial(residual, nn.ReLU, 12), 0.05),
                Way("do nothing: Tanh, PyTorch's initialisation", partial(stack, nn.Tanh, 12), 0.05),
                Way("residual: Tanh, PyTorch's initialisation", partial(residual, nn.Tanh, 12), 0.05),
            ],
            steps=150,
        ),
        *compare(
            "residual",
            "24 residual layers of ReLU, He",
            [
                Way("do nothing", partial(residual, nn.ReLU, 24, "relu"), 0.05),
                Way("depth-scaled, branches ÷ √24", partial(residual, nn.ReLU, 24, "relu", 24**-0.5), 0.05),
                Way("clip-norm, 1", partial(residual, nn.ReLU, 24, "relu"), 0.05, clip=1.0),
                Way("lower-learning-rate, 0.0005", partial(residual, nn.ReLU, 24, "relu"), 0.0005),
            ],
            steps=100,
        ),
    ]


if __name__ == "__main__":
    quiet()
    main()
