"""Learns although parts of the model have no gradient at first, or never: zero, cancelled, masked, shared."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.healthy.everyday import adam, network, on_digits, on_text, sgd
from benchmarks.detection.program import Training, healthy, plain


def sample(batch: int = 64) -> tuple[Tensor, Tensor]:
    """A random batch of digits."""
    x, y = digits()
    chosen = torch.randint(len(x), (batch,))
    return x[chosen], y[chosen]


def zero(*layers: nn.Linear) -> None:
    """Sets weights and biases to zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


class Tokens(nn.Module):
    """Embeddings of characters and of positions."""

    def __init__(self, width: int, positions: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(128, width), nn.Embedding(positions, width)
        nn.init.normal_(self.token.weight, std=0.3)
        nn.init.normal_(self.position.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.position.weight[: tokens.shape[1]]


class Attention(nn.Module):
    """One head; the future is masked with -inf."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.joint, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.joint(x).chunk(3, -1)
        scores = query @ key.transpose(-1, -2) / x.shape[-1] ** 0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.mix(scores.masked_fill(future, -torch.inf).softmax(-1) @ value)


class Branch(nn.Module):
    """x + scale · inner(norm(x)); the scale is learned where ``rezero``."""

    def __init__(self, width: int, inner: nn.Module, rezero: bool = False) -> None:
        super().__init__()
        self.norm, self.inner = nn.Identity() if rezero else nn.LayerNorm(width), inner
        self.scale = nn.Parameter(torch.zeros(())) if rezero else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(self.norm(x))


def blocks(depth: int, width: int = 32, **options) -> list[nn.Module]:
    """Attention and feed-forward by turns."""
    pairs = [(Attention(width), network(width, 2 * width, width, activation=nn.GELU)) for _ in range(depth)]
    return [Branch(width, inner, **options) for pair in pairs for inner in pair]


def language_model(*inner: nn.Module, width: int = 32, positions: int = 32) -> nn.Sequential:
    return nn.Sequential(Tokens(width, positions), *inner, nn.LayerNorm(width), nn.Linear(width, 128))


@healthy(falls_to=0.8)
def transformer_rezero(seed: int) -> Training:
    """Every branch times a scalar that starts at zero (Bachlechner et al. 2020), without normalisation."""
    model = language_model(*blocks(4, rezero=True))
    return on_text(model, adam(model, 5e-3))


@healthy(falls_to=0.8)
def transformer_with_a_head_of_zeros(seed: int) -> Training:
    """A head of zeros: at the first update all below it has a gradient of exactly zero."""
    model = language_model(*blocks(2))
    zero(model[-1])
    return on_text(model, adam(model, 5e-3))


class ConvolutionBlock(nn.Module):
    """Two convolutions around which x goes by; the last normalisation starts at gamma = 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.last_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last_norm(self.second(F.relu(self.norm(self.first(x))))))


@healthy(falls_to=0.4)
def residual_gamma_zero(seed: int) -> Training:
    """ResNet's recipe: the last gamma of each branch starts at zero, so its convolutions start without gradient."""
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *[ConvolutionBlock(12) for _ in range(4)],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    return on_digits(model, sgd(model, 0.1, momentum=0.9, weight_decay=1e-4), 120, shape=(1, 8, 8))


class Fixup(nn.Module):
    """A branch without normalisation: scaled first layer, last layer of zeros, scalar biases and multiplier."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.up.weight, std=(2 / width / depth) ** 0.5)
        nn.init.zeros_(self.down.weight)
        self.biases = nn.ParameterList(torch.zeros(()) for _ in range(4))
        self.multiplier = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x + self.biases[0]) + self.biases[1])
        return F.relu(x + self.multiplier * self.down(h + self.biases[2]) + self.biases[3])


@healthy(falls_to=0.4)
def fixup(seed: int) -> Training:
    """Ten branches by Zhang et al. 2019: last layers and head of zeros, parameters of a single number."""
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), *[Fixup(48, 10) for _ in range(10)], nn.Linear(48, 10))
    zero(model[-1])
    return on_digits(model, sgd(model, 0.05, momentum=0.9), 200)


class Modulated(nn.Module):
    """A branch whose shift, scale and gate come from the condition through a layer of zeros (adaLN-zero)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width, elementwise_affine=False), network(width, 2 * width, width)
        self.modulation = nn.Linear(width, 3 * width)
        zero(self.modulation)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, -1)
        return x + gate * self.inner(self.norm(x) * (1 + scale) + shift)


