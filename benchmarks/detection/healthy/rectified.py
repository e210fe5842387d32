"""Runs that learn although many units of their rectifiers are zero: often, in a batch, at first, or some always.

Nowhere are four units in five of a layer silent for good.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.healthy.everyday import adam, network, on_digits, on_text, sgd
from benchmarks.detection.healthy.structure import blocks, language_model
from benchmarks.detection.program import Training, healthy, plain


def silence_(layer: nn.Module, share: float, bias: float = -20.0) -> None:
    """The first units of the layer, this share of them, can never fire."""
    with torch.no_grad():
        layer.bias[: round(share * len(layer.bias))] = bias


@healthy(falls_to=0.3)
def three_quarters_of_the_entries_zero(seed: int) -> Training:
    """Biases of −0.4: a sparse code, in which each unit fires on some digits."""
    model = network(64, 128, 128, 10)
    nn.init.constant_(model[0].bias, -0.4)
    return on_digits(model, adam(model))


@healthy(falls_to=0.3)
def a_third_dead_from_the_start(seed: int) -> Training:
    """85 of 256 units never fire; the others suffice."""
    model = network(64, 256, 10)
    silence_(model[0], 1 / 3)
    return on_digits(model, sgd(model, 0.3))


@healthy(falls_to=0.3)
def two_thirds_dead_from_the_start(seed: int) -> Training:
    """170 of 256 units in the first layer, 80 of 128 in the second, never fire."""
    model = network(64, 256, 128, 10)
    silence_(model[0], 0.66)
    silence_(model[2], 0.62)
    return on_digits(model, adam(model))


@healthy(falls_to=0.3)
def seven_tenths_dead_in_convolutions(seed: int) -> Training:
    """22 of 32 filters of a wide convolution never fire, as after pruning by their biases."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(32, 16, 3), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip
    silence_(model[0], 0.69)
    return on_digits(model, adam(model), 120, shape=(1, 8, 8))


