"""Losses that are negative, change sign, are noisy or begin low, and inputs that are nothing or far too large."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits
from benchmarks.detection.others.parts import (
    accuracy_of,
    adam,
    explained,
    network,
    sample,
    scored,
    sgd,
)
from benchmarks.detection.program import Observe, Pair, Training, plain


def ring(batch: int) -> Tensor:
    """Draw points near a ring of radius 2."""
    angle = torch.rand(batch) * 2 * torch.pi
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.1 * torch.randn(batch, 2)


def adversarial(is_saturating: bool, rate: float) -> Training:
    """A generator and a discriminator of points on a ring, an optimizer and a loss each."""
    generator, discriminator = network(4, 48, 48, 2), network(2, 48, 48, 1, activation=lambda: nn.LeakyReLU(0.2))
    with torch.no_grad():
        generator[-1].bias.add_(5.0)
    of_generator = sgd(generator, 0.02, momentum=0.5)
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=rate, betas=(0.5, 0.9))

    def judge(observe: Observe) -> None:
        real, fake = discriminator(ring(64)), discriminator(generator(torch.randn(64, 4)).detach())
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        of_discriminator.zero_grad()
        observe(loss)
        loss.backward()
        of_discriminator.step()

    def step(number: int, observe: Observe) -> None:
        for _ in range(3):
            judge(observe)
        scores = discriminator(generator(torch.randn(64, 4)))
        loss = -F.softplus(scores).mean() if is_saturating else F.softplus(-scores).mean()
        of_generator.zero_grad()
        observe(loss)
        loss.backward()
        of_generator.step()

    def score() -> Tensor:
        radius = generator(torch.randn(500, 4)).norm(dim=1)
        return -(radius - 2).abs().mean()

    models = {"generator": generator, "discriminator": discriminator}
    return scored(Training(models, [of_discriminator, of_generator], 300, step), score)


ADVERSARIAL = Pair("generator against discriminator", reaches=-1.0)


@ADVERSARIAL.sick(
    "vanishing",
    also=("stalled",),
    layers=("generator.*",),
    cause="the discriminator is sure, and the saturating loss log(1 − D) has no slope there",
)
def generator_gone(seed: int) -> Training:
    """The discriminator learns five times as fast, and the generator minimises log(1 − D)."""
    return adversarial(True, 1.5e-2)


@ADVERSARIAL.healthy
def generator_that_follows(seed: int) -> Training:
    """Both learn equally fast, and the generator minimises −log D."""
    return adversarial(False, 3e-3)


class MeanAndDeviation(nn.Module):
    """A mean, given x, and one log-variance for all items."""

    def __init__(self, log_variance: float) -> None:
        super().__init__()
        self.mean, self.log_variance = network(4, 48, 48, 1), nn.Parameter(torch.tensor(log_variance))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x)[:, 0], self.log_variance


def likelihood(log_variance: float, floor: float, is_adaptive: bool) -> Training:
    """Regression by likelihood, with a variance that is learned, too, and never below ``floor``."""
    x = torch.randn(600, 4)
    y = torch.sin(2 * x[:, 0])
    model = MeanAndDeviation(log_variance)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        mean, log_variance = model(x[chosen])
        variance = log_variance.exp() + floor
        return 0.5 * (variance.log() + (y[chosen] - mean).square() / variance).mean()

    optimizer = adam(model, 3e-3) if is_adaptive else sgd(model, 0.05, momentum=0.9)
    return scored(plain(model, optimizer, loss_of, 350), explained(lambda rows: model(rows)[0], x, y))


LIKELIHOOD = Pair("likelihood with a learned variance", reaches=0.9)


@LIKELIHOOD.sick(
    "vanishing",
    also=("stalled",),
    layers=("mean.*",),
    cause="the variance starts at e⁶⁰, and the gradient of the mean is divided by it",
)
def variance_in_place_of_its_logarithm(seed: int) -> Training:
    """The log-variance starts at 60, the variance itself: the mean's gradient is divided by e⁶⁰."""
    return likelihood(60.0, 0.0, True)


