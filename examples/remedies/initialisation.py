"""Initialisation: what keeps a signal through twenty layers, by the activation function that follows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from activations import other, stack
from side_by_side import Table, Way, changed, compare
from torch import Tensor, nn

from gradwatch.remedies import init_he_, init_nonfinite_, init_orthogonal_, init_xavier_, init_zero_gains_


def hidden_weights(initialise: Callable[[Tensor], object]) -> Callable[[nn.Module, Tensor], None]:
    """Return the change that draws hidden weights by ``initialise`` and sets hidden biases to 0."""

    def change(model: nn.Module, _: Tensor) -> None:
        for layer in model[:-1]:
            if isinstance(layer, nn.Linear):
                initialise(layer.weight)
                nn.init.zeros_(layer.bias)

    return change


def far_below_zero(model: nn.Module, _: Tensor) -> None:
    """Let hidden biases begin at −4."""
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, -4.0)


def never_initialised(model: nn.Module, _: Tensor) -> None:
    """Let the first weight hold what memory may hold."""
    nn.init.constant_(model[0].weight, float("nan"))


def normalised() -> nn.Sequential:
    """Return a network whose two normalisations have gains of 0, and shifts of 0."""
    first, second = stack(nn.Tanh, 2)[0], stack(nn.Tanh, 2)[2]
    norms = [nn.LayerNorm(first.out_features), nn.LayerNorm(second.out_features)]
    for norm in norms:
        nn.init.zeros_(norm.weight)
    return nn.Sequential(first, norms[0], nn.Tanh(), second, norms[1], nn.Tanh(), nn.Linear(second.out_features, 10))


def main() -> list[str]:
    """Train ReLU, tanh, sigmoid; and biases that begin where nothing passes."""
    relu, tanh, sigmoid = (partial(stack, function, 20) for function in (nn.ReLU, nn.Tanh, nn.Sigmoid))
    biased = changed(partial(stack, nn.ReLU, 4), init_he_, far_below_zero)
    xavier = nn.init.xavier_normal_
    return compare(
        "initialisation",
        Table(
            "20 × ReLU",
            [
                Way("do nothing: PyTorch's", relu, 0.03),
                Way("standard deviation 1", changed(relu, hidden_weights(nn.init.normal_)), 0.03),
                Way("xavier", changed(relu, init_xavier_), 0.03),
                Way("he", changed(relu, init_he_), 0.03),
                Way("orthogonal, gain √2", changed(relu, init_orthogonal_), 0.03),
            ],
            steps=150,
        ),
        Table(
            "20 × Tanh, and 20 × Sigmoid",
            [
                Way("do nothing: Tanh, PyTorch's", tanh, 0.03),
                Way("xavier: Tanh, gain 5/3", changed(tanh, hidden_weights(partial(xavier, gain=5 / 3))), 0.03),
                Way("orthogonal: Tanh", changed(tanh, init_orthogonal_), 0.03),
                Way("do nothing: Sigmoid, PyTorch's", sigmoid, 0.03),
                Way("xavier: Sigmoid", changed(sigmoid, init_xavier_), 0.03),
                Way("xavier: Sigmoid, gain 4", changed(sigmoid, hidden_weights(partial(xavier, gain=4.0))), 0.03),
            ],
            steps=100,
        ),
        Table(
            "4 × ReLU whose biases begin at −4",
            [
                Way("do nothing", biased),
                Way("he, biases 0", changed(biased, init_he_)),
                Way("leaky-relu, slope 0.2", changed(biased, other(nn.LeakyReLU(0.2)))),
                Way("elu", changed(biased, other(nn.ELU()))),
                Way("lower-learning-rate, 0.01", biased, 0.01),
            ],
            steps=150,
        ),
        Table(
            "A weight that holds NaN from the start, and normalisations whose gain is 0",
            [
                Way("do nothing: NaN", changed(partial(stack, nn.ReLU, 2), never_initialised)),
                Way(
                    "initialise",
                    changed(partial(stack, nn.ReLU, 2), never_initialised, lambda model, _: init_nonfinite_(model)),
                ),
                Way("do nothing: gains of 0", normalised),
                Way("nonzero-gain", changed(normalised, lambda model, _: init_zero_gains_(model))),
            ],
            steps=100,
        ),
    )
