"""Find the remedy that makes ten sigmoid layers learn.

    python examples/prescribe.py [seconds]

Every remedy that fits is tried on copies and measured: is the finding gone, how low is the loss on held-out batches,
what does a step cost? With more seconds, more remedies get more seeds.
"""

import sys

import torch
from torch import nn

import gradwatch


def make_model() -> nn.Module:
    """Make ten sigmoid layers, each of which passes on at most a quarter of the gradient."""
    layers: list[nn.Module] = [nn.Linear(16, 32), nn.Sigmoid()]
    for _ in range(9):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(32, 4))


def problem(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (count, 16) numbers, and for each the one of four directions in which it lies furthest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 16, generator=generator)
    return x, (x @ torch.randn(16, 4, generator=generator)).argmax(1)


def main(seconds: float) -> None:
    """Prescribe, and print the result."""
    x, y = problem(1280)
    prescription = gradwatch.prescribe(
        make_model,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        list(zip(x.split(64), y.split(64), strict=True)),
        nn.functional.cross_entropy,
        budget_seconds=seconds,
        log_dir="runs/prescribe",
    )
    print(prescription)
    print("\nTo compare the runs: tensorboard --logdir runs/prescribe")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0)
