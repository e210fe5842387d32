"""Small training runs, watched, for tests of rules that need weights and activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gradwatch
from gradwatch.findings import Finding

Loss = Callable[[int], Tensor]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Loss, steps: int, *, observes: bool = True
) -> list[Finding]:
    """Findings of a plain loop; LBFGS gets its closure."""
    with gradwatch.watch(model, optimizer, find_loss=False) as watcher:
        for step in range(steps):

            def evaluate(step: int = step) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(step)
                if observes:
                    watcher.observe_loss(loss)
                loss.backward()
                return loss

            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(evaluate)
            else:
                evaluate()
                optimizer.step()
    return watcher.findings


def told(findings: list[Finding], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def perceptron(*widths: int, std: float | None = None, function: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with a function between them, their weights normal with ``std`` where it is given."""
    parts: list[nn.Module] = []
    for rows, columns in zip(widths[1:], widths, strict=False):
        linear = nn.Linear(columns, rows)
        if std is not None:
            nn.init.normal_(linear.weight, std=std)
        parts += [linear, function()]
    return nn.Sequential(*parts[:-1])


class ResidualStack(nn.Module):
    """Residual blocks of two layers; with ``gain`` 1 and no normalisation each multiplies its input by 1.7."""

    def __init__(self, depth: int, outputs: int, *, gain: float = 1.0, normalises: bool = False) -> None:
        super().__init__()
        width = 64
        self.stem = nn.Linear(32, width)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            first, last = nn.Linear(width, width), nn.Linear(width, width)
            nn.init.normal_(first.weight, std=math.sqrt(2 / width))
            nn.init.normal_(last.weight, std=gain * math.sqrt(2 / width))
            norm = nn.LayerNorm(width) if normalises else nn.Identity()
            self.blocks.append(nn.Sequential(norm, first, nn.ReLU(), last))
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


def classification(model: nn.Module, inputs_scale: float = 1.0) -> Loss:
    """Cross-entropy on minibatches of 64, from a linear rule over 32 inputs to 10 classes."""
    inputs = torch.randn(512, 32)
    classes = (inputs @ torch.randn(32, 10)).argmax(1)

    def loss_of(_: int) -> Tensor:
        batch = torch.randint(len(inputs), (64,))
        return nn.functional.cross_entropy(model(inputs_scale * inputs[batch]), classes[batch])

    return loss_of


def regression(
    model: nn.Module, inputs_scale: float = 1.0, targets_scale: float = 1.0, reduction: str = "mean"
) -> Loss:
    """Squared error on minibatches of 64, of a smooth function of 32 inputs."""
    inputs = torch.randn(512, 32)
    targets = torch.tanh(inputs @ torch.randn(32, 1) / math.sqrt(32))

    def loss_of(_: int) -> Tensor:
        batch = torch.randint(len(inputs), (64,))
        outputs = model(inputs_scale * inputs[batch])
        return nn.functional.mse_loss(outputs, targets_scale * targets[batch], reduction=reduction)

    return loss_of


class Recurrent(nn.Module):
    """A plain recurrent layer whose recurrent weight is ``radius`` times an orthogonal or a random matrix."""

    def __init__(self, radius: float, nonlinearity: str, *, is_random: bool = False) -> None:
        super().__init__()
        self.cell = nn.RNN(32, 64, nonlinearity=nonlinearity, batch_first=True)
        self.head = nn.Linear(64, 10)
        if is_random:
            nn.init.normal_(self.cell.weight_hh_l0, std=radius / math.sqrt(64))
        else:
            nn.init.orthogonal_(self.cell.weight_hh_l0, gain=radius)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cell(inputs)[0][:, -1])


def sequences(model: nn.Module, length: int) -> Loss:
    """Cross-entropy on minibatches of 32 sequences, whose last entries decide the class."""
    inputs = torch.randn(256, length, 32)
    classes = (inputs[:, -1] @ torch.randn(32, 10)).argmax(1)

    def loss_of(_: int) -> Tensor:
        batch = torch.randint(len(inputs), (32,))
        return nn.functional.cross_entropy(model(inputs[batch]), classes[batch])

    return loss_of
