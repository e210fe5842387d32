"""What ``trace_nonfinite=True`` costs, beside anomaly mode: ``python -m benchmarks.trace_cost``.

Steps of the same model, bare, watched, watched and traced, under anomaly mode, interleaved; medians over the steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradwatch

STEPS = 60


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
    """() → seconds of one more step, under one way of looking."""
    torch.manual_seed(0)
    model, x = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    if way in ("watched", "traced"):
        gradwatch.watch(model, optimizer, trace_nonfinite=way == "traced")

    def step() -> float:
        begin = time.perf_counter()
        with torch.autograd.set_detect_anomaly(way == "anomaly mode"):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return time.perf_counter() - begin

    return step


def main() -> None:
    """Prints a table of ratios to the bare step."""
    ways = ("bare", "watched", "traced", "anomaly mode")
    print("| model | bare | watched | `trace_nonfinite=True` | `autograd.detect_anomaly` |\n|---|---|---|---|---|")
    for make in (mlp, transformer, convolutional):
        steps = {way: stepper(make, way) for way in ways}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(STEPS):
            for way in ways if number % 2 else reversed(ways):
                times[way].append(steps[way]())
        bare = statistics.median(times["bare"][5:])
        ratios = [f"{statistics.median(times[way][5:]) / bare:.2f}" for way in ways[1:]]
        print(f"| {(make.__doc__ or '').strip('.')} | {bare * 1e3:.1f} ms | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
