"""Clipping that hurts: a limit far below what gradients are, or one that fits a single layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.healthy.clipping import WithLoudScale, clipping
from benchmarks.detection.healthy.everyday import adam, network, on_digits, sgd
from benchmarks.detection.program import Training, faulty, plain


@faulty("stalled", attainable=1.0)
def descent_clipped_to_a_thousandth(seed: int) -> Training:
    """Plain descent at a rate of 0.1 that clips to 1e-3: each update moves the weights by 1e-4, the loss by nothing."""
    model = network(64, 64, 32, 10)
    return on_digits(model, sgd(model, 0.1), 200, before_update=clipping(model, 1e-3))


@faulty("stalled", attainable=1.0)
def limit_mistaken_for_a_rate(seed: int) -> Training:
    """Momentum at 0.01, and the same 0.01 again as a weight of the limit: 1e-4."""
    model = network(64, 48, 10)
    return on_digits(model, sgd(model, 0.01, momentum=0.9), 200, before_update=clipping(model, 1e-4))


@faulty("stalled", attainable=1500.0)
def summed_under_the_limit_of_a_mean(seed: int) -> Training:
    """A loss summed over 1,024 images, its rate divided for that, and the limit left at 1, as for the mean."""
    model = network(64, 64, 10)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (1024,))
        return F.cross_entropy(model(x[chosen]), y[chosen], reduction="sum")

    return plain(model, sgd(model, 2e-4), loss_of, 250, before_update=clipping(model, 1.0))


@faulty("stalled", layers=("net.?.weight",), attainable=1.0)
def quiet_layers_below_epsilon(seed: int) -> Training:
    """One vector makes nearly all of the total, so that Adam's other gradients lie below ε (Megatron-LM issue 5394)."""
    model = WithLoudScale(30.0)
    return plain(model, adam(model, 5e-4), model.loss_of, 250, before_update=clipping(model, 1e-6))
