"""Safe forms: four operations without bound, each in a network of its own, and each with its bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from activations import WIDTH, stack
from side_by_side import Table, Way, compare, unguarded_cross_entropy
from torch import Tensor, nn
from torch.nn import functional as F

from gradwatch.remedies import (
    jittered,
    leave_out_zero_gradients_,
    masked_softmax,
    safe_acos,
    safe_divide,
    safe_norm,
    safe_pow,
    softmax_over_classes,
)


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


def roots(x: Tensor) -> Tensor:
    """Return the power 0.3 of magnitudes; dropout leaves zeros."""
    return x.abs().pow(0.3)


def safe_roots(x: Tensor) -> Tensor:
    """Return the same of what is kept above 0."""
    return safe_pow(x.abs(), 0.3)


def angles(x: Tensor) -> Tensor:
    """Return directions of four values each, turned by their angles to where they point already."""
    return _turned(x, lambda cosines: cosines.clamp(-1, 1).acos())


def safe_angles(x: Tensor) -> Tensor:
    """Return the same with the cosines kept within ±(1 − 1e-6)."""
    return _turned(x, safe_acos)


def _turned(x: Tensor, angle: Callable[[Tensor], Tensor]) -> Tensor:
    directions = F.normalize(x.unflatten(1, (-1, 4)), dim=2)
    return (directions + angle((directions * directions.detach()).sum(2, keepdim=True))).flatten(1)


def vectors(x: Tensor) -> Tensor:
    """Return the singular vectors of each sample's 8 × 8 matrix of rank 1, times the values."""
    matrices = x[:, :8, None] * x[:, None, 8:16]
    return _vectors(matrices)


def jittered_vectors(x: Tensor) -> Tensor:
    """Return the same of matrices with a little noise."""
    return _vectors(jittered(x[:, :8, None] * x[:, None, 8:16]))


def _vectors(matrices: Tensor) -> Tensor:
    left, values, _ = torch.linalg.svd(matrices.nan_to_num())  # of NaN, svd raises
    return (left * values.unsqueeze(-2)).flatten(1)


def shares_at_times(x: Tensor) -> Tensor:
    """Return shares of pairs in one batch of ten, and the values as they are in the others."""
    return shares(x) if torch.rand(()) < 0.1 else x


def over_one_entry(scores: Tensor) -> Tensor:
    """Return a softmax over the axis of one entry, which a recurrent layer calls that of layers."""
    return scores.unsqueeze(1).softmax(1).squeeze(1)


def over_classes(scores: Tensor) -> Tensor:
    """Return a softmax over the classes, which is the last axis."""
    return softmax_over_classes(scores.unsqueeze(1), 1).squeeze(1)


class Normalised(torch.optim.Optimizer):
    """Descent whose every update is as long as its weight: it divides by the norm of the gradient."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= group["lr"] * (1 + weight.norm()) * weight.grad / weight.grad.norm()


def normalised_safely(parameters: Iterable[nn.Parameter], lr: float) -> Normalised:
    """Return the same optimizer, which leaves out parameters whose gradient is 0."""
    optimizer = Normalised(parameters, lr)
    leave_out_zero_gradients_(optimizer)
    return optimizer


def begun_at_zero() -> nn.Sequential:
    """Return a network whose last weight is 0 at first, so that nothing before it gets a gradient."""
    model = stack(nn.ReLU, 2)
    nn.init.zeros_(model[-1].weight)
    return model


def of_raw_outputs(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return −Σ y·log(p) of what should be probabilities, clamped as Keras does it."""
    shares = (outputs / outputs.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -(F.one_hot(classes, 10) * shares.log()).sum(1).mean()


def of_probabilities(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return the same with a softmax at the output."""
    return of_raw_outputs(outputs.softmax(1), classes)


def main() -> list[str]:
    """Train each operation, sick and safe."""
    rare = partial(Way, model=partial(with_function, shares_at_times))
    adam = partial(Way, rate=0.01, optimizer=torch.optim.Adam)
    raw = partial(Way, model=lambda: nn.Sequential(*stack(nn.ReLU, 2)), rate=0.01, optimizer=torch.optim.Adam)
    one = lambda function: nn.Sequential(*stack(nn.ReLU, 2), Lambda(function))
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
        Table(
            "Powers, angles, singular vectors",
            [
                Way("do nothing: powers", partial(with_function, roots)),
                Way("safe-power", partial(with_function, safe_roots)),
                Way("do nothing: angles", partial(with_function, angles)),
                Way("safe-angle", partial(with_function, safe_angles)),
                Way("do nothing: singular vectors", partial(with_function, vectors)),
                Way("jitter", partial(with_function, jittered_vectors)),
                rare("do nothing: shares of pairs in one batch of ten"),
                rare("skip-step", on_nonfinite="skip"),
            ],
            steps=100,
        ),
        Table(
            "A softmax over one entry, logits as probabilities, and an optimizer that divides by a norm of 0",
            [
                adam("do nothing: a softmax over one entry", partial(one, over_one_entry)),
                adam("softmax-over-classes", partial(one, over_classes)),
                raw("do nothing: the logarithm of logits", loss=of_raw_outputs),
                raw("output-probabilities", loss=of_probabilities),
                Way("do nothing: normalised descent", begun_at_zero, 0.003, optimizer=Normalised),
                Way("safe-update", begun_at_zero, 0.003, optimizer=normalised_safely),
            ],
            steps=100,
        ),
    )
