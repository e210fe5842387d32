"""Safe forms: four operations without bound, each in a network of its own, and each with its bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from activations import WIDTH, stack
from side_by_side import Table, Way, compare, unguarded_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F

from gradwatch.remedies import masked_softmax, safe_divide, safe_norm


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def with_function(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Return a network that applies ``function`` to its (N, 64) hidden values before its last layer."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), Lambda(function), nn.LazyLinear(10))


def sharpened(factor: float) -> nn.Sequential:
    """Return a network whose scores are multiplied by ``factor``: a softmax of a low temperature."""
    return nn.Sequential(*stack(nn.ReLU, 2), Lambda(lambda scores: factor * scores))


def guarded(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return −Σ y·log(p + 1e-8)."""
    return -(F.one_hot(classes, 10) * (outputs.softmax(1) + 1e-8).log()).sum(1).mean()


def lengths(x: Tensor) -> Tensor:
    """Return (N, 32) norms of pairs; dropout leaves a quarter of them with nothing."""
    return x.unflatten(1, (-1, 2)).square().sum(2).sqrt()


def safe_lengths(x: Tensor) -> Tensor:
    """Return the same by a safe norm."""
    return safe_norm(x.unflatten(1, (-1, 2)), dim=2)


def lengths_with_epsilon(x: Tensor, epsilon: float = 1e-30) -> Tensor:
    """Return the same with an epsilon under the root."""
    return (x.unflatten(1, (-1, 2)).square().sum(2) + epsilon).sqrt()


def shares(x: Tensor) -> Tensor:
    """Return each value's share of its pair."""
    pairs = x.abs().unflatten(1, (-1, 2))
    return (pairs / pairs.sum(2, keepdim=True)).flatten(1)


def hidden_shares(x: Tensor) -> Tensor:
    """Return the same with NaN replaced after the division: the loss is finite, its gradient is not."""
    return shares(x).nan_to_num(0.0)


def safe_shares(x: Tensor) -> Tensor:
    """Return the same with the divisor kept away from 0."""
    pairs = x.abs().unflatten(1, (-1, 2))
    return safe_divide(pairs, pairs.sum(2, keepdim=True)).flatten(1)


def masked(x: Tensor) -> Tensor:
    """Return a softmax over the values that are above 0, of each group of four."""
    groups = x.unflatten(1, (-1, 4))
    return (groups.masked_fill(groups <= 0, float("-inf")).softmax(2) * groups).flatten(1)


def safe_masked(x: Tensor) -> Tensor:
    """Return the same with 0 for a group of which nothing is above 0."""
    groups = x.unflatten(1, (-1, 4))
    return (masked_softmax(groups.masked_fill(groups <= 0, float("-inf")), 2) * groups).flatten(1)


def main() -> list[str]:
    """Train each operation, sick and safe."""
    sharp = partial(Way, model=partial(sharpened, 300.0), rate=0.01, optimizer=torch.optim.Adam)
    return compare(
        "safe_forms",
        Table(
            "Operations without bound",
            [
                sharp("do nothing: log of a softmax", loss=unguarded_cross_entropy),
                sharp("log(p + 1e-8)", loss=guarded),
                sharp("safe-log: cross_entropy"),
                Way("do nothing: norms of pairs", partial(with_function, lengths)),
                Way("safe-sqrt", partial(with_function, safe_lengths)),
                Way("ε = 1e-30 under the root", partial(with_function, lengths_with_epsilon)),
                Way("do nothing: shares of pairs", partial(with_function, shares)),
                Way("nan_to_num after the division", partial(with_function, hidden_shares)),
                Way("safe-division", partial(with_function, safe_shares)),
                Way("do nothing: masked softmax", partial(with_function, masked)),
                Way("masked-softmax, safe", partial(with_function, safe_masked)),
            ],
            steps=100,
        ),
    )
