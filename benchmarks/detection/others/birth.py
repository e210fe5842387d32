"""Explosions at birth: the first forward or backward pass is already out of all proportion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.others.parts import adam, classifier, explained, network, scored, sgd
from benchmarks.detection.program import Pair, Training, plain


class Residual(nn.Module):
    """x + scale · inner(x), without normalisation, by He's initialisation."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(width, width), nn.Linear(width, width), scale
        for layer in (self.up, self.down):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.relu(self.up(x)))


def residual_stack(scale: float, depth: int = 16) -> Training:
    model = nn.Sequential(nn.Linear(64, 40), *[Residual(40, scale) for _ in range(depth)], nn.Linear(40, 10))
    return classifier(model, sgd(model, 0.02, momentum=0.9), 150)


RESIDUAL = Pair("residual stack without normalisation", reaches=0.8)


@RESIDUAL.sick(
    "exploding", also=("nonfinite",), cause="16 residual blocks treble the variance each, nothing normalises"
)
def residual_blocks_add_up(seed: int) -> Training:
    """Every block adds a branch as large as its input, so that the variance grows by three a block."""
    return residual_stack(1.0)


@RESIDUAL.healthy
def residual_blocks_scaled_by_depth(seed: int) -> Training:
    """The same blocks, each branch divided by the depth (as in Fixup or DeepNet)."""
    return residual_stack(1 / 16)


class Recurrent(nn.Module):
    """A linear recurrence whose matrix starts as ``radius`` times an orthogonal one."""

    def __init__(self, radius: float, width: int = 32) -> None:
        super().__init__()
        self.inlet, self.recur = nn.Linear(1, width), nn.Linear(width, width, bias=False)
        self.outlet = nn.Linear(width, 1)
        with torch.no_grad():
            self.recur.weight.copy_(radius * torch.linalg.qr(torch.randn(width, width))[0])

    def forward(self, sequence: Tensor) -> Tensor:
        state = torch.zeros(len(sequence), self.recur.in_features)
        for item in sequence.unbind(1):
            state = self.recur(state) + self.inlet(item[:, None])
        return self.outlet(state)[:, 0]


def running_sums(radius: float, length: int = 40) -> Training:
    """Tell the mean of a sequence, scaled to variance 1."""
    model = Recurrent(radius)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, length)
        return x, x.sum(1) / length**0.5

    def loss_of(step: int) -> Tensor:
        x, y = draw(64)
        return F.mse_loss(model(x), y)

    return scored(plain(model, adam(model, 3e-3), loss_of, 250), explained(model, *draw(500)))


RECURRENT = Pair("linear recurrence over 40 items", reaches=0.5)


@RECURRENT.sick("exploding", also=("nonfinite",), cause="recurrent matrix of spectral radius 1.25, to the power of 40")
def recurrent_radius_above_one(seed: int) -> Training:
    """A gain of 1.25 from an initialiser for rectifiers: over 40 items the state grows by 7e3."""
    return running_sums(1.25)


@RECURRENT.healthy
def recurrent_radius_just_below_one(seed: int) -> Training:
    """The same recurrence with an orthogonal matrix of radius 0.97."""
    return running_sums(0.97)


class Equilibrium(nn.Module):
    """z ← relu(W z + U x), iterated: an implicit layer whose fixed point is sought by iteration."""

    def __init__(self, radius: float, width: int = 48, iterations: int = 25) -> None:
        super().__init__()
        self.inlet, self.inner, self.iterations = nn.Linear(64, width), nn.Linear(width, width), iterations
        self.outlet = nn.Linear(width, 10)
        with torch.no_grad():
            weight = torch.randn(width, width)
            self.inner.weight.copy_(radius * weight / torch.linalg.matrix_norm(weight, 2))

    def forward(self, x: Tensor) -> Tensor:
        inlet = self.inlet(x)
        z = torch.zeros_like(inlet)
        for _ in range(self.iterations):
            z = F.relu(self.inner(z) + inlet)
        return self.outlet(z)


def equilibrium(radius: float) -> Training:
    model = Equilibrium(radius)
    return classifier(model, sgd(model, 0.1), 200)


IMPLICIT = Pair("implicit layer", reaches=0.8)


