"""Trains the same network sick and with each remedy, on the same batches, and puts the outcomes side by side.

What every example of this folder uses: the data, the loop, the table. The runs of seed 0 stay in
``runs/remedies/<family>/<table>/<way>`` for TensorBoard, the names in full in ``names.json`` beside them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch

SEEDS = 3
RUNS = Path("runs/remedies")
BATCH = 64
HEADINGS = ("", "findings", "first sick step", "gradient norm, first layer", "loss", "held-out accuracy", "ms a step")


@cache
def digits(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scikit-learn's digits, 1,400 to train on and 397 held out: (N, 64) grey levels from 0 to ``scale``, classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data.data / 16 * scale, dtype=torch.float32)[order]
    classes = torch.tensor(data.target)[order]
    return pixels[:1400], classes[:1400], pixels[1400:], classes[1400:]


def squared_error(outputs: Tensor, classes: Tensor) -> Tensor:
    """Of the classes as ten numbers, summed over the ten."""
    return (outputs - F.one_hot(classes, 10)).square().sum(1).mean()


def summed_cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Over the batch: a batch twice as large makes a step twice as long."""
    return F.cross_entropy(outputs, classes, reduction="sum")


def unguarded_cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """−Σ y·log p written out, as beginners do: 0·log 0 is NaN once a probability underflows."""
    return -(F.one_hot(classes, 10) * outputs.softmax(1).log()).sum(1).mean()


@dataclass(frozen=True)
class Way:
    """One way to train: sick, or with a remedy.

    Attributes:
        name: of its row and its run; a remedy begins with its key.
        model: makes the network.
        rate: the learning rate.
        clip: as in ``gradwatch.watch``.
        loss: (outputs, targets) → loss.
        inputs: what becomes of a batch's inputs, in training and on held-out data.
        optimizer: (parameters, rate) → optimizer.
        batch: samples a step.
        schedule: step → share of the rate.
        regularisation: α of α‖W‖².
        after: called with the model after each update.
    """

    name: str
    model: Callable[[], nn.Module]
    rate: float = 0.1
    clip: Any = None
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    inputs: Callable[[Tensor], Tensor] = lambda inputs: inputs
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    batch: int = BATCH
    schedule: Callable[[int], float] = lambda step: 1.0
    regularisation: float = 0.0
    after: Callable[[nn.Module], None] = lambda model: None


@dataclass
class Outcome:
    """What one training came to.

    Attributes:
        findings: kind → first sick step.
        gradient: last norm of the first weight's gradient.
        first, last: loss at the first step, mean of the last ten.
        held_out: accuracy on held-out data; chance is 0.1.
        milliseconds: of computing a step (process time), of the fastest tenth: others may use the machine, too.
    """

    findings: dict[str, int] = field(default_factory=dict)
    gradient: float = math.nan
    first: float = math.nan
    last: float = math.nan
    held_out: float = math.nan
    milliseconds: float = math.nan


def train(way: Way, seed: int, steps: int, log_dir: Path | None, scale: float = 1.0) -> Outcome:
    """One run on the digits; the same seed gives every way of one batch size the same batches."""
    inputs, classes, held_out, held_out_classes = digits(scale)
    torch.manual_seed(seed)
    model = way.model()
    batches = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(inputs), (way.batch,), generator=batches)
        return inputs[rows], classes[rows]

    trained = loop(way, model, draw, steps, log_dir)
    return outcome_of(*trained, held_out_accuracy(model, way, held_out, held_out_classes))


def loop(
    way: Way, model: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]], steps: int, log_dir: Path | None
) -> tuple[gradwatch.Watcher, list[float], list[float]]:
    """Trains ``model`` on the batches that ``draw`` gives: the closed watcher, the losses, the seconds of each step."""
    optimizer = way.optimizer(model.parameters(), lr=way.rate)
    losses, times = [], []
    with gradwatch.watch(model, optimizer, log_dir=log_dir, clip=way.clip, log_every_n_steps=1) as watcher:
        for step in range(steps):
            inputs, targets = draw()
            for group in optimizer.param_groups:
                group["lr"] = way.rate * way.schedule(step)
            begin = time.process_time()
            loss = way.loss(model(way.inputs(inputs)), targets)
            if way.regularisation:
                loss = loss + way.regularisation * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            way.after(model)
            times.append(time.process_time() - begin)
            losses.append(loss.item())
    return watcher, losses, times