class Denoiser(nn.Module):
    """Tells the noise in a digit, given its class and the share of noise."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.inlet, self.label, self.level = nn.Linear(64, width), nn.Embedding(10, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Modulated(width) for _ in range(depth))
        self.outlet = nn.Linear(width, 64)
        zero(self.outlet)

    def forward(self, x: Tensor, label: Tensor, level: Tensor) -> Tensor:
        h, condition = self.inlet(x), self.label(label) + self.level(level)
        for block in self.blocks:
            h = block(h, condition)
        return self.outlet(h)


@healthy(falls_to=0.6)
def diffusion_adaln_zero(seed: int) -> Training:
    """A diffusion model whose gates and head start at zero (Peebles & Xie 2022): at first only the head learns."""
    model = Denoiser()

    def loss_of(step: int) -> Tensor:
        x, y = sample(128)
        level, noise = torch.rand(len(x), 1), torch.randn_like(x)
        return F.mse_loss(model((1 - level).sqrt() * (2 * x - 1) + level.sqrt() * noise, y, level), noise)

    return plain(model, adam(model), loss_of, 250)


@healthy(falls_to=0.4)
def convolution_bias_before_batch_norm(seed: int) -> Training:
    """Convolutions with a bias before the normalisation that takes it away again: its gradient is rounding."""
    layers: list[nn.Module] = []
    for inner, outer, stride in ((1, 12, 1), (12, 24, 2), (24, 24, 1), (24, 24, 2)):
        layers += [nn.Conv2d(inner, outer, 3, stride, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10))
    return on_digits(model, adam(model, 3e-3), 100, shape=(1, 8, 8))


class Padded(nn.Module):
    """PyTorch's own encoder under a causal mask and a mask of padding, both -inf."""

    def __init__(self, width: int = 32, length: int = 24) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.tokens, self.encoder = Tokens(width, length), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)
        self.register_buffer("future", torch.full((length, length), -torch.inf).triu(1))

    def forward(self, tokens: Tensor, is_padding: Tensor) -> Tensor:
        padding = torch.zeros(is_padding.shape).masked_fill(is_padding, -torch.inf)
        return self.head(self.encoder(self.tokens(tokens), mask=self.future, src_key_padding_mask=padding))


@healthy(falls_to=0.8)
def padded_sequences(seed: int) -> Training:
    """Sequences of 4 to 24 characters, padded and masked with -inf; padding takes no part in the loss."""
    model = Padded()

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(32, 24)
        is_padding = torch.arange(24) >= torch.randint(4, 25, (32, 1))
        targets = targets.masked_fill(is_padding, -100)
        return F.cross_entropy(model(inputs * ~is_padding, is_padding).flatten(0, 1), targets.flatten())

    return plain(model, adam(model, 5e-3), loss_of, 100)


class TiedAutoencoder(nn.Module):
    """The decoder's weights are the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(64, 16), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


@healthy(falls_to=0.5)
def tied_autoencoder(seed: int) -> Training:
    """One matrix, used twice in every pass."""
    model = TiedAutoencoder()

    def loss_of(step: int) -> Tensor:
        x, _ = sample()
        return F.mse_loss(model(x), x)

    return plain(model, adam(model), loss_of, 300)


@healthy(falls_to=0.8)
def one_block_six_times(seed: int) -> Training:
    """The same two branches applied six times over (a universal transformer)."""
    block = nn.Sequential(*blocks(1))
    model = language_model(*[block] * 6)
    return on_text(model, adam(model, 5e-3), 100)
