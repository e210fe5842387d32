"""Gradients that fade or grow along depth or along time; and sicknesses that set in late, or in one layer alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.program import Training, faulty, supervised


def network(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with activations between."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), activation()]
    return nn.Sequential(*layers[:-1])


def sgd(model: nn.Module, rate: float, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)


def on_digits(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 120, **options) -> Training:
    """Classification in batches of 64."""
    x, y = digits()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (64,))
        return x[chosen], y[chosen]

    return supervised(model, optimizer, draw, F.cross_entropy, steps, **options)


def started(model: nn.Module, deviation: float) -> nn.Module:
    """Weights from N(0, ``deviation``)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=deviation)
    return model


@faulty("vanishing", attainable=0.5)
def thirty_relu_layers_started_small(seed: int) -> Training:
    """Thirty ReLU layers from N(0, 0.1) where 0.25 would keep the variance."""
    model = started(network(64, *[32] * 30, 10), 0.1)
    return on_digits(model, torch.optim.Adam(model.parameters(), lr=1e-3))


@faulty("vanishing", attainable=0.5)
def gelu_layers_started_small(seed: int) -> Training:
    """Twelve GELU layers from N(0, 0.02)."""
    model = started(network(64, *[48] * 12, 10, activation=nn.GELU), 0.02)
    return on_digits(model, sgd(model, 0.1, 0.9))


@faulty("vanishing", attainable=0.5)
def hard_sigmoids(seed: int) -> Training:
    """Seven hard sigmoids: a slope of a sixth, and none outside ±3."""
    model = network(64, *[32] * 7, 10, activation=nn.Hardsigmoid)
    return on_digits(model, sgd(model, 0.1, 0.9))


@faulty("vanishing", attainable=0.5)
def convolutions_without_normalisation(seed: int) -> Training:
    """Sixteen convolutions with sigmoids between."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid()]
    for _ in range(9):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    return on_digits(model, torch.optim.Adam(model.parameters(), lr=1e-3), 80)


@faulty("vanishing", attainable=0.05)
def autoencoder_of_sigmoids(seed: int) -> Training:
    """Eight sigmoid layers through a bottleneck of 8: it learns the mean image and nothing else."""
    model = network(64, 32, 16, 12, 8, 12, 16, 32, 64, activation=nn.Sigmoid)
    x, _ = digits()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = x[torch.randint(len(x), (64,))]
        return chosen, chosen

    return supervised(model, sgd(model, 0.5, 0.9), draw, F.mse_loss, 150)


@faulty("vanishing", attainable=0.5, layers=("0.*", "2.*"), also=("saturated", "dead"))
def one_saturated_layer(seed: int) -> Training:
    """One tanh layer of four has weights of ±50: flat; what lies below it gets next to nothing."""
    model = network(64, 32, 32, 32, 10, activation=nn.Tanh)
    with torch.no_grad():
        model[2].bias.fill_(12.0)
    return on_digits(model, sgd(model, 0.01))


class Attention(nn.Module):
    """Six layers of attention without residual connections."""

    def __init__(self, width: int = 32, depth: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.layers = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(depth))
        self.head = nn.Linear(width, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * 0.1
        for layer in self.layers:
            x = layer(x, x, x, need_weights=False)[0]
        return self.head(x)


@faulty("vanishing", attainable=2.6)
def attention_without_residuals(seed: int) -> Training:
    """Averages of averages: within eight layers every position is the same, and no gradient tells them apart."""
    model = Attention()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = windows(8, 24)
        return inputs, targets

    loss = lambda output, y: F.cross_entropy(output.flatten(0, 1), y.flatten())
    return supervised(model, sgd(model, 0.1), draw, loss, 80)


class Counter(nn.Module):
    """Adds up numbers through time."""

    def __init__(self, cell: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def adding(model: nn.Module, optimizer: torch.optim.Optimizer, length: int, steps: int, **options) -> Training:
    """The first input is what the target is; noise follows."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.zeros(32, length, 1)
        x[:, 0] = torch.randn(32, 1)
        return x, 2 * x[:, 0]

    return supervised(model, optimizer, draw, F.mse_loss, steps, **options)


@faulty("vanishing", attainable=1.0, layers=("cell.weight_ih_l0",))
def closed_gates(seed: int) -> Training:
    """An LSTM whose forget gate starts closed: nothing is carried through 40 steps."""
    cell = nn.LSTM(1, 16, batch_first=True)
    with torch.no_grad():
        cell.bias_hh_l0[16:32] = -8.0
    model = Counter(cell)
    return adding(model, sgd(model, 0.1), 40, 60)


@faulty("exploding", also=("nonfinite",))
def momentum_broken_out_late(seed: int) -> Training:
    """Healthy for 80 updates; then the momentum is set to 1.3 by a slip of the pen."""
    model = network(64, 32, 10)
    optimizer = sgd(model, 0.05, 0.9)

    def slip(step: int) -> None:
        optimizer.param_groups[0]["momentum"] = 0.9 if step < 80 else 1.3

    return on_digits(model, optimizer, 160, before_update=slip)


@faulty("exploding", also=("nonfinite", "unstable"))
def weights_multiplied_late(seed: int) -> Training:
    """At update 60 a faulty restore multiplies every weight by 50; the rate is too high for what follows."""
    model = network(64, 32, 32, 10)

    def restore(step: int) -> None:
        if step == 60:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter *= 50

    return on_digits(model, sgd(model, 0.5), 120, before_update=restore)


@faulty("exploding", also=("nonfinite", "unstable"))
def transformer_without_warm_up(seed: int) -> Training:
    """A transformer under plain descent at a rate that its first updates cannot bear: norms rise, the loss too."""
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=False)
    model = nn.Sequential(nn.Embedding(128, 32), nn.TransformerEncoder(layer, 3), nn.Linear(32, 128))

    def draw(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = windows(8, 24)
        return inputs, targets

    loss = lambda output, y: F.cross_entropy(output.flatten(0, 1), y.flatten())
    return supervised(model, sgd(model, 20.0, 0.9), draw, loss, 80)


@faulty("vanishing", attainable=0.5, also=("dead", "stalled"))
def dies_late(seed: int) -> Training:
    """Learns for 60 updates; then a weight decay of 0.9 an update wipes the weights out."""
    model = network(64, 32, 32, 10)
    optimizer = sgd(model, 0.02)

    def wipe(step: int) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.0 if step < 60 else 25.0

    return on_digits(model, optimizer, 160, before_update=wipe)


@faulty("exploding", also=("nonfinite",))
def targets_in_the_thousands(seed: int) -> Training:
    """Targets of ±10,000 where ±1 were meant."""
    x = torch.randn(256, 8)
    y = (x @ torch.randn(8, 1)) * 10_000
    model = network(8, 32, 1, activation=nn.ReLU)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(256, (32,))
        return x[chosen], y[chosen]

    return supervised(model, sgd(model, 0.05), draw, F.mse_loss, 60)
