"""Clipping: a run that explodes is held; one that vanishes, or makes a NaN in a single step, is not helped by it.

Clipping to next to nothing stalls a run.
"""

from __future__ import annotations

from functools import partial

from activations import stack
from side_by_side import Table, Way, compare, squared_error, unguarded_cross_entropy
from torch import Tensor, nn

from gradwatch import clip

EXPLODING = partial(stack, nn.ReLU, 2)
RAW = 16.0  # grey levels from 0 to 16, as they come


def brighter(inputs: Tensor) -> Tensor:
    """Return pixels that nobody scaled."""
    return 500 * inputs


SCALED = Table(
    "A loop that clips while a loss scale of 65,536 is in its gradients",
    [
        Way("do nothing", EXPLODING, 0.1, scale=2.0**16, loop_clips=(1.0, "scaled")),
        Way("unscale-first", EXPLODING, 0.1, scale=2.0**16, loop_clips=(1.0, "unscaled")),
        Way("higher-learning-rate, 1", EXPLODING, 1.0, scale=2.0**16, loop_clips=(1.0, "scaled")),
    ],
    steps=100,
)


RAW_PIXELS = partial(Way, model=EXPLODING, rate=0.04, loss=squared_error)
EARLY = Table(
    "A loop that clips before backward(): squared error on unscaled pixels, rate 0.04",
    [
        RAW_PIXELS("do nothing", loop_clips=(1.0, "before backward")),
        RAW_PIXELS("clip-before-step, 1", loop_clips=(1.0, "unscaled")),
        RAW_PIXELS("lower-learning-rate, 0.01", rate=0.01, loop_clips=(1.0, "before backward")),
    ],
    steps=150,
    scale=RAW,
)


def main() -> list[str]:
    """Train a run that explodes, and runs that clipping cannot help."""
    return compare(
        "clipping",
        Table(
            "Squared error on unscaled pixels, rate 0.04",
            [
                RAW_PIXELS("do nothing"),
                RAW_PIXELS("clip-norm, 10", clip=10.0),
                RAW_PIXELS("clip-norm, 1", clip=1.0),
                RAW_PIXELS("clip-value, 0.1", clip=clip.by_value(0.1)),
                RAW_PIXELS("clip-adaptive (auto)", clip="auto"),
                RAW_PIXELS("clip by layer norm, 1", clip=clip.by_layer_norm(1.0)),
                RAW_PIXELS("lower-learning-rate, 0.01", rate=0.01),
            ],
            steps=150,
            scale=RAW,
        ),
        Table(
            "Where clipping does not help",
            [
                Way("do nothing: 12 × Sigmoid", partial(stack, nn.Sigmoid, 12)),
                Way("clip-norm, 1: 12 × Sigmoid", partial(stack, nn.Sigmoid, 12), clip=1.0),
                Way("do nothing: log of softmax", EXPLODING, 0.5, loss=unguarded_cross_entropy, inputs=brighter),
                Way("clip-norm, 1: log of softmax", EXPLODING, 0.5, 1.0, unguarded_cross_entropy, brighter),
            ],
            steps=100,
        ),
        Table(
            "Clipping to a norm of 1e-9",
            [
                Way("do nothing", EXPLODING, 0.1, clip=1e-9),
                Way("looser-clip, 10", EXPLODING, 0.1, clip=10.0),
                Way("higher-learning-rate, 10", EXPLODING, 10.0, clip=1e-9),
            ],
            steps=100,
        ),
        SCALED,
        EARLY,
    )
