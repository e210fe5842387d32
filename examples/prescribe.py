"""From finding to cure: ten sigmoid layers that learn nothing, and which remedy makes them learn.

    python examples/prescribe.py [seconds]

Every remedy that fits is tried on copies, and measured: did the finding go, does the loss on batches that were not
trained on come down, what does a step cost? With more seconds, more remedies get more seeds.
"""

import sys

import torch
from torch import nn

import gradwatch


def make_model() -> nn.Module:
    """Ten sigmoid layers: each passes on at most a quarter of the gradient."""
    layers: list[nn.Module] = [nn.Linear(16, 32), nn.Sigmoid()]
    for _ in range(9):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(32, 4))


def problem(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 16) numbers, and which of four directions each lies furthest along."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 16, generator=generator)
    return x, (x @ torch.randn(16, 4, generator=generator)).argmax(1)


def main(seconds: float) -> None:
    """Prescribes, and prints what came of it."""
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
