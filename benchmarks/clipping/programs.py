"""Small training runs: five models, three optimizers, four learning rates each, and five faults.

The batches of a run are drawn once for each model and seed, so that all ways to clip see the same ones. The rate warms
up over 10 steps and then falls linearly to 0, so that the loss of the last steps is hardly noisy.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.detection.data import digits, windows

STEPS, FAULT, WARM_UP = 150, 80, 10
HELD_OUT = (126, 132, 138, 144, 150)
"""After how many steps the held-out loss is taken; its mean is the final loss."""

LENGTH = 12
SYMBOLS, RECALL, DELAY = 8, 3, 2
FLIPPED = 1 << 30  # the highest bit of the exponent of a float32: a number below 2 is multiplied by 2¹²⁸


class CharacterGPT(nn.Module):
    """A decoder with pre-normalisation: one block of two heads."""

    def __init__(self, width: int = 24, length: int = LENGTH, blocks: int = 1) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.tokens(inputs) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class Block(nn.Module):
    """Attention and a perceptron, each added to its input."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        parts = self.qkv(self.norm_1(hidden)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = parts[0] @ parts[1].transpose(-1, -2) / (width / self.heads) ** 0.5  # vmap knows no fused attention
        hidden_from = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden_from, -torch.inf).softmax(-1) @ parts[2]
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.down(F.gelu(self.up(self.norm_2(hidden))))


class CharacterLSTM(nn.Module):
    """An embedding, one layer of LSTM and a head; ``vmap`` knows no ``nn.LSTM``, so the layer is a loop."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.tokens, self.gates = nn.Embedding(128, width), nn.Linear(2 * width, 4 * width)
        self.head = nn.Linear(width, 128)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = cell = self.tokens.weight.new_zeros(len(inputs), self.head.in_features)
        states = []
        for token in self.tokens(inputs).unbind(1):
            gates = self.gates(torch.cat([token, hidden], 1))
            write, keep, show = torch.sigmoid(gates[:, : 3 * hidden.shape[1]]).chunk(3, 1)
            cell = keep * cell + write * torch.tanh(gates[:, 3 * hidden.shape[1] :])
            hidden = show * torch.tanh(cell)
            states.append(hidden)
        return self.head(torch.stack(states, 1))


class CopyingRNN(nn.Module):
    """A plain tanh RNN, written as a loop: ``nn.RNN`` takes three times as long at this size."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.recurrent = nn.Embedding(SYMBOLS, width), nn.Linear(width, width)
        self.head = nn.Linear(width, SYMBOLS)
        nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.tokens.weight.new_zeros(len(inputs), self.recurrent.in_features)
        states = []
        for token in self.tokens(inputs).unbind(1):
            hidden = torch.tanh(token + self.recurrent(hidden))
            states.append(hidden)
        return self.head(torch.stack(states[-RECALL:], 1))


class ResNet(nn.Module):
    """A residual network with group normalisation for the 8 × 8 digits: a stem and one block."""

    def __init__(self, channels: int = 9) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(3, channels) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(channels, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.stem(inputs.view(-1, 1, 8, 8))))
        inner = F.relu(self.norms[1](self.convolutions[0](hidden)))
        hidden = F.relu(hidden + self.norms[2](self.convolutions[1](inner)))
        return self.head(hidden.mean((2, 3)))


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def _smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), label_smoothing=0.1)


def _text(batch: int) -> tuple[Tensor, Tensor]:
    return windows(batch, LENGTH)


def _symbols(batch: int) -> tuple[Tensor, Tensor]:
    """Return symbols, then a delay, then blanks in whose place the symbols are to be said again."""
    said = torch.randint(1, SYMBOLS, (batch, RECALL))
    return torch.cat([said, torch.zeros(batch, DELAY + RECALL, dtype=torch.int64)], 1), said


def _images(batch: int) -> tuple[Tensor, Tensor]:
    images, classes = digits()
    chosen = torch.randint(len(images), (batch,))
    return images[chosen], classes[chosen]


