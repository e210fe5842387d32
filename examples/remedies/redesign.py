"""Redesign: fewer layers, smaller batches, weight regularisation; the last two rarely help, and here is when."""

from __future__ import annotations

from functools import partial

from activations import stack
from side_by_side import Table, Way, compare, squared_error, summed_cross_entropy
from torch import nn


def main() -> list[str]:
    """Train with fewer layers, smaller batches and regularisation."""
    relu = partial(stack, nn.ReLU, 2)
    averaged = partial(Way, model=relu, rate=0.04, loss=squared_error, inputs=lambda inputs: 16 * inputs)
    return compare(
        "redesign",
        Table(
            "Sigmoids, plain descent at 0.5",
            [
                Way(f"{name}: {depth} × Sigmoid", partial(stack, nn.Sigmoid, depth), 0.5)
                for name, depth in (("do nothing", 12), ("fewer-layers", 6), ("fewer-layers", 3), ("fewer-layers", 1))
            ],
            steps=200,
        ),
        Table(
            "A loss summed over the batch, rate 0.05",
            [
                Way("do nothing: 64", relu, 0.05, loss=summed_cross_entropy),
                Way("smaller-batches, 16", relu, 0.05, loss=summed_cross_entropy, batch=16),
                Way("smaller-batches, 4", relu, 0.05, loss=summed_cross_entropy, batch=4),
                Way("lower-learning-rate, 0.05/64", relu, 0.05 / 64, loss=summed_cross_entropy),
            ],
            steps=150,
        ),
        Table(
            "A loss averaged over the batch, unscaled pixels",
            [
                averaged("do nothing: 64"),
                averaged("smaller-batches, 16", batch=16),
                averaged("smaller-batches, 4", batch=4),
                averaged("weight-regularisation, α = 1e-3", regularisation=1e-3),
                averaged("weight-regularisation, α = 0.1", regularisation=0.1),
            ],
            steps=150,
        ),
    )
