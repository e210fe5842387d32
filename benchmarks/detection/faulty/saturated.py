"""Layers whose sigmoid or tanh sits where it is flat for nearly all entries, in runs that do not learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.faulty.common_errors import network, on_digits, sgd
from benchmarks.detection.faulty.dead import adam
from benchmarks.detection.program import Training, faulty, plain, supervised


def spread_(model: nn.Module, std: float) -> nn.Module:
    """Weights of every linear and convolutional layer but the last, drawn anew with this standard deviation."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for layer in layers[:-1]:
        nn.init.normal_(layer.weight, std=std)
    return model


@faulty("saturated", attainable=0.8)
def sigmoids_of_deviation_ten(seed: int) -> Training:
    """Three sigmoid layers with weights of deviation 10: all units are 0 or 1."""
    model = spread_(network(64, 64, 64, 64, 10, activation=nn.Sigmoid), 10.0)
    return on_digits(model, adam(model, 1e-3), 120)


@faulty("saturated", also=("vanishing",), attainable=0.3)
def tanh_of_deviation_five(seed: int) -> Training:
    """Six tanh layers with weights of deviation 5: each layer is a vector of signs."""
    model = spread_(network(64, *[64] * 6, 10, activation=nn.Tanh), 5.0)
    return on_digits(model, sgd(model, 0.01), 120)


@faulty("saturated", layers=("0.*",), attainable=0.65)
def sigmoid_of_raw_pixels(seed: int) -> Training:
    """Grey levels up to 255 into a narrow sigmoid layer."""
    model = network(64, 16, 16, 10, activation=nn.Sigmoid)
    return on_digits(model, adam(model), 200, scale=255.0)


@faulty("saturated", also=("vanishing",), layers=("0.*",), attainable=0.25)
def softsign_of_features_in_thousands(seed: int) -> Training:
    """Features in the thousands, where softsign has a slope of a millionth."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Softsign(), nn.Linear(32, 1))
    return on_hill(model, adam(model), scale=3000.0)


@faulty("saturated", also=("vanishing",), layers=("0.*",), attainable=0.2)
def hardtanh_of_unscaled_features(seed: int) -> Training:
    """Features of some hundreds into a hardtanh, exactly flat beyond one."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Hardtanh(inplace=True), nn.Linear(32, 1))
    return on_hill(model, adam(model), scale=300.0)


def on_hill(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 200, *, scale: float = 1.0, batch: int = 128
) -> Training:
    """A smooth function of eight features in units of ``scale``: how far from the centre they lie."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, 8)
        y = x.square().mean(1, keepdim=True) + x[:, :1]
        return x * scale, y

    return supervised(model, optimizer, draw, F.mse_loss, steps)


@faulty("saturated", also=("vanishing", "stalled"), layers=("2.*",), attainable=0.5)
def hard_sigmoid_far_above(seed: int) -> Training:
    """A bias of 20 before a hard sigmoid that ends at 3: its output is 1, its slope exactly 0."""
    model = network(64, 32, 32, 10, activation=nn.Hardsigmoid)
    nn.init.constant_(model[2].bias, 20.0)
    return on_digits(model, adam(model, 1e-2), 150)


@faulty("saturated", also=("vanishing", "stalled"), layers=("inner.*",), attainable=0.2)
def functional_sigmoid_far_below(seed: int) -> Training:
    """``torch.sigmoid`` of a layer whose bias is −30: zero for every digit."""
    model = nn.ModuleDict({"outer": nn.Linear(64, 64), "inner": nn.Linear(64, 64), "head": nn.Linear(64, 10)})
    nn.init.constant_(model["inner"].bias, -30.0)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        hidden = torch.sigmoid(model["inner"](F.relu(model["outer"](x[chosen]))))
        return F.cross_entropy(model["head"](hidden), y[chosen])

    return plain(model, adam(model, 1e-2), loss_of, 120)


@faulty("saturated", attainable=2.8)
def recurrent_weights_of_six(seed: int) -> Training:
    """A tanh cell with recurrent weights of deviation 6: its states are signs that forget nothing and learn nothing."""
    cell = nn.Linear(64, 32)
    nn.init.normal_(cell.weight, std=6.0)
    model = nn.ModuleDict({"read": nn.Embedding(128, 32), "cell": cell, "head": nn.Linear(32, 128)})

    def loss_of(step: int) -> Tensor:
        tokens, targets = windows(32, 10)
        state = torch.zeros(32, 32)
        for letter in model["read"](tokens).unbind(1):
            state = model["cell"](torch.cat([letter, state], 1)).tanh_()
        return F.cross_entropy(model["head"](state), targets[:, -1])

    return plain(model, adam(model, 3e-3), loss_of, 120)


class Gated(nn.Module):
    """A long short-term memory of one layer, each gate a layer of its own, that reads one number a step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input, self.forget, self.content, self.output = (nn.Linear(width + 1, width) for _ in range(4))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = memory = torch.zeros(len(x), self.head.in_features)
        for number in x.unbind(1):
            seen = torch.cat([number.unsqueeze(1), state], 1)
            memory = memory * torch.sigmoid(self.forget(seen))
            memory = memory + torch.sigmoid(self.input(seen)) * torch.tanh(self.content(seen))
            state = torch.sigmoid(self.output(seen)) * torch.tanh(memory)
        return self.head(state)


