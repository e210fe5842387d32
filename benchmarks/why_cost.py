"""Measure what it costs to know why, beside anomaly mode and a tool of Hugging Face: ``python -m benchmarks.why_cost``.

The same model trains under each way of watching, and the steps are interleaved. A ratio is the median over pairs of
steps of one round. The ratio of the means includes the sampled and logged steps, too.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch

ROUNDS = 200
WARM_UP = 20
WAYS = {
    "bare": "bare",
    "blind": "watched, without activations and replay",
    "default": "watched",
    "traced": "`trace_nonfinite=True`",
    "anomaly": "`autograd.detect_anomaly`",
    "debug": "`DebugUnderflowOverflow`",
}


def mlp() -> tuple[nn.Module, Tensor]:
    """100 layers of 64 units."""
    return nn.Sequential(*[part for _ in range(100) for part in (nn.Linear(64, 64), nn.ReLU())]), torch.randn(256, 64)


def transformer() -> tuple[nn.Module, Tensor]:
    """6 pre-norm blocks of width 256."""
    layer = nn.TransformerEncoderLayer(256, 8, 1024, 0.0, F.gelu, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), torch.randn(8, 64, 256)


def convolutional() -> tuple[nn.Module, Tensor]:
    """12 convolutions of 64 channels with batch normalisation."""
    parts = [nn.Conv2d(3, 64, 3, padding=1)]
    for _ in range(12):
        parts += [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*parts), torch.randn(16, 3, 32, 32)


def stepper(make: Callable[[], tuple[nn.Module, Tensor]], way: str) -> Callable[[], float]:
    """Return a function that makes one more step under one way of watching, and returns its seconds."""
    torch.manual_seed(0)
    model, x = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    if way in ("blind", "default", "traced"):
        watcher = gradwatch.watch(model, optimizer, trace_nonfinite=way == "traced")
        if way == "blind":
            _blind(watcher)
    elif way == "debug":
        from transformers.debug_utils import DebugUnderflowOverflow

        DebugUnderflowOverflow(model)

    def step() -> float:
        begin = time.perf_counter()
        with torch.autograd.set_detect_anomaly(way == "anomaly"), contextlib.redirect_stdout(io.StringIO()):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return time.perf_counter() - begin

    return step


def _blind(watcher: gradwatch.Watcher) -> None:
    loop = watcher._loop
    for part in (loop.origins.replay, loop.steps.activations):
        assert part is not None
        part.remove()
    loop.origins.replay = loop.steps.activations = None


def ratio(times: dict[str, list[float]], way: str, base: str) -> str:
    """Return the ratio of ``way`` to ``base``: the median over rounds, and in brackets the ratio of the means."""
    median = statistics.median(a / b for a, b in zip(times[way], times[base], strict=True))
    return f"{median:.3f} ({sum(times[way]) / sum(times[base]):.3f})"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(2)
    titles = ["model", "bare", *list(WAYS.values())[1:], "watched ÷ without"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for make in (mlp, transformer, convolutional):
        steps = {way: stepper(make, way) for way in WAYS}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(WARM_UP + ROUNDS):
            ways = list(WAYS)
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                times[way].append(steps[way]())
        times = {way: of_way[WARM_UP:] for way, of_way in times.items()}
        figures = [ratio(times, way, "bare") for way in list(WAYS)[1:]] + [ratio(times, "default", "blind")]
        bare = statistics.median(times["bare"])
        print(f"| {(make.__doc__ or '').strip('.')} | {bare * 1e3:.1f} ms | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