def _taught(batch: int, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and what a fixed network of one layer of 8 units says of them, with noise of deviation 0.5."""
    inputs = torch.randn(batch, 16)
    return inputs, torch.relu(inputs @ teacher).sum(1, keepdim=True) + 0.5 * torch.randn(batch, 1)


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


@dataclass(frozen=True)
class Model:
    """One model and what it learns.

    Attributes:
        make: returns it, untrained.
        draw: how many examples → (inputs, targets).
        loss: (outputs, targets) → () the loss.
        batch: examples of a step.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: int


_TEACHER = torch.randn(16, 8, generator=torch.Generator().manual_seed(5)) / 4

MODELS: Mapping[str, Model] = {
    "character GPT": Model(CharacterGPT, _text, _cross_entropy, 8),
    "LSTM": Model(CharacterLSTM, _text, _cross_entropy, 8),
    "MLP": Model(_mlp, lambda count: _taught(count, _TEACHER), F.mse_loss, 64),
    "RNN that copies": Model(CopyingRNN, _symbols, _smoothed, 32),
    "ResNet": Model(ResNet, _images, _smoothed, 16),
}

RATES: Mapping[str, tuple[float, ...]] = {
    "SGD": (0.003, 0.03, 0.3, 3.0),
    "AdamW": (0.0003, 0.003, 0.03, 0.3),
    **({"Muon": (0.001, 0.01, 0.1, 1.0)} if hasattr(torch.optim, "Muon") else {}),  # since torch 2.9
}
"""Optimizer → its learning rates, a decade apart; the usual good rate is the second or the third."""


@torch.no_grad()
def _orthogonalised(grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float) -> Tensor:
    """Return what torch's Muon makes of a momentum, in float32.

    Torch computes in bfloat16, which takes 20 times as long on a CPU that has no instructions for it.
    """
    a, b, c = ns_coefficients
    matrix = grad.T if grad.size(0) > grad.size(1) else grad
    matrix = matrix / matrix.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = matrix @ matrix.T
        matrix = torch.addmm(matrix, torch.addmm(gram, gram, gram, beta=b, alpha=c), matrix, beta=a)
    return matrix.T if grad.size(0) > grad.size(1) else matrix


def _muon(matrices: Sequence[Tensor], rate: float) -> Optimizer:
    """Return torch's Muon, computed in float32."""
    module = importlib.import_module("torch.optim._muon")

    class Muon(torch.optim.Muon):
        def step(self, closure: Any = None) -> Any:
            with mock.patch.object(module, "_zeropower_via_newtonschulz", _orthogonalised):
                return super().step(closure)

    return Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


def optimizers(name: str, model: nn.Module, rate: float) -> list[Optimizer]:
    """Return the optimizers that train the model together: Muon takes the matrices, AdamW the rest."""
    parameters = list(model.parameters())
    if name == "SGD":
        return [torch.optim.SGD(parameters, lr=rate, momentum=0.9, fused=True)]
    if name == "AdamW":
        return [_adamw(parameters, rate)]
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    matrices = [each for each in parameters if each.ndim == 2 and id(each) not in looked_up]
    rest = [each for each in parameters if each.ndim != 2 or id(each) in looked_up]
    return [_muon(matrices, rate), _adamw(rest, rate)]


def _adamw(parameters: Sequence[Tensor], rate: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def rate_at(step: int, rate: float) -> float:
    """Return the rate of a step: it warms up over 10 steps and falls linearly to 0."""
    return rate * min((step + 1) / WARM_UP, 1.0) * (STEPS - step) / STEPS


@dataclass(frozen=True)
class Data:
    """The batches of one run, and the held-out one."""

    batches: tuple[tuple[Tensor, Tensor], ...]
    held_out: tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=4)
def data(model: str, seed: int) -> Data:
    """Return what a run of this model and seed trains on."""
    known = MODELS[model]
    torch.manual_seed(10_000 + seed)
    batches = tuple(known.draw(known.batch) for _ in range(STEPS))
    torch.manual_seed(99)  # the same for every seed
    return Data(batches, known.draw(128 if known.draw is _text else 512))


class Fault:
    """A healthy run: the parent of the faults, which changes nothing.

    Attributes:
        lasts: for how many steps it is there, from step ``FAULT`` on.
    """

    lasts = 0

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch that the model sees."""
        return inputs, targets

    def gradients_(self, gradients: Sequence[Tensor], step: int) -> None:
        """Change the gradients in place."""

    def rate(self, rate: float) -> float:
        """Return the learning rate of the step."""
        return rate


class BadBatch(Fault):
    """One batch of another scale: inputs of 0 to 255 in place of 0 to 1, targets × 100; of text, random symbols."""

    lasts = 1

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.is_floating_point():
            return inputs * 255, targets * 100 if targets.is_floating_point() else targets
        generator = torch.Generator().manual_seed(3)
        most = int(inputs.max()) + 1

        return torch.randint(most, inputs.shape, generator=generator), torch.randint(
            most, targets.shape, generator=generator
        )


class GradientTimesThousand(Fault):
    """One gradient × 1000, as of a loss that was not averaged."""

    lasts = 1

    def gradients_(self, gradients: Sequence[Tensor], step: int) -> None:
        for gradient in gradients:
            gradient.mul_(1000)


class BitFlip(Fault):
    """The highest bit of the exponent of one entry of the largest gradient flips, once."""

    lasts = 1

    def gradients_(self, gradients: Sequence[Tensor], step: int) -> None:
        entries = max(gradients, key=torch.Tensor.numel).view(-1)
        place = int(entries.abs().argsort()[int(0.9 * len(entries))])  # neither 0 nor the largest
        entries.view(torch.int32)[place] ^= FLIPPED


class HeavyTails(Fault):
    """Noise with heavy tails on every gradient, for 20 steps: its RMS × Student's t with 1.5 degrees."""

    lasts = 20

    def gradients_(self, gradients: Sequence[Tensor], step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for gradient in gradients:
            normal = torch.randn(gradient.shape, generator=generator)
            chi_square = torch._standard_gamma(torch.full(gradient.shape, 0.75), generator=generator) * 2
            gradient += normal * (1.5 / chi_square).sqrt() * gradient.square().mean().sqrt()


class RateSpike(Fault):
    """The learning rate × 10 for 5 steps, as by a wrong line of a schedule."""

    lasts = 5

    def rate(self, rate: float) -> float:
        return 10 * rate


CLEAN = "clean"
FAULTS: Mapping[str, Fault] = {
    "bad batch": BadBatch(),
    "gradient × 1000": GradientTimesThousand(),
    "bit flip": BitFlip(),
    "heavy tails": HeavyTails(),
    "rate × 10": RateSpike(),
}
