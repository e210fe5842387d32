"""Networks, data and loops that several pairs share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.program import Training, plain

TRAINED_ON = 1400


def network(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers of these widths with activations between."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


def sgd(model: nn.Module, rate: float = 0.1, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, **options)


def adam(model: nn.Module, rate: float = 2e-3, **options) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate, **options)


def sample(batch: int = 64) -> tuple[Tensor, Tensor]:
    """Draw a batch of the digits that are trained on."""
    x, y = digits()
    chosen = torch.randint(TRAINED_ON, (batch,))
    return x[chosen], y[chosen]


def held_out() -> tuple[Tensor, Tensor]:
    """Return the digits that are not trained on."""
    x, y = digits()
    return x[TRAINED_ON:], y[TRAINED_ON:]


def scored(training: Training, score: Callable[[], float | Tensor]) -> Training:
    """Return the same training with a score, taken without gradients."""

    def without_gradients() -> float:
        with torch.no_grad():
            return float(score())

    return dataclasses.replace(training, score=without_gradients)


def accuracy_of(model: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """Return the score of a classifier: its accuracy on held-out digits."""

    def score() -> Tensor:
        x, y = held_out()
        logits = model(x)
        return (logits.argmax(1) == y).float().mean() if torch.isfinite(logits).all() else torch.tensor(torch.nan)

    return score


def explained(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return the score of a regression: the share of the variance of ``y`` that it explains."""
    return lambda: 1 - (predict(x) - y).square().mean() / (y - y.mean(0)).square().mean()


def classifier(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, **options) -> Training:
    """Train on random batches of digits; the score is the accuracy on held-out ones."""

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        return F.cross_entropy(model(x), y)

    return scored(plain(model, optimizer, loss_of, steps, **options), accuracy_of(model))
