"""How the cost of a look grows: with the tensors, with the steps that have run, with what a step is asked for.

Part of ``python -m benchmarks.overhead``. Seconds are of this machine; each stands beside something of torch's own that
was measured in the same rounds.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import nn

import gradwatch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path("docs/images/growth.png")
COUNTS = (10, 100, 1_000, 10_000)
SETTLED = 40  # updates, after which steps wait for the tenth to be looked at
PAGE = 4096


class Held:
    """A watched module of tensors whose gradients stand ready, and the update that moves nothing."""

    def __init__(self, shapes: list[tuple[int, ...]], **options) -> None:
        self.parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape)
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.0, foreach=True)
        self.watcher = gradwatch.watch(nn.ParameterList(self.parameters), self.optimizer, **options)

    def seconds(self) -> float:
        """Of all that gradwatch does at one update."""
        self.watcher.observe_loss(1.0)
        begin = time.perf_counter()
        self.watcher._loop.before_update(self.optimizer)
        self.watcher._loop.after_update(self.optimizer)
        return time.perf_counter() - begin


def timed(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def by_tensors() -> Iterator[str]:
    """Microseconds a tensor of an update, beside ``clip_grad_norm_``'s: at most steps, and of all on average."""
    yield (
        "| tensors of 16 entries | most steps, µs a tensor | all steps on average, sampled ones included "
        "| `clip_grad_norm_` | memory a tensor |\n|---|---|---|---|---|"
    )
    drawn: dict[str, list[float]] = {"gradwatch, most steps": [], "gradwatch, all": [], "clip_grad_norm_": []}
    for count in COUNTS:
        grown = memory_of(count)
        held = Held([(4, 4)] * count, clip=1e9)
        ours, theirs = [], []
        for _ in range(SETTLED + 60):
            theirs.append(timed(lambda held=held: nn.utils.clip_grad_norm_(held.parameters, 1e9)))
            ours.append(held.seconds())
        held.watcher.close()
        figures = [np.median(ours[SETTLED:]), np.mean(ours[SETTLED:]), np.median(theirs[SETTLED:])]
        for line, seconds in zip(drawn.values(), figures, strict=True):
            line.append(seconds / count * 1e6)
        each = " | ".join(f"{line[-1]:.2f}" for line in drawn.values())
        yield f"| {count:,} | {each} | {grown / count / 1e3:.2f} kB |"
    draw(drawn)


def memory_of(count: int) -> float:
    """Bytes that a watcher adds to the process within 40 updates, its history of one step aside."""
    first = Held([(4, 4)] * 10, history=1)  # what is loaded once
    for _ in range(SETTLED):
        first.seconds()
    first.watcher.close()
    model = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(count)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, foreach=True)

    def update() -> None:
        torch.stack([parameter.sum() for parameter in model]).sum().backward()
        optimizer.step()

    for _ in range(5):
        update()
    gc.collect()
    before = resident()
    watcher = gradwatch.watch(model, optimizer, history=1)
    for _ in range(SETTLED):
        update()
    gc.collect()
    grown = resident() - before
    watcher.close()
    return grown


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def by_steps() -> str:
    """An update early in a run and late in it."""
    held = Held([(4, 4)] * 300, clip=1e9)
    seconds = [held.seconds() for _ in range(3_000)]
    held.watcher.close()
    early, late = np.median(seconds[100:600]), np.median(seconds[-500:])
    return f"An update of 300 tensors takes {early * 1e6:.0f} µs after 100 steps, {late * 1e6:.0f} µs after 2,500."


def by_cadence() -> Iterator[str]:
    """Milliseconds of an update by what it is asked for, beside a read of gradients or weights."""
    yield (
        "| update of | every step | sampled | logged | … with histograms | one read of the weights "
        "| a scalar written |\n|---|---|---|---|---|---|---|"
    )
    for title, shapes in (
        ("200 tensors of 64 × 64 and 64", [(64, 64), (64,)] * 100),
        ("76 tensors, 5M entries", [(256, 768), (256, 256)] * 19 + [(768,)] * 38),
        ("148 tensors, 85M entries", [(768, 2304), (768, 768), (768, 3072)] * 12 + [(768,)] * 112),
    ):
        with tempfile.TemporaryDirectory() as directory:
            plain = Held(shapes, clip=1e9, log_dir=f"{directory}/a")
            full = Held(shapes, clip=1e9, log_dir=f"{directory}/b", histograms=True)
            times, histograms, reads = [], [], []
            for _ in range(201):
                times.append(plain.seconds())
                histograms.append(full.seconds())
                reads.append(timed(lambda held=plain: torch._foreach_norm(held.parameters)))
            for held in (plain, full):
                held.watcher.close()
        steps = np.arange(201)
        logged, sampled = steps % 50 == 0, steps % 10 == 0
        logged[:SETTLED], sampled[:SETTLED] = False, False
        every = ~sampled & (steps >= SETTLED)
        middle = lambda values, chosen: float(np.median(np.array(values)[chosen]) * 1e3)
        row = [middle(times, every), middle(times, sampled & ~logged), middle(times, logged)]
        row += [middle(histograms, logged), float(np.median(reads) * 1e3)]
        written = (row[2] - row[1]) / (3 * len(shapes)) * 1e3
        yield f"| {title} | {' | '.join(f'{value:.2f} ms' for value in row)} | {written:.1f} µs |"


def draw(lines: dict[str, list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for (name, values), style in zip(lines.items(), ("o-", "s--", "^:"), strict=True):
        axes.plot(COUNTS, values, style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="tensors of 16 entries", ylabel="µs a tensor and update")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=120)
    plt.close(figure)