def on_sums(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 120) -> Training:
    """The mean of eight numbers, read one after the other."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 8)
        return x, 2 * x.mean(1, keepdim=True)

    return supervised(model, optimizer, draw, F.mse_loss, steps)


@faulty("saturated", also=("vanishing", "stalled"), layers=("input.*",), attainable=0.01)
def input_gate_shut(seed: int) -> Training:
    """The bias of the input gate is −30, where +1 was meant for the forget gate: nothing is ever read."""
    model = Gated(16)
    nn.init.constant_(model.input.bias, -30.0)
    return on_sums(model, adam(model, 1e-2))


@faulty("saturated", also=("vanishing",), layers=("forget.*",), attainable=0.01)
def forget_gate_shut(seed: int) -> Training:
    """A forget gate with a bias of −30 and states that never pass: only the last number counts."""
    model = Gated(24)
    nn.init.constant_(model.forget.bias, -30.0)
    with torch.no_grad():
        for gate in (model.input, model.content, model.output):
            gate.weight[:, 1:] = 0
            gate.weight.register_hook(lambda gradient: gradient * (torch.arange(25) == 0))
    return on_sums(model, adam(model, 1e-2))


@faulty("saturated", also=("vanishing", "stalled"), layers=("keep.*",), attainable=0.01)
def update_gate_keeps_everything(seed: int) -> Training:
    """A gated unit whose update gate starts at +30, "keep": its state stays zero."""
    model = nn.ModuleDict({"keep": nn.Linear(17, 16), "content": nn.Linear(17, 16), "head": nn.Linear(16, 1)})
    nn.init.constant_(model["keep"].bias, 30.0)

    def read(x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 16)
        for number in x.unbind(1):
            seen = torch.cat([number.unsqueeze(1), state], 1)
            keep = model["keep"](seen).sigmoid()
            state = keep * state + (1 - keep) * model["content"](seen).tanh()
        return model["head"](state)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 6)
        return F.mse_loss(read(x), 2 * x.mean(1, keepdim=True))

    return plain(model, adam(model, 1e-2), loss_of, 120)


@faulty("saturated", also=("vanishing",), layers=("*gate*",), attainable=0.05)
def highway_gates_shut(seed: int) -> Training:
    """A highway network (arXiv:1505.00387) with a transform bias of −30 for −3: six layers pass their input on."""
    model = Highway(6, 24)
    for layer in model.layers:
        nn.init.constant_(layer["gate"].bias, -30.0)
    return on_hill(model, adam(model, 5e-3), 120)


class Highway(nn.Module):
    """Layers that mix their input and its transform by a gate."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 1)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"transform": nn.Linear(width, width), "gate": nn.Linear(width, width)}) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            transformed = F.relu(layer["transform"](x))
            gate = torch.sigmoid(layer["gate"](x))
            x = gate * transformed + (1 - gate) * x
        return self.head(x)


@faulty("saturated", layers=("4.*",), attainable=0.01)
def actions_squashed_from_the_start(seed: int) -> Training:
    """A policy's last layer is drawn with deviation 50, then squashed by tanh: every action is full left or right."""
    model = nn.Sequential(*network(8, 32, 32, 2), nn.Tanh())
    nn.init.normal_(model[4].weight, std=50.0)
    best = torch.randn(8, 2) / 4

    def draw(step: int) -> tuple[Tensor, Tensor]:
        state = torch.randn(64, 8)
        return state, (state @ best).tanh()

    return supervised(model, adam(model), draw, F.mse_loss, 150)


@faulty("saturated", also=("vanishing",), layers=("2.*",), attainable=0.1)
def sigmoid_for_targets_around_ten(seed: int) -> Training:
    """Targets of 5 to 15 behind a sigmoid: it climbs to 1 and stays there."""
    model = nn.Sequential(*network(8, 32, 1), nn.Sigmoid())

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(64, 8)
        return x, 5 + 10 * x[:, :1]

    return supervised(model, adam(model, 3e-2), draw, F.mse_loss, 200)


