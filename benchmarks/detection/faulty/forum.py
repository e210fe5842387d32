"""Failures that people asked about on Stack Overflow, discuss.pytorch.org and GitHub, made again from the facts there.

Only the facts were taken: sizes, activations, initialisation, loss, optimizer. The digits stand in for MNIST.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.program import Training, faulty, healthy, plain, supervised


class MultipliedReLU(nn.Module):
    """ReLU whose derivative is multiplied, as TensorFlow's: a NaN passes. PyTorch's own turns it into zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0)


def dense(*widths: int, between: Callable[[], nn.Module], last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers with ``between`` between them and ``last`` at the end."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), between()]
    return nn.Sequential(*layers[:-1], *([] if last is None else [last]))


def convolutional(last: nn.Module | None = None) -> nn.Sequential:
    """Two convolutions with pools, a hidden layer, ten outputs."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *dense(64, 32, 10, between=nn.ReLU, last=last),
    )


def normal_(model: nn.Module, deviation: float = 1.0) -> None:
    """Draws every weight and bias from N(0, ``deviation``²)."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=deviation)


def on(
    x: Tensor,
    y: Tensor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    batch: int | None = None,
    **options,
) -> Training:
    """Random batches of (x, y), or all of it each time."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = slice(None) if batch is None else torch.randint(len(x), (batch,))
        return x[chosen], y[chosen]

    return supervised(model, optimizer, draw, loss, steps, **options)


def sgd(model: nn.Module, rate: float, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate)


def one_hot(classes: Tensor, count: int = 10) -> Tensor:
    return F.one_hot(classes, count).float()


# Questions with a number --------------------------------------------------------------------------------------------


@faulty("exploding", also=("nonfinite",))
def linear_digits_at_rate_three(seed: int) -> Training:
    """Two linear layers from N(0, 1) without an activation, squared error, lr 3: NaN within an epoch (SO 48385830)."""
    x, y = digits()
    model = dense(64, 30, 10, between=nn.Identity)
    normal_(model)
    return on(x, one_hot(y), model, sgd(model, 3.0), lambda out, t: (out - t).square().sum(1).mean(), 60, batch=10)


@faulty("vanishing", also=("saturated", "stalled"), attainable=0.1)
def softmax_over_one_unit(seed: int) -> Training:
    """A softmax over one unit is 1 whatever goes in: the gradient is exactly zero (SO 31880720)."""
    y = torch.randint(2, (20_000, 1)).float()
    x = y.expand(-1, 128)
    model = nn.Sequential(
        *(nn.Linear(128, 50), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, 50), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Linear(50, 1), nn.Softmax(1)),
    )
    return on(x, y, model, torch.optim.RMSprop(model.parameters(), 1e-3), F.binary_cross_entropy, 150, batch=128)


@faulty("vanishing", also=("saturated", "stalled"), attainable=5e7)
def regression_through_softmax(seed: int) -> Training:
    """A sum of inputs up to 1e4 through tanh and a softmax over one unit: saturated, then constant (SO 33969059).

    Attainable is what the targets' mean attains.
    """
    x = torch.rand(1000, 3) * 1e4
    y = x @ torch.tensor([[2.0], [1.0], [0.5]]) + 2.2
    model = dense(3, 2, 1, between=nn.Tanh, last=nn.Softmax(1))
    return on(x, y, model, sgd(model, 0.1, 0.9), F.mse_loss, 150, batch=32)


@faulty("nonfinite")
def relu_as_probabilities(seed: int) -> Training:
    """Cross-entropy by hand takes the log of a ReLU: 0 times log 0 is NaN (SO 47352366)."""
    x, y = digits(255.0)
    model = convolutional(last=MultipliedReLU())
    return on(x, one_hot(y), model, adam(model), lambda p, t: -(t * p.log()).sum(1).mean(), 40, batch=50)


@faulty("vanishing", also=("saturated", "unstable"), attainable=0.15)
def tanh_on_raw_pixels_with_momentum(seed: int) -> Training:
    """Squared error of a softmax, tanh from U(±.05), dropout, lr .1, momentum .9: never learns (after SO 34673164).

    On raw pixels the first tanh ends up flat for every input.
    """
    x, y = digits(255.0)
    model = nn.Sequential(
        *(nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.5)),
        *(nn.Linear(64, 2), nn.Softmax(1)),
    )
    for layer in model[0::3]:
        nn.init.uniform_(layer.weight, -0.05, 0.05)
        nn.init.zeros_(layer.bias)
    return on(x, one_hot(y % 2, 2), model, sgd(model, 0.1, 0.9), F.mse_loss, 300, batch=128)


@healthy(falls_to=0.1)
def he_normal_on_raw_pixels_learns(seed: int) -> Training:
    """A He-normal CNN on pixels to 255: the loss starts in the hundreds, yet Adam brings it down (SO 48594888)."""
    x, y = digits(255.0)
    model = convolutional()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return on(x, y, model, adam(model), F.cross_entropy, 300, batch=64)


@faulty("nonfinite")
def binary_cross_entropy_of_logits(seed: int) -> Training:
    """The sigmoid was forgotten: a logit outside (0, 1) has no log, and only the loss is NaN, no gradient is."""
    x, y = digits()
    model = dense(64, 512, 10, between=nn.Sigmoid)
    nn.init.normal_(model[2].weight, std=0.01)
    nn.init.constant_(model[2].bias, 0.5)  # inside (0, 1) at first, else no loss at all were finite
    loss = lambda z, t: -(t * z.log() + (1 - t) * (1 - z).log()).mean()
    return on(x, one_hot(y), model, sgd(model, 0.05), loss, 60, batch=64)


@faulty("vanishing", also=("dead", "stalled"), attainable=0.9)
def relu_on_the_logits_dies_by_training(seed: int) -> Training:
    """A ReLU before cross-entropy: every logit falls below zero for every input and stays there."""
    x, y = digits(16.0)
    model = dense(64, 64, 10, between=nn.ReLU, last=nn.ReLU())
    return on(x, y, model, adam(model, 0.05), F.cross_entropy, 200, batch=64)


@faulty("unstable")
def line_without_zero_grad(seed: int) -> Training:
    """Gradients are never set to zero: descent becomes a swing without friction (after SO 60335387).

    With zero_grad, lr 1e-4 would converge.
    """
    x = torch.rand(200, 1) * 150
    model = nn.Linear(1, 1)
    return on(x, 2 * x + 3, model, sgd(model, 1e-4), F.mse_loss, 200, zero=False)


@faulty("vanishing", also=("saturated", "stalled"), attainable=0.06)
def sigmoid_at_rate_100(seed: int) -> Training:
    """One sigmoid layer at lr 100: one update, and every output is exactly 0 or 1 (discuss.pytorch 153791)."""
    x, y = digits(255.0)
    model = nn.Sequential(nn.Linear(64, 10, bias=False), nn.Sigmoid())
    return on(x, one_hot(y), model, sgd(model, 100.0), F.mse_loss, 120)


@faulty("nonfinite")
def where_hides_a_division_by_zero(seed: int) -> Training:
    """where(n == 0, 0, x / n) is finite, its gradient at n = 0 is 0 / 0: a bag without words (pytorch 16317)."""
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 1))
    value = torch.randn(50)

    def loss_of(step: int) -> Tensor:
        words, kept = torch.randint(50, (32, 8)), torch.rand(32, 8) < 0.5
        count = kept.sum(1, keepdim=True)
        total = (model[0](words) * kept[..., None]).sum(1)
        mean = torch.where(count == 0, 0.0, total / count)
        target = (value[words] * kept).sum(1, keepdim=True) / count.clamp(min=1)
        return F.mse_loss(model[1](mean), target)

    return plain(model, adam(model, 1e-2), loss_of, 120)


class CharModel(nn.Module):
    """A small GPT over bytes below 128."""

    def __init__(self, width: int = 32, length: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(128, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight
        for block in self.blocks:
            x = block(x, src_mask=self.mask)
        return self.head(self.norm(x))


@faulty("exploding", also=("nonfinite", "unstable"))
def char_gpt_warmed_up_too_far(seed: int) -> Training:
    """Learns well until the warm-up has raised the rate too far; then NaN (after nanoGPT 136)."""
    model = CharModel()
    optimizer = sgd(model, 0.0, 0.9)

    def loss_of(step: int) -> Tensor:
        optimizer.param_groups[0]["lr"] = 0.015 * (step + 1)
        inputs, targets = windows(8, 32)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return plain(model, optimizer, loss_of, 250)


# Reports that come again and again ----------------------------------------------------------------------------------


@faulty("exploding", also=("nonfinite",))
def house_prices_as_they_are(seed: int) -> Training:
    """Areas in the thousands, prices in the hundreds of thousands, nothing scaled, lr .01: Inf."""
    x = torch.stack([torch.rand(500) * 4500 + 500, torch.randint(1, 7, (500,)).float(), torch.rand(500) * 80], 1)
    y = x @ torch.tensor([[150.0], [20_000.0], [-800.0]]) + 50_000
    model = nn.Linear(3, 1)
    return on(x, y, model, sgd(model, 0.01), F.mse_loss, 40, batch=32)


@faulty("exploding", also=("nonfinite",))
def classes_as_numbers(seed: int) -> Training:
    """Squared error on class indices at a rate meant for cross-entropy."""
    x, y = digits()
    model = dense(64, 32, 1, between=nn.Tanh)
    return on(x, y[:, None].float(), model, sgd(model, 0.5), F.mse_loss, 60, batch=64)


@faulty("vanishing", also=("saturated", "stalled"), attainable=1.7)
def softmax_twice_on_raw_pixels(seed: int) -> Training:
    """Cross-entropy takes the softmax of a softmax; that of raw pixels is one-hot, and flat (attainable: scaled)."""
    x, y = digits(255.0)
    model = dense(64, 64, 10, between=nn.ReLU, last=nn.Softmax(1))
    return on(x, y, model, adam(model, 0.03), F.cross_entropy, 120, batch=64)


@faulty("exploding", also=("nonfinite",))
def critic_without_a_constraint(seed: int) -> Training:
    """A Wasserstein critic with neither clipping nor penalty: its loss goes to -Inf, faster and faster."""
    x, _ = digits()
    model = dense(64, 64, 64, 1, between=nn.ReLU)

    def loss_of(step: int) -> Tensor:
        real, fake = x[torch.randint(len(x), (64,))], torch.rand(64, 64)
        return model(fake).mean() - model(real).mean()

    return plain(model, sgd(model, 0.05, 0.9), loss_of, 150)


class Autoencoder(nn.Module):
    """A variational autoencoder of 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = dense(64, 32, 16, between=nn.ReLU), dense(8, 32, 64, between=nn.ReLU)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


@faulty("nonfinite", also=("exploding",))
def variational_autoencoder_on_raw_pixels(seed: int) -> Training:
    """The log variance of raw pixels is in the tens; its exponential overflows."""
    x, _ = digits(255.0)
    model = Autoencoder()

    def loss_of(step: int) -> Tensor:
        batch = x[torch.randint(len(x), (64,))]
        output, mean, log_variance = model(batch)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return (output - batch).square().sum(1).mean() + divergence

    return plain(model, sgd(model, 1e-4), loss_of, 60)


@faulty("nonfinite")
def softmax_by_hand(seed: int) -> Training:
    """exp(z) / sum exp(z) without subtracting the maximum: Inf / Inf as soon as a logit passes 88."""
    x, y = digits(16.0)
    model = dense(64, 64, 10, between=nn.ReLU)
    loss = lambda z, t: -(t * (z.exp() / z.exp().sum(1, keepdim=True) + 1e-8).log()).sum(1).mean()
    return on(x, one_hot(y), model, adam(model, 0.1), loss, 60, batch=64)


@faulty("nonfinite")
def adam_in_half_precision(seed: int) -> Training:
    """Adam's eps of 1e-8 is zero in float16, and so are small squares: 0 / 0 (discuss.pytorch 1765)."""
    x, y = digits()
    model = dense(64, 32, 10, between=nn.ReLU).half()
    return on(x.half(), y, model, adam(model), lambda z, y: F.cross_entropy(z.float(), y), 40, batch=64)


@faulty("vanishing", also=("dead",), layers=("0.*", "2.weight"), attainable=0.5)
def all_weights_zero(seed: int) -> Training:
    """Zero weights before and behind a ReLU: no gradient for either, only the last bias learns."""
    x, y = digits()
    model = dense(64, 64, 10, between=nn.ReLU)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return on(x, y, model, adam(model, 1e-2), F.cross_entropy, 120, batch=64)
