"""Layers of which four units in five or more, or all, sit where their rectifier passes no gradient, whatever comes in.

A ReLU6 that everything drives above 6 passes none either, but is at its ceiling: that is left out here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.faulty.common_errors import network, on_digits, sgd
from benchmarks.detection.program import Training, faulty, plain, supervised


def on_products(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 150, batch: int = 128) -> Training:
    """Four products of two of eight numbers each: nothing that a linear map could learn."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(batch, 8) * 4 - 2
        return x, x[:, :4] * x[:, 4:]

    return supervised(model, optimizer, draw, F.mse_loss, steps)


def adam(model: nn.Module, rate: float = 3e-3, **options) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=rate, **options)


@faulty("dead", also=("vanishing", "stalled"), layers=("0.*",), attainable=0.5)
def first_bias_of_minus_ten(seed: int) -> Training:
    """The first layer's bias is filled with −10, pixels add 2 at most: the network is a constant."""
    model = network(64, 64, 32, 10)
    nn.init.constant_(model[0].bias, -10.0)
    return on_digits(model, sgd(model, 0.5), 120)


@faulty("dead", also=("vanishing", "stalled"), attainable=0.3)
def prior_bias_in_every_layer(seed: int) -> Training:
    """RetinaNet's bias of −log 99 for the last layer (arXiv:1708.02002, 3.3) is given to all of them."""
    model = network(64, 128, 128, 10)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, -4.6)
    return on_digits(model, adam(model, 1e-3), 120)


@faulty("dead", also=("vanishing", "stalled"), layers=("3.*",), attainable=0.2)
def second_convolution_below_zero(seed: int) -> Training:
    """A convolution whose bias was restored from another layer: −5 in each channel, in-place ReLU."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(True), nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    nn.init.constant_(model[3].bias, -5.0)
    return on_digits(model, sgd(model, 0.2), 120)


@faulty("dead", also=("vanishing", "stalled"), layers=("2.*",), attainable=0.2)
def beta_of_minus_eight(seed: int) -> Training:
    """Batch normalisation whose shift starts at −8: a standard normal never reaches zero from there."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 10),
    )  # fmt: skip
    nn.init.constant_(model[2].weight, 0.5)
    nn.init.constant_(model[2].bias, -8.0)
    return on_digits(model, sgd(model, 0.1), 100)


@faulty("dead", also=("vanishing", "stalled"), layers=("1.*",), attainable=0.25)
def running_mean_of_raw_pixels(seed: int) -> Training:
    """Frozen batch normalisation with statistics of pixels up to 255, met by pixels up to 1: all far below zero."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    model[1].running_mean.fill_(120.0)
    model[1].running_var.fill_(60.0)
    model[1].eval()
    return on_digits(model, sgd(model, 0.1), 120)


@faulty("dead", also=("vanishing", "stalled"), layers=("0.*",), attainable=1.0)
def weights_by_rand_and_negative_inputs(seed: int) -> Training:
    """``torch.rand`` for weights, where ``randn`` was meant, and inputs in decibels, −80 to 0: no sum is above zero."""
    model = network(64, 32, 10)
    nn.init.uniform_(model[0].weight, 0, 0.1)
    x, y = digits()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (64,))
        return 80 * x[chosen] - 81, y[chosen]

    return supervised(model, sgd(model, 0.3), draw, F.cross_entropy, 120)


@faulty("dead", also=("vanishing", "stalled"), layers=("0.*",), attainable=0.6)
def centred_by_the_wrong_mean(seed: int) -> Training:
    """The mean of pixels up to 16 is taken off pixels up to 1, and the first layer's weights are never negative."""
    model = network(64, 128, 10)
    with torch.no_grad():
        model[0].weight.abs_()
    x, y = digits()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (32,))
        return x[chosen] - 4.88, y[chosen]

    return supervised(model, adam(model, 1e-3), draw, F.cross_entropy, 150)


@faulty("dead", also=("vanishing",), attainable=0.1)
def residual_branches_below_zero(seed: int) -> Training:
    """Six residual blocks whose branches' first bias is −20: only the identity is left, a linear map."""
    model = Residual(6, 32, F.relu)
    for block in model.blocks:
        nn.init.constant_(block.up.bias, -20.0)
    return on_products(model, adam(model))


@faulty("dead", also=("vanishing",), attainable=0.05)
def gelu_branches_below_zero(seed: int) -> Training:
    """Two feed-forward blocks with GELU around −12: its slope there is below 1e-15."""
    model = Residual(2, 64, F.gelu)
    for block in model.blocks:
        nn.init.constant_(block.up.bias, -12.0)
    return on_products(model, adam(model))