@healthy(falls_to=0.4)
def edge_filters_that_see_no_edge(seed: int) -> Training:
    """Fixed edge filters among learned ones; half of them, for edges at a contrast that no digit has, stay at zero."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    edge = torch.tensor([[-1.0, 0, 1], [-1, 0, 1], [-1, 0, 1]])
    with torch.no_grad():
        for index in range(8):
            model[0].weight[index, 0] = torch.rot90(edge, index)
            model[0].bias[index] = -4.0 if index % 2 else 0.0
    return on_digits(model, sgd(model, 0.1), shape=(1, 8, 8))


@healthy(falls_to=0.5)
def leaky_and_far_below(seed: int) -> Training:
    """Every unit on the leaky side, where a tenth of the gradient passes: a linear network, which suffices."""
    model = network(64, 64, 10, activation=lambda: nn.LeakyReLU(0.1))
    nn.init.constant_(model[0].bias, -10.0)
    return on_digits(model, adam(model, 1e-2))


@healthy(falls_to=0.7)
def one_letter_into_a_rectifier(seed: int) -> Training:
    """One-hot letters: each unit sees a single column of its weights, most of the 128 columns hardly ever."""
    model = network(128, 96, 128)

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(16, 16)
        return F.cross_entropy(model(F.one_hot(inputs, 128).float()).flatten(0, 1), targets.flatten())

    return plain(model, adam(model, 1e-2), loss_of, 150)


@healthy(falls_to=0.8)
def sparse_rows_into_a_rectifier(seed: int) -> Training:
    """A sum of three rows of 2048, below zero at first for three units in four, into a ReLU."""
    rows, head = nn.EmbeddingBag(2048, 64, mode="sum"), nn.Linear(64, 128)
    nn.init.normal_(rows.weight, mean=-0.2, std=0.15)
    model = nn.Sequential(rows, nn.ReLU(), nn.LayerNorm(64), head)

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(128, 4)
        return F.cross_entropy(model((inputs[:, :-1] * 128 + inputs[:, 1:]) % 2048), targets[:, -1])

    return plain(model, adam(model, 1e-2), loss_of, 150)


@healthy(falls_to=0.3)
def quarter_of_256_units(seed: int) -> Training:
    """Winners take all: the 64 largest of 256 rectified units are kept, by turns most of them."""
    model = nn.ModuleDict({"inner": nn.Linear(64, 256), "head": nn.Linear(256, 10)})
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        hidden = model["inner"](x[chosen])
        least = hidden.topk(64, dim=-1).values[:, -1:]
        return F.cross_entropy(model["head"](F.relu(hidden - least.detach())), y[chosen])

    return plain(model, adam(model, 1e-2), loss_of, 200)


@healthy(falls_to=0.6)
def three_units_one_dead(seed: int) -> Training:
    """A bottleneck of three rectified units, of which one never fires."""
    model = network(64, 32, 3, 32, 10)
    silence_(model[2], 1 / 3)
    nn.init.constant_(model[2].bias[1:], 1.0)
    return on_digits(model, adam(model, 1e-2), 300)


@healthy(falls_to=0.5)
def dropout_before_the_rectifier(seed: int) -> Training:
    """Dropout of 0.7 before each ReLU: seven entries in ten are exactly zero before it, half of the rest after it."""
    model = nn.Sequential(
        nn.Linear(64, 256),
        nn.Dropout(0.7),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.Dropout(0.7),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
    return on_digits(model, adam(model))


@healthy(falls_to=0.7)
def gelu_somewhat_below(seed: int) -> Training:
    """A GELU transformer whose feed-forwards start with a bias of −1.5: most entries small, all with some slope."""
    model = language_model(*blocks(2))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features and module.bias is not None:
            nn.init.constant_(module.bias, -1.5)
    return on_text(model, adam(model, 5e-3), 120)


@healthy(falls_to=0.5)
def silu_started_below(seed: int) -> Training:
    """SiLU from −5, where its slope is −0.03: it climbs out."""
    model = network(64, 64, 10, activation=nn.SiLU)
    nn.init.constant_(model[0].bias, -5.0)
    return on_digits(model, adam(model, 1e-2), 250)


@healthy(falls_to=0.5)
def softplus_started_small(seed: int) -> Training:
    """A deviation by softplus from −4, slope 0.02: small at first, then fitted to the noise."""
    model = nn.ModuleDict({"centre": network(4, 32, 1), "spread": nn.Linear(4, 1)})
    nn.init.constant_(model["spread"].bias, -4.0)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 4)
        y = x[:, :1] + torch.randn(64, 1)
        deviation = 0.1 + F.softplus(model["spread"](x))
        return ((y - model["centre"](x)) / deviation).square().mean() / 2 + deviation.log().mean()

    return plain(model, adam(model, 1e-2), loss_of, 250)


@healthy(falls_to=0.4)
def maxout_of_four(seed: int) -> Training:
    """Maxout (arXiv:1302.4389): three pieces in four get no gradient from an input, behind it a ReLU."""
    model = nn.ModuleDict({"pieces": nn.Linear(64, 128), "second": nn.Linear(32, 32), "head": nn.Linear(32, 10)})
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        largest = model["pieces"](x[chosen]).unflatten(-1, (32, 4)).amax(-1)
        return F.cross_entropy(model["head"](model["second"](largest).relu()), y[chosen])

    return plain(model, adam(model), loss_of, 200)


@healthy(falls_to=0.4)
def beta_somewhat_below(seed: int) -> Training:
    """Batch normalisation with a shift of −1.3: nine entries in ten are zero, no unit is."""
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    nn.init.constant_(model[1].bias, -1.3)
    return on_digits(model, adam(model, 1e-2))


@healthy(falls_to=0.6)
def two_digits_at_a_time(seed: int) -> Training:
    """Batches of two into a layer of biases below zero: most units are silent in any one batch."""
    model = network(64, 64, 10)
    nn.init.constant_(model[0].bias, -0.15)
    return on_digits(model, adam(model, 1e-3), 800, batch=2)


@healthy(falls_to=0.3)
def sparse_autoencoder(seed: int) -> Training:
    """An overcomplete code under a small L1 penalty: half of its units fall silent, and the images come out."""
    model = nn.ModuleDict({"encode": nn.Linear(64, 192), "decode": nn.Linear(192, 64)})
    x, _ = digits()

    def loss_of(step: int) -> Tensor:
        inputs = x[torch.randint(len(x), (64,))]
        code = F.relu(model["encode"](inputs), inplace=True)
        return F.mse_loss(model["decode"](code), inputs) + 0.01 * code.mean()

    return plain(model, adam(model, 5e-3), loss_of, 200)


@healthy(falls_to=0.65)
def few_pixels_lit(seed: int) -> Training:
    """Seven pixels in ten are blanked in each image: most units see hardly any input."""
    model = network(64, 128, 64, 10)
    nn.init.constant_(model[0].bias, -0.05)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (128,))
        return F.cross_entropy(model(x[chosen] * (torch.rand(128, 64) < 0.3) * 3), y[chosen])

    return plain(model, adam(model, 5e-3), loss_of, 250)


@healthy(falls_to=0.4)
def ceiling_of_six(seed: int) -> Training:
    """ReLU6 on inputs of some size: a third of the entries at 0, a third at 6."""
    model = network(64, 64, 10, activation=nn.ReLU6)
    return on_digits(model, adam(model), scale=16.0)