@faulty("saturated", also=("vanishing",), layers=("2.*",), attainable=0.01)
def tanh_for_standard_prices(seed: int) -> Training:
    """Prices of 2 to 4 in hundred thousands behind a tanh, which ends at 1."""
    model = nn.Sequential(*network(8, 16, 1), nn.Tanh())

    def draw(step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(32, 8)
        return x, 2 + 2 * x.mean(1, keepdim=True)

    return supervised(model, sgd(model, 0.1), draw, F.mse_loss, 150)


@faulty("saturated", also=("vanishing", "exploding", "unstable", "stalled"), attainable=0.7)
def rate_spike_saturates_tanh(seed: int) -> Training:
    """Learns for 50 updates; then five at 300 times the rate throw two tanh layers to their ends."""
    model = network(64, 64, 64, 10, activation=nn.Tanh)
    optimizer = sgd(model, 0.1)

    def spike(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 30.0 if 50 <= step < 55 else 0.1

    return on_digits(model, optimizer, 150, before_update=spike)


@faulty("saturated", also=("vanishing", "unstable", "exploding"), attainable=0.6)
def adam_at_two_on_sigmoids(seed: int) -> Training:
    """Adam at a rate of 2 moves each weight by 2 an update: two sigmoid layers are at their ends at once."""
    model = network(64, 32, 32, 10, activation=nn.Sigmoid)
    return on_digits(model, adam(model, 2.0), 120)


@faulty("saturated", also=("vanishing",), layers=("1.*", "4.*"), attainable=0.35)
def gamma_of_a_hundred(seed: int) -> Training:
    """Batch normalisation before sigmoids, its scale at 100: normalised, then driven to both ends."""
    model = nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Sigmoid(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Sigmoid(),
        nn.Linear(16, 10),
    )  # fmt: skip
    for index in (1, 4):
        nn.init.constant_(model[index].weight, 100.0)
    return on_digits(model, adam(model, 1e-2), 150)


@faulty("saturated", also=("vanishing",), layers=("excite.*",), attainable=0.2)
def excitation_shut(seed: int) -> Training:
    """Squeeze and excitation (arXiv:1709.01507) whose last bias is −20: every channel is multiplied by nearly zero."""
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 16, 3),
            "squeeze": nn.Linear(16, 8),
            "excite": nn.Linear(8, 16),
            "head": nn.Linear(576, 10),
        }
    )
    nn.init.constant_(model["excite"].bias, -20.0)
    x, y = digits()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (64,))
        maps = F.relu(model["conv"](x[chosen].reshape(-1, 1, 8, 8)))
        gate = torch.sigmoid(model["excite"](F.relu(model["squeeze"](maps.mean((2, 3))))))
        return F.cross_entropy(model["head"]((maps * gate[:, :, None, None]).flatten(1)), y[chosen])

    return plain(model, adam(model, 3e-3), loss_of, 120)


@faulty("saturated", attainable=0.2)
def sigmoid_convolutions_of_raw_pixels(seed: int) -> Training:
    """Two convolutions with sigmoids, weights of deviation 20, grey levels up to 255."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 8, 3), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return on_digits(spread_(model, 20.0), adam(model, 3e-3), 150, scale=255.0)


@faulty("saturated", layers=("encode.*",), attainable=0.03)
def code_of_signs(seed: int) -> Training:
    """An autoencoder on raw pixels whose code passes a tanh: eight bits an image, frozen at random."""
    model = nn.ModuleDict({"encode": nn.Linear(64, 8), "decode": network(8, 64, 64)})
    x, _ = digits()

    def loss_of(step: int) -> Tensor:
        inputs = x[torch.randint(len(x), (64,))]
        return F.mse_loss(model["decode"](model["encode"](inputs * 255).tanh()), inputs)

    return plain(model, adam(model), loss_of, 200)


@faulty("saturated", also=("vanishing",), attainable=1.25)
def twelve_chaotic_layers(seed: int) -> Training:
    """Twelve tanh layers at twenty times Xavier's deviation: neighbours part within a layer or two."""
    model = spread_(network(64, *[32] * 12, 10, activation=nn.Tanh), 20 / 32**0.5)
    return on_digits(model, sgd(model, 1e-3), 120, batch=32)


@faulty("saturated", also=("vanishing", "stalled"), layers=("0.*",), attainable=0.01)
def years_into_a_tanh(seed: int) -> Training:
    """The year, 1950 to 2020, as it is: each tanh gives the same sign for all of them."""
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def draw(step: int) -> tuple[Tensor, Tensor]:
        year = 1950 + 70 * torch.rand(64, 1)
        return year, ((year - 1985) / 20).sin()

    return supervised(model, adam(model, 1e-2), draw, F.mse_loss, 200)