class Residual(nn.Module):
    """Feed-forward blocks, each added to what it reads."""

    def __init__(self, depth: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 4)
        self.blocks = nn.ModuleList(Branch(width, activation) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Branch(nn.Module):
    """Up, activation, down."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Tokens(nn.Module):
    """One block over eight tokens of one number each: attention to the other tokens, feed-forward."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(1, width), nn.Linear(width, 1)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.branch = Branch(width, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.unsqueeze(-1))
        others = ~torch.eye(8, dtype=torch.bool)
        x = x + F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), attn_mask=others)
        return self.head(x + self.branch(x)).squeeze(-1)


def on_tokens(model: nn.Module, optimizer: torch.optim.Optimizer) -> Training:
    """Each token's number is squared, to which the mean of the others is added."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(32, 8) * 4 - 2
        return x, x.square() + (x.sum(1, keepdim=True) - x) / 7

    return supervised(model, optimizer, draw, F.mse_loss, 150)


@faulty("dead", also=("vanishing",), layers=("branch.up.*",), attainable=0.15)
def transformer_with_dead_relu(seed: int) -> Training:
    """The feed-forward of a transformer block reads through a ReLU with a bias of −25."""
    model = Tokens(16, F.relu)
    nn.init.constant_(model.branch.up.bias, -25.0)
    return on_tokens(model, adam(model))


@faulty("dead", also=("vanishing",), layers=("branch.up.*",), attainable=0.05)
def transformer_with_dead_gelu(seed: int) -> Training:
    """The same with GELU and a bias of −40 from a mistaken unit in the checkpoint."""
    model = Tokens(32, F.gelu)
    nn.init.constant_(model.branch.up.bias, -40.0)
    return on_tokens(model, adam(model))


@faulty("dead", also=("vanishing", "stalled"), layers=("2.*",), attainable=0.5)
def silu_far_below_zero(seed: int) -> Training:
    """SiLU at −18: its slope is x eˣ, a few 1e-7."""
    model = network(64, 48, 48, 10, activation=nn.SiLU)
    nn.init.constant_(model[2].bias, -18.0)
    return on_digits(model, sgd(model, 0.5), 120)


@faulty("dead", also=("vanishing", "stalled"), layers=("2.*",), attainable=0.6)
def elu_far_below_zero(seed: int) -> Training:
    """ELU at −15 is −1 for all inputs."""
    model = network(64, 32, 32, 10, activation=nn.ELU)
    nn.init.constant_(model[2].bias, -15.0)
    return on_digits(model, sgd(model, 0.2), 150, batch=16)


@faulty("dead", also=("vanishing", "stalled"), attainable=0.3)
def hardswish_below_its_knee(seed: int) -> Training:
    """A mobile network's hardswish, exactly zero below −3, behind convolutions with a bias of −6."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.Hardswish(inplace=True), nn.Conv2d(16, 32, 3, stride=2),
        nn.Hardswish(inplace=True), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    nn.init.constant_(model[1].bias, -6.0)
    return on_digits(model, adam(model, 2e-3), 120)


@faulty("dead", also=("vanishing",), layers=("spread.*",), attainable=0.9)
def deviation_that_starts_at_nothing(seed: int) -> Training:
    """The deviation of a Gaussian is a softplus started at −25, plus a floor of 0.3: it never moves off the floor."""
    model = nn.ModuleDict({"centre": network(4, 32, 1), "spread": nn.Linear(4, 1)})
    nn.init.constant_(model["spread"].bias, -25.0)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 4)
        y = x[:, :1] + (1.5 + x[:, 1:2].tanh()) * torch.randn(64, 1)
        deviation = 0.3 + F.softplus(model["spread"](x))
        return ((y - model["centre"](x)) / deviation).square().mean() / 2 + deviation.log().mean()

    return plain(model, sgd(model, 0.02), loss_of, 150)


@faulty("dead", also=("vanishing", "stalled"), attainable=0.045)
def autoencoder_with_a_dead_code(seed: int) -> Training:
    """The code's bias is −6: the decoder is left with the mean image."""
    model = network(64, 32, 16, 32, 64)
    nn.init.constant_(model[2].bias, -6.0)
    x, _ = digits()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        inputs = x[torch.randint(len(x), (64,))]
        return inputs, inputs

    return supervised(model, adam(model), draw, F.mse_loss, 200)


