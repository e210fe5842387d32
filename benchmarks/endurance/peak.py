"""Measure the most memory that training takes, bare and watched, each in a process of its own."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradwatch

__all__ = ["WORKLOADS", "growths"]

STEPS, SICK = 3, 2
ROWS, WIDTH, DEPTH = 65536, 64, 24
"""Activations of 16 MiB a layer, far more than the weights and what Python and torch take together."""

PAGE = os.sysconf("SC_PAGE_SIZE")
LARGE = 1 << 20
"""Blocks from this size on go back to the system when they are freed. Else the C library keeps some, and two runs of
the same program differ by a quarter."""
M_MMAP_THRESHOLD = -3


class Counts(nn.Module):
    """A network of code of the user's, so that a sick step is run again in a process of its own."""

    def __init__(self, inner: nn.Module, *, saves_memory: bool = False) -> None:
        super().__init__()
        self.inner, self.saves_memory, self.calls = inner, saves_memory, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for part in (self.inner[:12], self.inner[12:]):  # type: ignore[index]
            x = checkpoint(part, x, use_reentrant=False) if self.saves_memory else part(x)
        return x


def _deep() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)))


def _images() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(DEPTH))
    )


def _wide() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(DEPTH)))


Make = Callable[[], nn.Module]
_PLAIN: tuple[int, ...] = (ROWS, WIDTH)

WORKLOADS: list[tuple[str, Make, tuple[int, ...], dict[str, Any]]] = [
    ("a sick step of torch's own modules", _deep, _PLAIN, {"sick": True}),
    ("a sick step of the user's own module", lambda: Counts(_deep()), _PLAIN, {"sick": True}),
    ("healthy", _deep, _PLAIN, {}),
    ("a sick step with checkpoints", lambda: Counts(_deep(), saves_memory=True), _PLAIN, {"sick": True}),
    ("a sick step of a convolution", _images, (1024, 8, 512), {"sick": True}),
    ("large weights, Adam", _wide, (64, 1024), {"optimizer": torch.optim.Adam}),
    ("large weights, Adam, a sick step", _wide, (64, 1024), {"optimizer": torch.optim.Adam, "sick": True}),
    ("every call traced", _deep, _PLAIN, {"sick": True, "trace_nonfinite": True}),
    ("event files with histograms", _deep, _PLAIN, {"log_dir": "runs", "histograms": True, "log_every_n_steps": 1}),
    ("clipped", _deep, _PLAIN, {"clip": 1.0}),
]
"""Name, network, shape of a batch, and what else."""


def growths(some: Sequence[tuple[str, Make, tuple[int, ...], dict[str, Any]]]) -> dict[str, float]:
    """Return the peak of each watched, divided by that of the same bare."""
    found = {}
    for name, make, shape, keywords in some:
        bare, watched = (
            peak_of(functools.partial(_train, make, shape, keywords, watched=each)) for each in (False, True)
        )
        found[name] = watched / bare
        print(
            f"    {name}: {bare / 2**20:,.0f} MiB bare, {watched / 2**20:,.0f} MiB watched", file=sys.stderr, flush=True
        )
    return found


def peak_of(act: Callable[[], None]) -> int:
    """Return the most bytes that a forked process takes while it runs ``act``, its own children included.

    The process counts its own exactly. Of a child, which shares what it was born with, counts what it takes beyond
    that; it is looked at every few milliseconds.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
            act()
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.set_blocking(reading, False)
    highest, born = 0, dict[int, int]()
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        highest = max(highest, _resident(process) + _beyond_birth(process, born))
        time.sleep(0.002)  # between two looks
    own = int(os.read(reading, 100) or 0)
    os.close(reading)
    if not own:
        raise RuntimeError("the program whose memory is measured has died")
    return max(highest, own)


def _beyond_birth(process: int, born: dict[int, int]) -> int:
    """Return what the children of ``process`` take beyond what each took when it was first seen."""
    taken = 0
    for child in _children(process):
        now = _resident(child)
        taken += max(0, now - born.setdefault(child, now))
    return taken


def _children(process: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _train(make: Make, shape: tuple[int, ...], keywords: dict[str, Any], *, watched: bool) -> None:
    keywords = dict(keywords)
    is_sick, kind = keywords.pop("sick", False), keywords.pop("optimizer", torch.optim.SGD)
    torch.manual_seed(0)
    network = make()
    optimizer = kind(network.parameters(), lr=1e-3)
    with tempfile.TemporaryDirectory() as directory:
        if "log_dir" in keywords:
            keywords["log_dir"] = directory
        watcher = gradwatch.watch(network, optimizer, **keywords) if watched else None
        for step in range(STEPS):
            x = torch.randn(shape)
            if is_sick and step == SICK:
                x[0, 0] = torch.nan
            optimizer.zero_grad()
            loss = network(x).square().mean()
            loss.backward()
            if torch.isfinite(loss) or watched:
                optimizer.step()
        if watcher is not None:
            watcher.close()
            if is_sick and not watcher.findings:
                raise RuntimeError("the sick step was not found")