@IMPLICIT.sick("exploding", also=("nonfinite",), cause="the iterated layer is no contraction: there is no fixed point")
def implicit_layer_without_fixed_point(seed: int) -> Training:
    """The inner matrix has a norm of 4, and the iteration runs away from its fixed point."""
    return equilibrium(4.0)


@IMPLICIT.healthy
def implicit_layer_contracts(seed: int) -> Training:
    """The inner matrix has a norm of 0.9, so that the iteration converges."""
    return equilibrium(0.9)


class LinearAttention(nn.Module):
    """x + softmax-free attention, Q (Kᵀ V), over all positions; divided by their number where ``is_mean``."""

    def __init__(self, width: int, is_mean: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.is_mean = is_mean

    def forward(self, x: Tensor) -> Tensor:
        summary = self.key(x).transpose(1, 2) @ self.value(x)
        if self.is_mean:
            summary = summary / x.shape[1]
        return x + self.query(x) @ summary


class Pixels(nn.Module):
    """64 pixels as 64 tokens, attention layers, the mean, a head."""

    def __init__(self, is_mean: bool, width: int = 32) -> None:
        super().__init__()
        self.level, self.position = nn.Linear(1, width), nn.Parameter(torch.randn(64, width))
        self.layers = nn.ModuleList(LinearAttention(width, is_mean) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.level(x[..., None]) * self.position
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


def pixel_attention(is_mean: bool) -> Training:
    model = Pixels(is_mean)
    return classifier(model, adam(model, 3e-3), 130)


ATTENTION = Pair("attention without a softmax", reaches=0.5)


@ATTENTION.sick("exploding", also=("nonfinite",), cause="attention sums over 64 positions and is divided by nothing")
def attention_sums_unscaled(seed: int) -> Training:
    """Every layer is cubic in its input and sums over 64 positions: three of them reach 1e20."""
    return pixel_attention(False)


@ATTENTION.healthy
def attention_means(seed: int) -> Training:
    """The same attention, divided by the number of positions."""
    return pixel_attention(True)


def houses(items: int = 600) -> tuple[Tensor, Tensor]:
    """Area in square feet, rooms, age in years, yearly income of the district; and the price."""
    draws = torch.randn(items, 4)
    x = torch.stack([2000 + 600 * draws[:, 0], 5 + draws[:, 1], 40 + 15 * draws[:, 2], 6e4 + 2e4 * draws[:, 3]], dim=1)
    price = 3e5 + 9e4 * draws[:, 0] + 2e4 * draws[:, 1] - 1e4 * draws[:, 2] + 5e4 * torch.tanh(draws[:, 3])
    return x, price


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0)


def valuation(x: Tensor, y: Tensor, optimizer: str = "sgd") -> Training:
    """Regression by three layers; the score is the share of variance explained."""
    model = network(4, 32, 32, 1)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        return F.mse_loss(model(x[chosen])[:, 0], y[chosen])

    made = sgd(model, 0.02, momentum=0.9) if optimizer == "sgd" else adam(model, 3e-3)
    return scored(plain(model, made, loss_of, 200), explained(lambda rows: model(rows)[:, 0], x, y))


HOUSES = Pair("prices of houses", reaches=0.7)


@HOUSES.sick("exploding", also=("nonfinite", "dead"), cause="inputs of 6e4 were never standardised")
def house_features_raw(seed: int) -> Training:
    """Prices are standardised, features are not: the income column is of 6e4."""
    x, price = houses()
    return valuation(x, standardised(price))


@HOUSES.sick("exploding", also=("nonfinite", "dead"), cause="targets of 3e5 were never scaled")
def house_prices_raw(seed: int) -> Training:
    """Features are standardised, prices are not: the first squared error is 1e11."""
    x, price = houses()
    return valuation(standardised(x), price)


@HOUSES.healthy
def house_features_and_prices_standardised(seed: int) -> Training:
    """The same regression with both standardised."""
    x, price = houses()
    return valuation(standardised(x), standardised(price))


@HOUSES.healthy
def house_prices_in_ten_thousands(seed: int) -> Training:
    """Standardised features, prices in units of 1e5 that keep their mean of 3."""
    x, price = houses()
    return valuation(standardised(x), price / 1e5)
