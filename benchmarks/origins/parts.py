"""Share parts of the programs: plain networks, the loop over digits, and changes of the data that begin at some step.

Every change keeps finite what it changes. The fault is the model's.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.detection.data import digits
from benchmarks.detection.program import Training, plain

Change = Callable[[int, Tensor], Tensor]
"""From (step, inputs) to inputs."""
BatchLoss = Callable[[int, Tensor, Tensor], Tensor]
"""From (step, inputs, targets) to the loss."""


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def network(*widths: int, bias: bool = True) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sgd(model: nn.Module, rate: float = 0.05, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, **options)


def adam(model: nn.Module, rate: float = 3e-3, **options) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate, **options)


def on_digits(
    model: nn.Module,
    loss: BatchLoss,
    *,
    steps: int = 25,
    batch: int = 32,
    optimizer: Optimizer | None = None,
    **options,
) -> Training:
    """Train on random batches of digits: (batch, 64) grey levels from 0 to 1, (batch,) classes."""
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (batch,))
        return loss(step, x[chosen], y[chosen])

    return plain(model, optimizer or sgd(model), loss_of, steps, **options)


def classify(model: nn.Module, change: Change = lambda _, x: x, **options) -> Training:
    """Train on digits by cross-entropy; ``change`` is applied to each batch before the model is given it."""
    return on_digits(model, lambda step, x, y: F.cross_entropy(model(change(step, x)), y), **options)


def on_features(model: nn.Module, loss: BatchLoss, *, features: int = 8, batch: int = 32, **options) -> Training:
    """Train on normal inputs (batch, features) and a smooth function (batch, 1) of them."""
    direction = torch.randn(features, 1) / features**0.5

    def featured(step: int, *_: Tensor) -> Tensor:
        x = torch.randn(batch, features)
        return loss(step, x, (x @ direction).sin())

    return on_digits(model, featured, batch=1, **options)


def regress(model: nn.Module, change: Change = lambda _, x: x, **options) -> Training:
    return on_features(model, lambda step, x, y: F.mse_loss(model(change(step, x)), y), **options)


def since(first: int, change: Callable[[Tensor], Tensor]) -> Change:
    """Return ``change``, applied from step ``first`` on."""
    return lambda step, x: change(x) if step >= first else x


def row_since(first: int, row: int, value: float) -> Change:
    """Return a change that sets every entry of one row of the batch to ``value`` from step ``first`` on."""

    def fill(x: Tensor) -> Tensor:
        x = x.clone()
        x[row] = value
        return x

    return since(first, fill)


def both(*changes: Change) -> Change:
    def change(step: int, x: Tensor) -> Tensor:
        for one in changes:
            x = one(step, x)
        return x

    return change


def after_update(optimizer: Optimizer, number: int, action: Callable[[], object]) -> None:
    """Run ``action`` right after the optimizer's update of step ``number``."""
    updates = itertools.count()
    optimizer.register_step_post_hook(lambda *_: action() if next(updates) == number else None)


def images(x: Tensor) -> Tensor:
    """Return (batch, 1, 8, 8) from (batch, 64)."""
    return x.view(-1, 1, 8, 8)
