"""What goes in: pixels that nobody scaled, and one broken row."""

from __future__ import annotations

import math
from functools import partial

from activations import stack
from side_by_side import Way, compare, quiet
from torch import Tensor, nn

RAW = 16.0  # grey levels from 0 to 16, as they come


def scaled(inputs: Tensor) -> Tensor:
    """Mean 0 and variance 1, by the figures of the training half."""
    return (inputs - 4.9) / 6.0


def with_a_broken_row(inputs: Tensor) -> Tensor:
    """One pixel of one image was read wrongly."""
    broken = inputs.clone()
    broken[-1, 20] = math.nan
    return broken


def repaired(inputs: Tensor) -> Tensor:
    """The same with unknown pixels black: leaving the row out would leave out its class, too."""
    return with_a_broken_row(inputs).nan_to_num(0.0)


def main() -> list[str]:
    """Scale, and a NaN."""
    he = partial(stack, depth=4, gain="relu")
    return [
        *compare(
            "data",
            "4 × ReLU on pixels from 0 to 16, rate 0.3",
            [
                Way("do nothing", partial(he, nn.ReLU), 0.3),
                Way("scaled-inputs", partial(he, nn.ReLU), 0.3, inputs=scaled),
                Way("lower-learning-rate, 0.03", partial(he, nn.ReLU), 0.03),
                Way("clip-norm, 1", partial(he, nn.ReLU), 0.3, clip=1.0),
                Way("leaky-relu", partial(he, nn.LeakyReLU), 0.3),
                Way("gelu", partial(he, nn.GELU), 0.3),
            ],
            steps=150,
            scale=RAW,
        ),
        *compare(
            "data",
            "A broken pixel in each batch",
            [
                Way("do nothing", partial(he, nn.ReLU), inputs=with_a_broken_row),
                Way("clean-data", partial(he, nn.ReLU), inputs=repaired),
                Way("lower-learning-rate, 0.001", partial(he, nn.ReLU), 0.001, inputs=with_a_broken_row),
                Way("clip-norm, 1", partial(he, nn.ReLU), clip=1.0, inputs=with_a_broken_row),
            ],
            steps=60,
        ),
    ]


if __name__ == "__main__":
    quiet()
    main()
