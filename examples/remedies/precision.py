"""float16: gradients too small for it, which loss scaling lifts, and activations too large, which it does not lower."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from activations import stack
from side_by_side import Outcome, Table, Way, compare, digits, held_out_accuracy, outcome_of
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch
from gradwatch.remedies import use_mixed_precision_

SHARE = 1e-7  # of the loss: one term of many


@dataclass(frozen=True)
class Precise(Way):
    """A way to train in a number format of its own, with a scaled loss or not."""

    dtype: torch.dtype = torch.float32
    scaled: bool = False


def small_loss(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy as a small share of a sum; the learning rate makes up for it."""
    return SHARE * F.cross_entropy(outputs.float(), classes)


def train(way: Precise, seed: int, steps: int, log_dir: Path | None, scale: float) -> Outcome:
    """Train one run on the digits under autocast."""
    inputs, classes, held_out, held_out_classes = digits(scale)
    torch.manual_seed(seed)
    model = way.model()
    optimizer = way.optimizer(model.parameters(), lr=way.rate)
    scaler = torch.amp.GradScaler("cpu", enabled=way.scaled, init_scale=2.0**20)
    losses, times = [], []
    with gradwatch.watch(model, optimizer, log_dir=log_dir, scaler=scaler, log_every_n_steps=1) as watcher:
        for _ in range(steps):
            rows = torch.randint(len(inputs), (way.batch,))
            begin = time.process_time()
            with torch.autocast("cpu", way.dtype, enabled=way.dtype is not torch.float32):
                outputs = model(way.inputs(inputs[rows]))
            loss = way.loss(outputs, classes[rows])
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            times.append(time.process_time() - begin)
            losses.append(loss.item())
    return outcome_of(watcher, losses, times, held_out_accuracy(model, way, held_out, held_out_classes))


@dataclass(frozen=True)
class InHalf(Way):
    """A way to train weights that are held in half precision themselves.

    Attributes:
        dtype: of weights and inputs.
        epsilon: of Adam.
        mixed: weights in float32, and the forward pass in half precision, with a scaled loss.
    """

    dtype: torch.dtype = torch.float16
    epsilon: float = 1e-8
    mixed: bool = False


def train_in_half(way: InHalf, seed: int, steps: int, log_dir: Path | None, scale: float) -> Outcome:
    """Train one run on the digits with Adam and weights in half precision."""
    inputs, classes, held_out, held_out_classes = digits(scale)
    torch.manual_seed(seed)
    model = way.model().to(way.dtype)
    scaler = use_mixed_precision_(model) if way.mixed else torch.amp.GradScaler("cpu", enabled=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=way.rate, eps=way.epsilon)
    losses, times = [], []
    with gradwatch.watch(model, optimizer, log_dir=log_dir, scaler=scaler, log_every_n_steps=1) as watcher:
        for _ in range(steps):
            rows = torch.randint(len(inputs), (way.batch,))
            begin = time.process_time()
            loss = way.loss(model(way.inputs(inputs[rows])).float(), classes[rows])
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            times.append(time.process_time() - begin)
            losses.append(loss.item())
    return outcome_of(watcher, losses, times, held_out_accuracy(model, way, held_out, held_out_classes))


def main() -> list[str]:
    """Train on gradients too small for float16, on activations too large, and on weights held in float16."""
    held = partial(InHalf, model=partial(stack, nn.ReLU, 3), rate=0.001, inputs=lambda inputs: inputs.half())
    small = partial(Precise, model=partial(stack, nn.ReLU, 3), rate=0.3 / SHARE, loss=small_loss)
    large = partial(Precise, model=partial(stack, nn.ReLU, 3), rate=0.003, optimizer=torch.optim.Adam)
    bright = partial(large, inputs=lambda inputs: 1e5 * inputs)
    half = torch.float16
    return compare(
        "precision",
        Table(
            "Gradients of 1e-8 and less",
            [
                small("float32"),
                small("do nothing: float16", dtype=half),
                small("loss-scaling: float16", dtype=half, scaled=True),
                small("bfloat16", dtype=torch.bfloat16),
            ],
            steps=150,
            train=train,
        ),
        Table(
            "Pixels beyond 65,504",
            [
                bright("do nothing: float16", dtype=half),
                bright("loss-scaling: float16", dtype=half, scaled=True),
                large("scaled-inputs: float16", dtype=half),
                bright("bfloat16", dtype=torch.bfloat16),
            ],
            steps=150,
            train=train,
        ),
        Table(
            "Weights in float16, Adam with eps=1e-8",
            [
                held("do nothing: eps=1e-8"),
                held("lower-learning-rate: 1e-5", rate=1e-5),
                held("optimizer-epsilon: 1e-4", epsilon=1e-4),
                held("float32-weights", mixed=True),
                held("bfloat16: weights", dtype=torch.bfloat16, inputs=lambda inputs: inputs.bfloat16()),
            ],
            steps=150,
            train=train_in_half,
        ),
    )
