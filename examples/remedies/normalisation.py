"""Normalisation: deep sigmoids that vanish, weights so large that tanh is flat, and how small a batch may be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from activations import WIDTH, stack
from side_by_side import Way, compare, quiet
from torch import nn


def normalised(
    norm: Callable[[int], nn.Module], function: Callable[[], nn.Module], depth: int, spread: float | None = None
) -> nn.Sequential:
    """``stack`` with ``norm`` before each function; ``spread`` is the standard deviation of its first weights."""
    parts = [part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), norm(WIDTH), function())]
    return spread_out(nn.Sequential(*parts, nn.Linear(WIDTH, 10)), spread)


def spread_out(model: nn.Sequential, spread: float | None) -> nn.Sequential:
    """``model`` with hidden weights of standard deviation ``spread``."""
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear) and spread is not None:
            nn.init.normal_(layer.weight, std=spread)
    return model


def main() -> list[str]:
    """Depth, scale, and batch size."""
    flat = partial(normalised, function=nn.Tanh, depth=3, spread=3.0)
    return [
        *compare(
            "normalisation",
            "12 × Sigmoid, plain descent",
            [
                Way("do nothing", partial(stack, nn.Sigmoid, 12)),
                Way("batch-norm", partial(normalised, nn.BatchNorm1d, nn.Sigmoid, 12)),
                Way("batch-norm, batches of 4", partial(normalised, nn.BatchNorm1d, nn.Sigmoid, 12), batch=4),
                Way("layer-norm", partial(normalised, nn.LayerNorm, nn.Sigmoid, 12)),
                Way("rms-norm", partial(normalised, nn.RMSNorm, nn.Sigmoid, 12)),
            ],
            steps=200,
        ),
        *compare(
            "normalisation",
            "3 × Tanh whose weights begin at standard deviation 3",
            [
                Way("do nothing", lambda: spread_out(stack(nn.Tanh, 3), 3.0)),
                Way("batch-norm", partial(flat, nn.BatchNorm1d)),
                Way("layer-norm", partial(flat, nn.LayerNorm)),
                Way("rms-norm", partial(flat, nn.RMSNorm)),
                Way("xavier", lambda: stack(nn.Tanh, 3, gain="linear")),
            ],
            steps=150,
        ),
    ]


if __name__ == "__main__":
    quiet()
    main()
