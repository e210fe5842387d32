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


def adversarial(is_saturating: bool, head_start: int) -> Training:
    """A generator and a discriminator of points on a ring, an optimizer and a loss each."""
    generator, discriminator = network(4, 48, 48, 2), network(2, 48, 48, 1, activation=lambda: nn.LeakyReLU(0.2))
    with torch.no_grad():
        generator[-1].bias.add_(5.0)
    of_generator = torch.optim.Adam(generator.parameters(), lr=3e-3, betas=(0.5, 0.9))
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=3e-3, betas=(0.5, 0.9))

    def judge(observe: Observe | None) -> None:
        real, fake = discriminator(ring(64)), discriminator(generator(torch.randn(64, 4)).detach())
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        of_discriminator.zero_grad()
        if observe:
            observe(loss)
        loss.backward()
        of_discriminator.step()

    for _ in range(head_start):
        judge(None)

    def step(number: int, observe: Observe) -> None:
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
    """The discriminator has a head start of 500 updates, and the generator minimises log(1 − D)."""
    return adversarial(True, 500)


@ADVERSARIAL.healthy
def generator_that_follows(seed: int) -> Training:
    """Both begin together, and the generator minimises −log D."""
    return adversarial(False, 0)


class MixtureDensity(nn.Module):
    """Weights, means and log-deviations of a mixture, given x."""

    def __init__(self, floor: float, components: int = 5) -> None:
        super().__init__()
        self.body, self.head, self.floor = network(1, 64, 64), nn.Linear(64, 3 * components), floor

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        logits, means, logs = self.head(F.relu(self.body(x))).chunk(3, -1)
        deviations = logs.exp() + self.floor
        of = torch.distributions
        return of.MixtureSameFamily(
            of.Categorical(logits=logits, validate_args=False),
            of.Normal(means, deviations, validate_args=False),
            validate_args=False,
        )


def mixture(floor: float, rate: float = 1e-2) -> Training:
    """Density of a label that is exactly zero for half of the items, as rainfall is."""
    x = torch.rand(600, 1) * 2 - 1
    y = 0.3 * torch.sin(3 * x[:, 0]) + 0.02 * torch.randn(600)
    y[:300] = 0.0
    model = MixtureDensity(floor)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (128,))
        return -model(x[chosen]).log_prob(y[chosen]).mean()

    made = plain(model, sgd(model, rate, momentum=0.9), loss_of, 400)
    return scored(made, lambda: model(x[300:]).log_prob(y[300:]).mean())


DENSITY = Pair("mixture of densities", reaches=0.4)


@DENSITY.sick(
    "exploding",
    also=("nonfinite", "unstable"),
    cause="the likelihood has no upper end: one component shrinks onto repeated labels, its deviation to zero",
)
def component_shrinks_onto_zero(seed: int) -> Training:
    """No floor under the deviations: a component closes on the zeros, and the gradient grows as one over its width."""
    return mixture(0.0)


@DENSITY.healthy
def component_of_least_width(seed: int) -> Training:
    """Deviations of at least 0.05; the loss ends below zero."""
    return mixture(0.05)


class MeanAndDeviation(nn.Module):
    """A mean and a log-variance, each by a network of its own, given x."""

    def __init__(self, log_variance: float) -> None:
        super().__init__()
        self.mean, self.log_variance = network(4, 48, 48, 1), network(4, 16, 1)
        nn.init.zeros_(self.log_variance[2].weight)
        nn.init.constant_(self.log_variance[2].bias, log_variance)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x)[:, 0], self.log_variance(x)[:, 0]


def likelihood(log_variance: float) -> Training:
    """Regression by likelihood, with a deviation that is predicted, too."""
    x = torch.randn(600, 4)
    y = torch.sin(2 * x[:, 0]) + 0.05 * torch.randn(600)
    model = MeanAndDeviation(log_variance)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        mean, log_variance = model(x[chosen])
        return 0.5 * (log_variance + (y[chosen] - mean).square() * (-log_variance).exp()).mean()

    made = plain(model, sgd(model, 0.05, momentum=0.9), loss_of, 350)
    return scored(made, explained(lambda rows: model(rows)[0], x, y))


LIKELIHOOD = Pair("likelihood with a predicted variance", reaches=0.6)


@LIKELIHOOD.sick(
    "vanishing",
    also=("stalled",),
    layers=("mean.*",),
    cause="the variance starts at e²⁵, and the gradient of the mean is divided by it",
)
def variance_started_at_e25(seed: int) -> Training:
    """The bias of the log-variance is 25, as if it were a precision: the mean's gradient is 1e-11 of the other's."""
    return likelihood(25.0)


@LIKELIHOOD.healthy
def variance_started_at_one(seed: int) -> Training:
    """A log-variance that starts at 0; the loss ends below zero."""
    return likelihood(0.0)


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
        scale = torch.tanh(scale) * 2
        changed = changed * scale.exp() + shift
        pair = [kept, changed] if self.is_first else [changed, kept]
        return torch.cat(pair, dim=1), scale[:, 0]


def flow(sign: float) -> Training:
    """A flow of six couplings on tight points; ``sign`` is that of the log-determinant."""
    model = nn.ModuleList(Coupling(index % 2 == 0) for index in range(6))

    def log_density(x: Tensor, sign: float) -> Tensor:
        total = torch.zeros(len(x))
        for coupling in model:
            x, log_scale = coupling(x)
            total = total + sign * log_scale
        return total - 0.5 * x.square().sum(1) - 1.8379

    def draw(batch: int) -> Tensor:
        first = torch.randn(batch)
        return torch.stack([0.3 * first, 0.3 * first.square() + 0.05 * torch.randn(batch)], dim=1)

    def loss_of(step: int) -> Tensor:
        return -log_density(draw(128), sign).mean()

    return scored(plain(model, adam(model, 3e-3), loss_of, 200), lambda: log_density(draw(500), 1.0).mean())


FLOW = Pair("normalising flow", reaches=0.3)


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


NOISY = Pair("noise wider than what is learned", reaches=0.3)


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
