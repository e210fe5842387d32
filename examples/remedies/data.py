"""Data: pixels that nobody scaled, and one broken row."""

from __future__ import annotations

import math
from functools import partial

from activations import other, stack
from side_by_side import Table, Way, changed, compare, digits
from torch import Tensor, nn

from gradwatch.remedies import init_he_, scale_batches

RAW = 16.0  # grey levels from 0 to 16, as they come


def scaled(inputs: Tensor) -> Tensor:
    """Return inputs of mean 0 and variance 1, by the figures of the training half."""
    pixels, classes, *_ = digits(RAW)
    _, scaling = scale_batches([(pixels, classes)], nn.Identity())
    return scaling.inputs(inputs)


def with_a_broken_row(inputs: Tensor) -> Tensor:
    """Return a batch in which one pixel of one image is NaN."""
    broken = inputs.clone()
    broken[-1, 20] = math.nan
    return broken


def repaired(inputs: Tensor) -> Tensor:
    """Return the same with unknown pixels black: to leave the row out would leave out its class, too."""
    return with_a_broken_row(inputs).nan_to_num(0.0)


def main() -> list[str]:
    """Train on unscaled pixels, and on a broken one."""
    he = changed(partial(stack, nn.ReLU, 4), init_he_)
    return compare(
        "data",
        Table(
            "4 × ReLU on pixels from 0 to 16, rate 0.3",
            [
                Way("do nothing", he, 0.3),
                Way("scaled-inputs", he, 0.3, inputs=scaled),
                Way("lower-learning-rate, 0.03", he, 0.03),
                Way("clip-norm, 1", he, 0.3, clip=1.0),
                Way("leaky-relu", changed(he, other(nn.LeakyReLU(0.1))), 0.3),
                Way("gelu", changed(he, other(nn.GELU())), 0.3),
            ],
            steps=150,
            scale=RAW,
        ),
        Table(
            "A broken pixel in each batch",
            [
                Way("do nothing", he, inputs=with_a_broken_row),
                Way("clean-data", he, inputs=repaired),
                Way("lower-learning-rate, 0.001", he, 0.001, inputs=with_a_broken_row),
                Way("clip-norm, 1", he, clip=1.0, inputs=with_a_broken_row),
            ],
            steps=60,
        ),
    )
