"""Train the same network sick and with each remedy, on the same batches, and put the outcomes side by side.

Every example of this folder uses the data, the loop and the table of this file. The runs of seed 0 stay in
``runs/remedies/<family>/<table>/<way>`` for TensorBoard, the full names in ``names.json`` beside them.
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
from typing import Any, Literal

import torch
from rich import table as rich_table
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch

SEEDS = 3
RUNS = Path("runs/remedies")
BATCH = 64
HEADINGS = ("", "findings", "first sick step", "gradient norm, first layer", "loss", "held-out accuracy", "ms a step")


@cache
def digits(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's digits: 1,400 to train on, as (N, 64) levels up to ``scale`` and classes; 397 held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data.data / 16 * scale, dtype=torch.float32)[order]
    classes = torch.tensor(data.target)[order]
    return pixels[:1400], classes[:1400], pixels[1400:], classes[1400:]


def squared_error(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return the squared error of the classes as ten numbers, summed over the ten."""
    return (outputs - F.one_hot(classes, 10)).square().sum(1).mean()


def summed_cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return the sum over the batch: a batch twice as large makes a step twice as long."""
    return F.cross_entropy(outputs, classes, reduction="sum")


def unguarded_cross_entropy(outputs: Tensor, classes: Tensor) -> Tensor:
    """Return −Σ y·log p written out, as beginners do: 0·log 0 is NaN once a probability underflows."""
    return -(F.one_hot(classes, 10) * outputs.softmax(1).log()).sum(1).mean()


def changed(
    make_model: Callable[[], nn.Module], *changes: Callable[[nn.Module, Tensor], object]
) -> Callable[[], nn.Module]:
    """Return a function that makes a model of digits and lets functions of ``gradwatch.remedies`` change it."""

    def make() -> nn.Module:
        model = make_model()
        for change in changes:
            change(model, digits()[0][:BATCH])
        return model

    return make


@dataclass(frozen=True)
class Way:
    """One way to train: sick, or with a remedy.

    Attributes:
        name: of its row and its run; that of a remedy begins with its key.
        model: makes the network.
        rate: the learning rate.
        clip: as in ``gradwatch.watch``.
        loss: (outputs, targets) → loss.
        inputs: changes a batch's inputs, in training and on held-out data.
        optimizer: (parameters, rate) → optimizer.
        batch: samples a step.
        schedule: step → share of the rate.
        regularisation: α of α‖W‖².
        after: called with the model after each update.
        on_nonfinite: as in ``gradwatch.watch``.
        clears: where ``zero_grad`` is called.
        scale: of a ``GradScaler``; None goes without.
        loop_clips: the norm to which the loop itself clips, before or after the scale is divided out; or too early.
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
    on_nonfinite: Literal["report", "skip"] = "report"
    clears: Literal["before backward", "before step", "never"] = "before backward"
    scale: float | None = None
    loop_clips: tuple[float, Literal["scaled", "unscaled", "before backward"]] | None = None


@dataclass
class Outcome:
    """The outcome of one training.

    Attributes:
        findings: kind → first sick step.
        gradient: last norm of the first weight's gradient.
        first, last: loss at the first step, mean of the last ten.
        held_out: accuracy on held-out data; chance is 0.1.
        milliseconds: processor time of a step, of the fastest tenth, since others may use the machine, too.
    """

    findings: dict[str, int] = field(default_factory=dict)
    gradient: float = math.nan
    first: float = math.nan
    last: float = math.nan
    held_out: float = math.nan
    milliseconds: float = math.nan


def train(way: Way, seed: int, steps: int, log_dir: Path | None, scale: float = 1.0) -> Outcome:
    """Train one run on the digits; with one seed, all ways of one batch size get the same batches."""
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
    """Train ``model`` on the batches that ``draw`` returns, and return the watcher, the losses, the times of steps."""
    optimizer = way.optimizer(model.parameters(), lr=way.rate)
    scaler = torch.amp.GradScaler("cpu", init_scale=way.scale or 1.0, enabled=way.scale is not None)
    losses, times = [], []
    options: dict[str, Any] = {"clip": way.clip, "on_nonfinite": way.on_nonfinite, "log_every_n_steps": 1}
    with gradwatch.watch(model, optimizer, log_dir=log_dir, **options) as watcher:
        for step in range(steps):
            inputs, targets = draw()
            for group in optimizer.param_groups:
                group["lr"] = way.rate * way.schedule(step)
            begin = time.process_time()
            loss = way.loss(model(way.inputs(inputs)), targets)
            if way.regularisation:
                loss = loss + way.regularisation * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
            watcher.observe_loss(loss)
            update(way, model, optimizer, scaler, loss)
            way.after(model)
            times.append(time.process_time() - begin)
            losses.append(loss.item())
    return watcher, losses, times


