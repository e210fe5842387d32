"""On a GPU: nothing waits for the device, and what a step costs: ``python -m benchmarks.gpu``.

Under ``torch.cuda.set_sync_debug_mode("error")`` any wait raises. Times are of the device's own clock, whole steps,
interleaved.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch import nn

import gradwatch

STEPS, WARM_UP = 200, 20


def network() -> nn.Module:
    """24 pre-norm blocks of width 512."""
    block = nn.TransformerEncoderLayer(512, 8, 2048, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(block, 24, enable_nested_tensor=False)


def stepper(way: str) -> Callable[[], None]:
    """One more step under "bare", "clip" or "watch"."""
    torch.manual_seed(0)
    model = network().cuda()
    x = torch.randn(16, 128, 512, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    watcher = gradwatch.watch(model, optimizer, clip=1.0) if way == "watch" else None

    def step() -> None:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if watcher is not None:
            watcher.observe_loss(loss)
        loss.backward()
        if way == "clip":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main() -> int:
    """Prints the device, whether a step waited, and the ratios."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked, nothing was timed")
        return 2
    steps = {way: stepper(way) for way in ("bare", "clip", "watch")}
    times: dict[str, list[float]] = {way: [] for way in steps}
    for number in range(WARM_UP + STEPS):
        for way, step in steps.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            # sampled steps read their rows a step later, too; the first ones allocate
            torch.cuda.set_sync_debug_mode("error" if number >= WARM_UP else "default")
            begin.record()
            step()
            end.record()
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            if number >= WARM_UP:
                times[way].append(begin.elapsed_time(end))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: no step waited for the device")
    for way, base in (("clip", "bare"), ("watch", "clip"), ("watch", "bare")):
        pairs = [a / b for a, b in zip(times[way], times[base], strict=True)]
        means = sum(times[way]) / sum(times[base])
        print(f"{way} ÷ {base}: median {statistics.median(pairs):.3f}, means {means:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
