"""On a GPU: no step waits for the device, and what a step costs: ``python -m benchmarks.gpu``, in five minutes at most.

Each setting trains three copies of one network, interleaved: bare, with ``clip_grad_norm_``, and watched with
``clip=1.0``. Under ``torch.cuda.set_sync_debug_mode("error")`` any wait raises. Times are of the device's own clock,
whole steps. ``--device cpu`` runs the same code without a GPU, to try it: it times with the host's clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

import gradwatch
from gradwatch.hooks.guard import UnwatchableError

SETTINGS = ("float32", "compiled", "float16 with a scaler")
WAYS = ("bare", "clip", "watch")
STEPS, WARM_UP = 150, 20


def network() -> nn.Module:
    """24 pre-norm blocks of width 512."""
    block = nn.TransformerEncoderLayer(512, 8, 2048, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(block, 24, enable_nested_tensor=False)


def stepper(setting: str, way: str, make: Callable[[], nn.Module], x: torch.Tensor) -> Callable[[], None]:
    """Return one more step of a network in one of ``SETTINGS``, under one of ``WAYS``."""
    torch.manual_seed(0)
    model = make().to(x.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    uses_scaler = setting == "float16 with a scaler"
    scaler = torch.amp.GradScaler(x.device.type, enabled=uses_scaler)
    if way == "watch":
        gradwatch.watch(model, optimizer, clip=1.0, scaler=scaler if uses_scaler else None)
    call = torch.compile(model) if setting == "compiled" else model

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.float16, enabled=uses_scaler):
            loss = call(x).square().mean()
        scaler.scale(loss).backward()
        if way == "clip":
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return step


@contextmanager
def timed(device: torch.device, times: list[float], *, may_wait: bool) -> Iterator[None]:
    """Append the milliseconds of what runs in it; raise where it waits for a GPU that it may not wait for."""
    if device.type != "cuda":
        begun = time.perf_counter()
        yield
        times.append((time.perf_counter() - begun) * 1e3)
        return
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default" if may_wait else "error")
    try:
        begin.record()
        yield
        end.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    times.append(begin.elapsed_time(end))


def measured(setting: str, make: Callable[[], nn.Module], x: torch.Tensor, count: int, warm_up: int) -> str:
    """Return a line about one setting."""
    steps = {way: stepper(setting, way, make, x) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    may_wait = setting == "float16 with a scaler"  # the scaler itself waits, to learn whether a gradient was infinite
    for number in range(warm_up + count):
        for way, step in steps.items():
            with timed(x.device, times[way], may_wait=may_wait or number < warm_up):
                step()
    ratios = [_ratio(times, *pair, warm_up) for pair in (("clip", "bare"), ("watch", "clip"), ("watch", "bare"))]
    return f"| {setting} | {statistics.median(times['bare'][warm_up:]):.2f} ms | {' | '.join(ratios)} |"


def _ratio(times: dict[str, list[float]], way: str, base: str, warm_up: int) -> str:
    pairs = [a / b for a, b in zip(times[way][warm_up:], times[base][warm_up:], strict=True)]
    means = sum(times[way][warm_up:]) / sum(times[base][warm_up:])
    return f"{statistics.median(pairs):.3f}; {means:.3f}"


def captured(x: torch.Tensor) -> str:
    """Return what gradwatch says to a step that is captured in a CUDA graph."""
    model = nn.Linear(x.shape[-1], 1).to(x.device)
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    with gradwatch.watch(model, optimizer):
        model(x).mean().backward()
        optimizer.step()
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                optimizer.step()
        except UnwatchableError as error:
            return str(error)
    return "nothing, and watches nothing"


def main() -> int:
    """Print the device, and a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked, nothing was timed")
        return 2
    has_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if has_gpu else "CPU"
    x = torch.randn(16, 128, 512, device=device) if has_gpu else torch.randn(2, 8, 512)
    print(f"{name}, torch {torch.__version__}; median of pairs; ratio of means")
    print("| setting | bare | clip ÷ bare | watch ÷ clip | watch ÷ bare |\n|---|---|---|---|---|")
    for setting in SETTINGS if has_gpu else SETTINGS[:1]:
        print(measured(setting, network, x, STEPS if has_gpu else 3, WARM_UP if has_gpu else 2), flush=True)
    if has_gpu:
        print("no step of float32 or compiled waited for the device")
        print("to a captured step gradwatch says:", captured(x))
    return 0


if __name__ == "__main__":
    sys.exit(main())
