"""Small training runs with one fault each, and the same run without it.

A student learns a noisy teacher, so that its loss ends at the noise, whatever batches it has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

STEPS, FAULT = 250, 130
FLIPPED = 1 << 30  # the highest bit of the exponent of a float32


@dataclass
class Run:
    """One training run.

    Attributes:
        model, optimizer, scheduler: what trains.
        batch: number of the step → (inputs, targets).
        held_out: (inputs, targets) that nobody trains on.
        in_half: whether the first layer works in float16.
    """

    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    batch: Callable[[int], tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]
    in_half: bool = False

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        if self.in_half:
            inputs = inputs.half().float()  # 65,504 is the largest number there
        return nn.functional.mse_loss(self.model(inputs), targets)

    def final_loss(self) -> float:
        """Return the loss on the held-out data."""
        self.model.eval()
        with torch.no_grad():
            return float(self.loss(*self.held_out))


def healthy_run(seed: int) -> Run:
    """Return a run without a fault."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    teacher = torch.randn(8, 1, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(count, 8, generator=generator)
        return inputs, inputs @ teacher + torch.randn(count, 1, generator=generator)

    batches, held_out = [draw(64) for _ in range(STEPS)], draw(4096)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    return Run(model, optimizer, scheduler, batches.__getitem__, held_out)


Fault = Callable[[Run, int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(run, number of the step, inputs, targets) → the batch that the model sees."""


def none(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Change nothing."""
    return inputs, targets


def corrupt_batch(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Put a NaN into one batch."""
    return (inputs, targets * torch.nan) if number == FAULT else (inputs, targets)


def outlier_sequence(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply the targets of two batches in a row by 100,000."""
    return (inputs, targets * 1e5) if FAULT <= number < FAULT + 2 else (inputs, targets)


def bit_flip(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Flip a bit of the exponent of one weight of the last layer."""
    if number == FAULT:
        with torch.no_grad():
            run.model[4].weight.view(torch.int32)[0, 3] ^= FLIPPED
    return inputs, targets


def rate_spike(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply the rate of one update by 10,000, as a wrong line of a schedule does."""
    if number == FAULT:
        for group in run.optimizer.param_groups:
            group["lr"] = group["lr"] * 1e4
    return inputs, targets


def overflow_of_float16(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Let the inputs of one batch overflow float16."""
    run.in_half = True
    return (inputs * 1e6, targets) if number == FAULT else (inputs, targets)


def rate_too_high(run: Run, number: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Train at a rate of 1e30 from the first step on."""
    for group in run.optimizer.param_groups:
        group["lr"] = 1e30
    return inputs, targets


RECOVERABLE: Mapping[str, Fault] = {
    each.__name__: each for each in (corrupt_batch, outlier_sequence, bit_flip, rate_spike, overflow_of_float16)
}
IMPOSSIBLE: Mapping[str, Fault] = {"rate_too_high": rate_too_high}
