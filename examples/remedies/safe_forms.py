"""Safe forms: four operations without bound, each in a network of its own, and each with its bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from activations import WIDTH, stack
from side_by_side import Way, compare, quiet, unguarded_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def behind(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """A network with ``function`` of its (N, 64) hidden values before its last layer."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), Lambda(function), nn.LazyLinear(10))


def sharpened(factor: float) -> nn.Sequential:
    """A network whose scores are multiplied by ``factor``: a softmax of a low temperature."""
    return nn.Sequential(*stack(nn.ReLU, 2), Lambda(lambda scores: factor * scores))


def guarded(outputs: Tensor, classes: Tensor) -> Tensor:
    """−Σ y·log(p + 1e-8)."""
    return -(F.one_hot(classes, 10) * (outputs.softmax(1) + 1e-8).log()).sum(1).mean()


def lengths(x: Tensor) -> Tensor:
    """(N, 32) norms of pairs; dropout leaves a quarter of them with nothing."""
    return x.unflatten(1, (-1, 2)).square().sum(2).sqrt()


def safe_lengths(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """The same with an epsilon under the root."""
    return (x.unflatten(1, (-1, 2)).square().sum(2) + epsilon).sqrt()


def shares(x: Tensor) -> Tensor:
    """Each value's share of its pair."""
    pairs = x.abs().unflatten(1, (-1, 2))
    return (pairs / pairs.sum(2, keepdim=True)).flatten(1)


def hidden_shares(x: Tensor) -> Tensor:
    """The same with its NaN replaced behind the division: the loss is finite, its gradient is not."""
    return shares(x).nan_to_num(0.0)


def safe_shares(x: Tensor) -> Tensor:
    """The same with the divisor kept away from 0."""
    pairs = x.abs().unflatten(1, (-1, 2))
    return (pairs / pairs.sum(2, keepdim=True).clamp(min=1e-3)).flatten(1)


def masked(x: Tensor) -> Tensor:
    """A softmax over the values that are above 0, of each group of four."""
    groups = x.unflatten(1, (-1, 4))
    return (groups.masked_fill(groups <= 0, float("-inf")).softmax(2) * groups).flatten(1)


def safe_masked(x: Tensor) -> Tensor:
    """The same with a finite fill, and nothing where nothing is kept."""
    groups = x.unflatten(1, (-1, 4))
    kept = groups > 0
    return (groups.masked_fill(~kept, torch.finfo(x.dtype).min).softmax(2) * kept * groups).flatten(1)


def main() -> list[str]:
    """Sick and safe, by turns."""
    sharp = partial(Way, model=partial(sharpened, 300.0), rate=0.01, optimizer=torch.optim.Adam)
    return compare(
        "safe_forms",
        "Operations without bound",
        [
            sharp("do nothing: log of a softmax", loss=unguarded_cross_entropy),
            sharp("log(p + 1e-8)", loss=guarded),
            sharp("safe-log: cross_entropy"),
            Way("do nothing: norms of pairs", partial(behind, lengths)),
            Way("safe-sqrt, ε = 1e-6", partial(behind, safe_lengths)),
            Way("safe-sqrt, ε = 1e-30", partial(behind, partial(safe_lengths, epsilon=1e-30))),
            Way("do nothing: shares of pairs", partial(behind, shares)),
            Way("nan_to_num behind the division", partial(behind, hidden_shares)),
            Way("safe-division", partial(behind, safe_shares)),
            Way("do nothing: masked softmax", partial(behind, masked)),
            Way("masked-softmax, safe", partial(behind, safe_masked)),
        ],
        steps=100,
    )


if __name__ == "__main__":
    quiet()
    main()