def held_out_accuracy(model: nn.Module, way: Way, inputs: Tensor, classes: Tensor) -> float:
    """Share of digits never trained on that are read rightly."""
    model.eval()
    with torch.no_grad():
        return (model(way.inputs(inputs)).argmax(-1) == classes).float().mean().item()


def outcome_of(watcher: gradwatch.Watcher, losses: Sequence[float], times: Sequence[float], held_out: float) -> Outcome:
    """Figures of a run that has ended."""
    history = watcher.history
    first_weight = next(i for i, name in enumerate(history.layers) if "weight" in name)
    kinds: dict[str, int] = {}
    for finding in watcher.findings:
        kinds.setdefault(finding.kind, finding.step)
    return Outcome(
        findings=kinds,
        gradient=float(history["grad_norm"][-1, first_weight]),
        first=losses[0],
        last=statistics.fmean(losses[-10:]),
        held_out=held_out,
        milliseconds=1e3 * statistics.quantiles(times, n=10)[0],
    )


def compare(
    family: str,
    title: str,
    ways: Sequence[Way],
    steps: int,
    scale: float = 1.0,
    train: Callable[..., Outcome] = train,
    held_out: str = "held-out accuracy",
) -> list[str]:
    """Trains each way under every seed, prints the table, and returns it as lines of Markdown.

    Args:
        family: of remedies, where the runs go.
        title: of the table.
        ways: its rows.
        steps: of each run.
        scale: of the pixels.
        train: how one run goes.
        held_out: what its last figure is.
    """
    rows = {}
    headings = [held_out if heading == "held-out accuracy" else heading for heading in HEADINGS]
    quick = "--quick" in sys.argv  # for the tests: that it runs
    folder = RUNS / family / _file_name(title)
    shutil.rmtree(folder, ignore_errors=True)
    for way in ways:
        run = folder / _file_name(way.name)
        seeds = range(1 if quick else SEEDS)
        outcomes = [train(way, seed, 12 if quick else steps, run if seed == 0 else None, scale) for seed in seeds]
        rows[way.name] = cells_of(outcomes)
    names = {"title": title, "rows": {_file_name(name): name for name in rows}}
    (folder / "names.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    _print(title, headings, rows)
    return [
        f"**{title}** ({steps} steps)",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
    ]


def cells_of(outcomes: Sequence[Outcome]) -> list[str]:
    """One row: medians over the seeds, with the lowest and highest of what is held out."""
    kinds = sorted({kind for outcome in outcomes for kind in outcome.findings})
    told, since = [], []
    for kind in kinds:
        steps = [outcome.findings[kind] for outcome in outcomes if kind in outcome.findings]
        told.append(f"{kind} {len(steps)}/{len(outcomes)}")
        since.append(f"{statistics.median_low(steps)}")
    held_out = [outcome.held_out for outcome in outcomes]
    return [
        ", ".join(told) or "none",
        ", ".join(since) or "–",
        f"{_median(o.gradient for o in outcomes):.1e}",
        f"{_median(o.first for o in outcomes):.3g} → {_median(o.last for o in outcomes):.3g}",
        f"{_median(held_out):.2f} ({min(held_out):.2f}–{max(held_out):.2f})",
        f"{min(o.milliseconds for o in outcomes):.1f}",
    ]


def _median(numbers: Iterator[float] | Sequence[float]) -> float:
    """NaN counts as the worst."""
    ordered = sorted(numbers, key=lambda number: (math.isnan(number), number))
    return ordered[len(ordered) // 2]


def _file_name(words: str) -> str:
    return re.sub(r"\W+", "-", words.lower()).strip("-")


def _print(title: str, headings: Sequence[str], rows: dict[str, list[str]]) -> None:
    table = Table(*headings, title=title, title_justify="left")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=150).print(table)


def quiet() -> None:
    """What the tables say needs no line in the log; networks this small are slower on several threads."""
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())
    torch.set_num_threads(1)