@LIKELIHOOD.healthy
def variance_started_at_one(seed: int) -> Training:
    """A log-variance that starts at 0; the loss ends below zero."""
    return likelihood(0.0, 0.0, True)


@LIKELIHOOD.sick(
    "exploding",
    also=("nonfinite", "unstable"),
    cause="the likelihood has no upper end: the variance shrinks without a floor, and gradients grow as one over it",
)
def variance_shrinks_without_a_floor(seed: int) -> Training:
    """Labels have no noise, so that the best variance is zero; descent overshoots once the curvature is too large."""
    return likelihood(0.0, 0.0, False)


@LIKELIHOOD.healthy
def variance_with_a_floor(seed: int) -> Training:
    """The same descent with a variance of at least 0.1; the loss falls from above zero to below."""
    return likelihood(0.0, 0.1, False)


class Coupling(nn.Module):
    """An affine coupling of two halves (RealNVP), and its log-determinant."""

    def __init__(self, is_first: bool) -> None:
        super().__init__()
        self.inner, self.is_first = network(1, 48, 48, 2), is_first
        nn.init.zeros_(self.inner[4].weight)
        nn.init.zeros_(self.inner[4].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = (x[:, :1], x[:, 1:]) if self.is_first else (x[:, 1:], x[:, :1])
        scale, shift = self.inner(kept).chunk(2, -1)
        changed = changed * scale.exp() + shift
        pair = [kept, changed] if self.is_first else [changed, kept]
        return torch.cat(pair, dim=1), scale[:, 0]


def flow(size: float) -> Training:
    """A flow of six couplings on points of a parabola, ``size`` times as far apart."""
    model = nn.ModuleList(Coupling(index % 2 == 0) for index in range(6))

    def log_density(x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for coupling in model:
            x, log_scale = coupling(x)
            total = total + log_scale
        return total - 0.5 * x.square().sum(1) - 1.8379

    def draw(batch: int) -> Tensor:
        first = torch.randn(batch)
        return size * torch.stack([0.3 * first, 0.3 * first.square() + 0.05 * torch.randn(batch)], dim=1)

    def loss_of(step: int) -> Tensor:
        return -log_density(draw(128)).mean()

    return scored(plain(model, adam(model, 3e-3), loss_of, 200), lambda: log_density(draw(500)).mean())


FLOW = Pair("normalising flow", reaches=0.3)


@FLOW.sick(
    "exploding",
    also=("nonfinite",),
    cause="inputs in thousands, never standardised",
)
def flow_on_points_in_thousands(seed: int) -> Training:
    """The same flow on points in another unit, 3,000 times as large."""
    return flow(3e3)


@FLOW.healthy
def flow_below_zero(seed: int) -> Training:
    """A normalising flow on points so close that their negative log-likelihood falls far below zero."""
    return flow(1.0)


def noisy(rate: float) -> Training:
    """Regression whose noise is fifty times what can be learned, in two losses, summed."""
    x = torch.randn(4000, 6)
    clean = torch.stack([torch.sin(x[:, 0] + x[:, 1]), torch.tanh(x[:, 2] - x[:, 3])], dim=1)
    y = clean + 4 * torch.randn(4000, 2)
    model = network(6, 32, 2)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (512,))
        output = model(x[chosen])
        return F.mse_loss(output[:, 0], y[chosen, 0]) + F.mse_loss(output[:, 1], y[chosen, 1])

    return scored(plain(model, sgd(model, rate), loss_of, 400), explained(model, x, clean))


NOISY = Pair("noise wider than what is learned", reaches=0.2)


@NOISY.sick("stalled", cause="a rate of 1e-7: nothing moves, and the noise of the loss hides it")
def rate_of_nothing_among_noise(seed: int) -> Training:
    """The rate is 1e-7, and the loss jumps by three per cent from batch to batch for no reason of its own."""
    return noisy(1e-7)


@NOISY.healthy
def small_signal_among_noise(seed: int) -> Training:
    """The same with a rate that learns; the loss falls by less than its noise."""
    return noisy(0.05)


def easy_first(rate: float) -> Training:
    """Digits whose first batch is of one class, which the bias of the head already tells."""
    model = network(64, 48, 48, 10)
    x, y = digits()
    zeros = (y == 0).nonzero()[:64, 0]
    with torch.no_grad():
        model[4].bias[0] = 4.0

    def loss_of(step: int) -> Tensor:
        inputs, classes = (x[zeros], y[zeros]) if step == 0 else sample()
        return F.cross_entropy(model(inputs), classes)

    return scored(plain(model, sgd(model, rate), loss_of, 200), accuracy_of(model))


EASY = Pair("easy first batch", reaches=0.75)


@EASY.healthy
def first_batch_of_one_class(seed: int) -> Training:
    """A sorted file: the first batch has one class and a loss near zero; all later ones are ordinary."""
    return easy_first(0.2)


@EASY.sick("unstable", also=("exploding", "dead"), cause="the rate is a hundred times too high")
def first_batch_of_one_class_far_too_fast(seed: int) -> Training:
    """The same file at a rate of 30, at which the network never settles."""
    return easy_first(30.0)


INTEGERS = Pair("pixels from bytes", reaches=0.7)


def from_bytes(is_integer: bool) -> Training:
    """Digits that come as bytes, brought to 0 … 1 by a division."""
    model = network(64, 48, 48, 10)

    def forward(x: Tensor) -> Tensor:
        as_bytes = (x * 254).to(torch.uint8)
        return model((as_bytes // 255).float() if is_integer else as_bytes / 255)

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        return F.cross_entropy(forward(x), y)

    return scored(plain(model, adam(model), loss_of, 150), accuracy_of(forward))


@INTEGERS.sick(
    "vanishing",
    also=("dead", "stalled"),
    layers=("0.weight",),
    cause="the inputs are all zero: bytes divided as integers",
)
def bytes_divided_as_integers(seed: int) -> Training:
    """``// 255`` where ``/ 255`` was meant: every pixel is zero, and the first weight has no gradient."""
    return from_bytes(True)


@INTEGERS.healthy
def bytes_divided_as_numbers(seed: int) -> Training:
    """The same bytes over 255."""
    return from_bytes(False)


class TanhReader(nn.Module):
    """A recurrence of tanh over ten prices, and a head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inlet, self.recur, self.head = nn.Linear(1, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), self.recur.in_features)
        for price in x.unbind(1):
            state = torch.tanh(self.recur(state) + self.inlet(price[:, None]))
        return self.head(state)[:, 0]


def price_series(is_raw: bool) -> Training:
    """Tell the next relative move of a price from the ten before."""
    model = TanhReader()

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        moves = torch.randn(batch, 11)
        for index in range(1, 11):
            moves[:, index] = 0.8 * moves[:, index - 1] + 0.4 * moves[:, index]
        prices = 4e4 * (1 + 0.05 * moves)
        return (prices[:, :-1] if is_raw else moves[:, :-1]), moves[:, -1]

    def loss_of(step: int) -> Tensor:
        x, y = draw(64)
        return F.mse_loss(model(x), y)

    return scored(plain(model, adam(model, 3e-3), loss_of, 200), explained(model, *draw(500)))


PRICES = Pair("recurrence over prices", reaches=0.3)


@PRICES.sick(
    "saturated",
    also=("vanishing", "stalled"),
    layers=("inlet.*", "recur.*"),
    cause="every tanh is flat because of its inputs, raw prices of 4e4",
)
def tanh_flat_through_raw_prices(seed: int) -> Training:
    """Prices of 40,000 enter a tanh: every unit is ±1 whatever the price."""
    return price_series(True)


@PRICES.healthy
def tanh_of_relative_moves(seed: int) -> Training:
    """Relative moves in place of prices."""
    return price_series(False)
