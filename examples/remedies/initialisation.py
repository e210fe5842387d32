"""Initialisation: what keeps a signal through twenty layers, by the function that stands behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from activations import WIDTH, stack
from side_by_side import Way, compare, quiet
from torch import Tensor, nn

Initialise = Callable[[Tensor], object]


def begun(function: Callable[[], nn.Module], depth: int, initialise: Initialise, bias: float = 0.0) -> nn.Sequential:
    """``stack`` with hidden weights from ``initialise`` and hidden biases of ``bias``."""
    model = stack(function, depth)
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            initialise(layer.weight)
            nn.init.constant_(layer.bias, bias)
    return model


he = partial(nn.init.kaiming_normal_, nonlinearity="relu")
xavier = partial(nn.init.xavier_normal_, gain=nn.init.calculate_gain("tanh"))


def main() -> list[str]:
    """ReLU, tanh, sigmoid; and biases that begin where nothing passes."""
    relu, tanh, sigmoid = (partial(begun, function, 20) for function in (nn.ReLU, nn.Tanh, nn.Sigmoid))
    return [
        *compare(
            "initialisation",
            "20 × ReLU",
            [
                Way("do nothing: PyTorch's", partial(stack, nn.ReLU, 20), 0.03),
                Way("standard deviation 1", partial(relu, nn.init.normal_), 0.03),
                Way("xavier", partial(relu, nn.init.xavier_normal_), 0.03),
                Way("he", partial(relu, he), 0.03),
                Way("orthogonal, gain √2", partial(relu, partial(nn.init.orthogonal_, gain=2**0.5)), 0.03),
            ],
            steps=150,
        ),
        *compare(
            "initialisation",
            "20 × Tanh, and 20 × Sigmoid",
            [
                Way("do nothing: Tanh, PyTorch's", partial(stack, nn.Tanh, 20), 0.03),
                Way("xavier: Tanh, gain 5/3", partial(tanh, xavier), 0.03),
                Way("orthogonal: Tanh", partial(tanh, nn.init.orthogonal_), 0.03),
                Way("do nothing: Sigmoid, PyTorch's", partial(stack, nn.Sigmoid, 20), 0.03),
                Way("xavier: Sigmoid", partial(sigmoid, nn.init.xavier_normal_), 0.03),
                Way("xavier: Sigmoid, gain 4", partial(sigmoid, partial(nn.init.xavier_normal_, gain=4.0)), 0.03),
            ],
            steps=100,
        ),
        *compare(
            "initialisation",
            "4 × ReLU whose biases begin at −4",
            [
                Way("do nothing", partial(begun, nn.ReLU, 4, he, -4.0)),
                Way("he, biases 0", partial(begun, nn.ReLU, 4, he)),
                Way("leaky-relu, slope 0.2", partial(begun, partial(nn.LeakyReLU, 0.2), 4, he, -4.0)),
                Way("elu", partial(begun, nn.ELU, 4, he, -4.0)),
                Way("lower-learning-rate, 0.01", partial(begun, nn.ReLU, 4, he, -4.0), 0.01),
            ],
            steps=150,
        ),
    ]


if __name__ == "__main__":
    assert WIDTH == 64  # pixels of an image: every layer is square
    quiet()
    main()