def update(
    way: Way, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor
) -> None:
    """Make one update, with the calls in the order of ``way``."""
    if way.clears == "before backward":
        optimizer.zero_grad()
    norm, when = way.loop_clips or (0.0, "never")
    if when == "before backward":
        nn.utils.clip_grad_norm_(model.parameters(), norm)
    scaler.scale(loss).backward()
    if when == "unscaled":
        scaler.unscale_(optimizer)
    if when in ("scaled", "unscaled"):
        nn.utils.clip_grad_norm_(model.parameters(), norm)
    if way.clears == "before step":
        optimizer.zero_grad()
    scaler.step(optimizer)
    scaler.update()


def held_out_accuracy(model: nn.Module, way: Way, inputs: Tensor, classes: Tensor) -> float:
    """Return the share of digits never trained on that are classified correctly."""
    model.eval()
    with torch.no_grad():
        return (model(way.inputs(inputs)).argmax(-1) == classes).float().mean().item()


def outcome_of(watcher: gradwatch.Watcher, losses: Sequence[float], times: Sequence[float], held_out: float) -> Outcome:
    """Return the figures of a run that has ended."""
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


@dataclass(frozen=True)
class Table:
    """Ways to train that belong side by side.

    Attributes:
        title: of the table.
        ways: its rows.
        steps: of each run.
        scale: of the pixels.
        train: makes one run.
        held_out: the name of the last figure but one.
    """

    title: str
    ways: Sequence[Way]
    steps: int
    scale: float = 1.0
    train: Callable[..., Outcome] = train
    held_out: str = "held-out accuracy"


def compare(family: str, *tables: Table) -> list[str]:
    """Train each way under every seed, print the tables, and return them as lines of Markdown.

    Args:
        family: of remedies; names the folder of the runs.
        tables: what is trained.
    """
    return [line for table in tables for line in _trained(RUNS / family / _file_name(table.title), table)]


def _trained(folder: Path, table: Table) -> list[str]:
    rows = {}
    headings = [table.held_out if heading == "held-out accuracy" else heading for heading in HEADINGS]
    is_quick = "--quick" in sys.argv  # for the tests, which see whether it runs
    steps = 12 if is_quick else table.steps
    shutil.rmtree(folder, ignore_errors=True)
    for way in table.ways:
        run = folder / _file_name(way.name)
        outcomes = []
        for seed in range(1 if is_quick else SEEDS):
            outcomes.append(table.train(way, seed, steps, run if seed == 0 else None, table.scale))
        rows[way.name] = cells_of(outcomes)
    names = {"title": table.title, "rows": {_file_name(name): name for name in rows}}
    (folder / "names.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    _print(table.title, headings, rows)
    return [
        f"**{table.title}** ({table.steps} steps)",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
    ]


def cells_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one row: medians over the seeds, with the lowest and highest of the held-out figure."""
    kinds = sorted({kind for outcome in outcomes for kind in outcome.findings})
    found, since = [], []
    for kind in kinds:
        steps = [outcome.findings[kind] for outcome in outcomes if kind in outcome.findings]
        found.append(f"{kind} {len(steps)}/{len(outcomes)}")
        since.append(f"{statistics.median_low(steps)}")
    held_out = [outcome.held_out for outcome in outcomes]
    return [
        ", ".join(found) or "none",
        ", ".join(since) or "–",
        f"{_median(o.gradient for o in outcomes):.1e}",
        f"{_median(o.first for o in outcomes):.3g} → {_median(o.last for o in outcomes):.3g}",
        f"{_median(held_out):.2f} ({min(held_out):.2f}–{max(held_out):.2f})",
        f"{min(o.milliseconds for o in outcomes):.1f}",
    ]


def _median(numbers: Iterator[float] | Sequence[float]) -> float:
    """Return the median, with NaN as the highest."""
    ordered = sorted(numbers, key=lambda number: (math.isnan(number), number))
    return ordered[len(ordered) // 2]


def _file_name(words: str) -> str:
    return re.sub(r"\W+", "-", words.lower()).strip("-")


def _print(title: str, headings: Sequence[str], rows: dict[str, list[str]]) -> None:
    table = rich_table.Table(*headings, title=title, title_justify="left")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=150).print(table)


def quiet() -> None:
    """Log nothing, since the tables say it all, and use one thread, since networks this small are slower on several."""
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())
    torch.set_num_threads(1)
