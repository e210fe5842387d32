"""Failures that people asked about on Stack Overflow, discuss.pytorch.org and GitHub, made again from the facts there.

Only the facts were taken: sizes, activations, initialisation, loss, optimizer. The digits stand in for MNIST.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.program import Training, faulty, plain


class OneUnitSoftmax(nn.Module):
    """A softmax over a single unit: 1, whatever goes in."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 1)


def dense(*widths: int, between: Callable[[], nn.Module], last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers with ``between`` between them and ``last`` at the end."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), between()]
    return nn.Sequential(*layers[:-1], *([] if last is None else [last]))


def normal_(model: nn.Module, deviation: float = 1.0) -> None:
    """Draws every weight and bias from N(0, ``deviation``)."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=deviation)


def on(
    x: Tensor,
    y: Tensor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    batch: int | None = None,
    **options,
) -> Training:
    """Random batches of (x, y), or all of it each time."""

    def loss_of(step: int) -> Tensor:
        if batch is None:
            return loss(model(x), y)
        chosen = torch.randint(len(x), (batch,))
        return loss(model(x[chosen]), y[chosen])

    return plain(model, optimizer, loss_of, steps, **options)


def sgd(model: nn.Module, rate: float, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate)


def one_hot(classes: Tensor, count: int = 10) -> Tensor:
    return F.one_hot(classes, count).float()


# Questions with a number --------------------------------------------------------------------------------------------


@faulty("exploding", also=("nonfinite",))
def linear_digits_at_rate_three(seed: int) -> Training:
    """Two linear layers from N(0, 1) without an activation, squared error, lr 3: NaN within an epoch (SO 48385830)."""
    x, y = digits()
    model = dense(64, 30, 10, between=nn.Identity)
    normal_(model)
    return on(x, one_hot(y), model, sgd(model, 3.0), lambda out, t: (out - t).square().sum(1).mean(), 60, batch=10)


@faulty("vanishing", also=("saturated", "stalled"), attainable=0.1)
def softmax_over_one_unit(seed: int) -> Training:
    """A softmax over one unit is 1 whatever goes in: the gradient is exactly zero (SO 31880720)."""
    y = torch.randint(2, (20_000, 1)).float()
    x = y.expand(-1, 128)
    model = nn.Sequential(
        *(nn.Linear(128, 50), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, 50), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Linear(50, 1), OneUnitSoftmax()),
    )
    return on(x, y, model, torch.optim.RMSprop(model.parameters(), 1e-3), F.binary_cross_entropy, 150, batch=128)


@faulty("vanishing", also=("saturated", "stalled"), attainable=5e7)
def regression_through_softmax(seed: int) -> Training:
    """A sum of inputs up to 1e4 through tanh and a softmax over one unit: saturated, then constant (SO 33969059)."""
    x = torch.rand(1000, 3) * 1e4
    y = x @ torch.tensor([[2.0], [1.0], [0.5]]) + 2.2
    model = dense(3, 2, 1, between=nn.Tanh, last=OneUnitSoftmax())
    return on(x, y, model, sgd(model, 0.1, 0.9), F.mse_loss, 150, batch=32)


@faulty("nonfinite")
def relu_as_probabilities(seed: int) -> Training:
    """Cross-entropy by hand takes the log of a ReLU: 0 times log 0 is NaN (SO 47352366)."""
    x, y = digits(255.0)
    model = nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU()),
    )
    return on(x, one_hot(y), model, adam(model), lambda p, t: -(t * p.log()).sum(1).mean(), 40, batch=50)