@faulty("dead", also=("vanishing",), layers=("encode.*",), attainable=0.01)
def sparsity_penalty_too_large(seed: int) -> Training:
    """An L1 penalty of 10 on a code, where a thousandth would do, drives every unit below zero within some updates."""
    model = nn.ModuleDict({"encode": nn.Linear(64, 128), "decode": nn.Linear(128, 64)})
    x, _ = digits()

    def loss_of(step: int) -> Tensor:
        inputs = x[torch.randint(len(x), (64,))]
        code = F.relu(model["encode"](inputs))
        return F.mse_loss(model["decode"](code), inputs) + 10 * code.mean()

    return plain(model, adam(model, 1e-2), loss_of, 200)


@faulty("dead", also=("vanishing",), attainable=0.5)
def decay_leaves_the_biases(seed: int) -> Training:
    """Weights, not biases, decay by more than themselves an update: what is left of each unit is its bias of −0.05."""
    model = network(64, 64, 64, 10)
    for index in (0, 2):
        nn.init.constant_(model[index].bias, -0.05)
    weights, biases = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": weights, "weight_decay": 5.0}, {"params": biases}]
    return on_digits(model, torch.optim.SGD(groups, lr=0.3), 150)


@faulty("dead", also=("vanishing", "stalled"), attainable=1.75)
def twelve_narrow_layers_of_negative_bias(seed: int) -> Training:
    """Twelve ReLU layers of width 8: the signal fades along depth until biases of −0.1 outweigh it."""
    model = network(64, *[8] * 12, 10)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            nn.init.constant_(module.bias, -0.1)
    return on_digits(model, adam(model, 5e-3), 120)


@faulty("dead", also=("vanishing", "stalled"), attainable=2.7)
def rectified_recurrence_below_zero(seed: int) -> Training:
    """A recurrent network of rectifiers (IRNN, arXiv:1504.00941) whose cell starts with a bias of −9."""
    model = nn.ModuleDict({"read": nn.Embedding(128, 32), "cell": nn.Linear(64, 32), "head": nn.Linear(32, 128)})
    nn.init.constant_(model["cell"].bias, -9.0)

    def loss_of(step: int) -> Tensor:
        tokens, targets = windows(32, 8)
        state = torch.zeros(32, 32)
        for letter in model["read"](tokens).unbind(1):
            state = model["cell"](torch.cat([letter, state], 1)).relu_()
        return F.cross_entropy(model["head"](state), targets[:, -1])

    return plain(model, adam(model, 1e-2), loss_of, 120)


@faulty("dead", also=("vanishing", "exploding", "stalled"), attainable=0.2)
def rate_spike_kills_a_perceptron(seed: int) -> Training:
    """Learns for 60 updates; then ten at 100 times the rate, with momentum, throw every unit below zero."""
    model = network(64, 64, 64, 10)
    optimizer = sgd(model, 0.05, momentum=0.9)

    def spike(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 5.0 if 60 <= step < 70 else 0.05

    return on_digits(model, optimizer, 160, before_update=spike)


@faulty("dead", also=("vanishing", "exploding"), attainable=0.2)
def rate_spike_kills_convolutions(seed: int) -> Training:
    """The same in a convolutional network under Adam: ten updates at a rate of 1 from update 50 on."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = adam(model, 2e-3)

    def spike(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 1.0 if 50 <= step < 60 else 2e-3

    return on_digits(model, optimizer, 150, before_update=spike)


@faulty("dead", also=("vanishing", "exploding"), attainable=0.35)
def adam_at_one_kills_four_layers(seed: int) -> Training:
    """Adam at a rate of 1 moves each weight by 1 an update: four ReLU layers die within some updates."""
    model = network(64, 64, 64, 64, 64, 10)
    return on_digits(model, adam(model, 1.0), 120)


@faulty("dead", also=("vanishing", "exploding", "stalled"), attainable=0.1)
def prices_by_raw_features(seed: int) -> Training:
    """A price by features in the hundreds: the first updates overshoot, then the network predicts one number."""
    model = network(13, 64, 1)
    x = torch.rand(506, 13) * 400
    y = x @ torch.rand(13, 1) / 400 + 0.1 * torch.randn(506, 1)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(x), (32,))
        return x[chosen], y[chosen]

    return supervised(model, sgd(model, 1e-4), draw, F.mse_loss, 150)


@faulty("dead", also=("vanishing", "exploding", "unstable"), attainable=8.0)
def value_of_states_dies(seed: int) -> Training:
    """A value network under temporal differences, rewards down to −60, Adam at 2: what is left is a constant."""
    model = network(4, 64, 64, 1)

    def loss_of(step: int) -> Tensor:
        state = torch.randn(64, 4)
        with torch.no_grad():
            reward = -20 * state[:, :1].abs() - 10 * state[:, 1:2].relu()
            target = reward + 0.5 * model(state + 0.1 * torch.randn(64, 4))
        return F.mse_loss(model(state), target)

    return plain(model, adam(model, 2.0), loss_of, 150)
