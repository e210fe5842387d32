"""Train for a million steps, healthy and with a sickness that keeps coming back, and look what grows.

Each run is a process of its own: ``python -m benchmarks.endurance.soak STEPS HEALTHY SEED FOLDER``. It prints what it
holds at each of ``LOOKS`` looks. A run is flat if what it holds at its last look is what it held at its second; all
that is made once has been made by then.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import gradwatch
from benchmarks.endurance.figure import Figure, at_least_one
from gradwatch.event_files.reader import read_runs

HEALTHY_BETWEEN = 10  # steps, after which a finding has ended: the next sick step makes another
STEPS, SICK_STEPS = 1_000_000, 100_000 * (HEALTHY_BETWEEN + 1)
LOOKS = 20
SHORTER = 10  # times, by which the run is that the report is compared with
LAYERS, ROUNDS, FRESH = 10_000, 9, 3

MOST_MEMORY = 8.0  # MB: what allocators keep differs by a few from look to look
MOST_TIME = 1.25  # of the median of looks; a busy machine makes more of it
MOST_STATE = 1.02
SICK_STEP = 1.5


@dataclass(frozen=True)
class Look:
    """What a run holds at one moment.

    Attributes:
        step: steps so far.
        memory: resident, in MB.
        descriptors, threads: of the process.
        milliseconds: processor time of a step since the look before.
        state: bytes of ``state_dict()``.
        findings: that the watcher lists.
    """

    step: int
    memory: float
    descriptors: int
    threads: int
    milliseconds: float
    state: int
    findings: int


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Train the two runs side by side, then a short sick one, and compare a sick step with a healthy one."""
    with tempfile.TemporaryDirectory() as folder:
        healthy, sick = (Path(folder, name) for name in ("healthy", "sick"))
        steps, sick_steps = at_least_one(share, STEPS), at_least_one(share, SICK_STEPS)
        runs = [started(steps, 0, seed, healthy), started(sick_steps, HEALTHY_BETWEEN, seed, sick)]
        looks = [looks_of(run) for run in runs]
        yield from flat(f"{steps:,} healthy steps", looks[0])
        came = sick_steps // (HEALTHY_BETWEEN + 1)
        yield from flat(f"{sick_steps:,} steps, on {came:,} of which a sickness came back", looks[1])
        short = Path(folder, "short")
        looks_of(started(sick_steps // SHORTER, HEALTHY_BETWEEN, seed, short))
        yield report_of(sick, short)
    yield from sick_step(max(100, at_least_one(share, LAYERS)))


def flat(what: str, looks: Sequence[Look]) -> Iterator[Figure]:
    """Yield what has grown between the second look and the last."""
    early, late = looks[1], looks[-1]
    grown = late.memory - early.memory
    yield Figure(f"{what}: memory", f"at most + {MOST_MEMORY:.0f} MB", f"{grown:+.1f} MB", grown <= MOST_MEMORY)
    for name in ("descriptors", "threads"):
        before, after = getattr(early, name), getattr(late, name)
        yield Figure(f"{what}: {name}", "flat", f"{before} → {after}", after <= before)
    half = len(looks) // 2
    first, second = (statistics.median(each.milliseconds for each in part) for part in (looks[1:half], looks[half:]))
    asked, ratio = f"at most {MOST_TIME} ×", second / first
    yield Figure(f"{what}: time of a step, second half ÷ first", asked, f"{ratio:.2f} ×", ratio <= MOST_TIME)
    bytes_held = late.state / early.state
    yield Figure(f"{what}: `state_dict`", f"at most {MOST_STATE} ×", f"{bytes_held:.3f} ×", bytes_held <= MOST_STATE)


def report_of(long: Path, short: Path) -> Figure:
    """Compare the findings of a long run's report with those of a short one's."""
    lengths = [len(read_runs(folder)[0].findings) for folder in (short, long)]
    what = f"findings in the report of a run {SHORTER} times as long"
    return Figure(what, "as many", f"{lengths[0]} → {lengths[1]}", lengths[0] == lengths[1])


class OwnForward(nn.Sequential):
    """A sequence with a forward pass of the user's own, of which nothing is proved: it is run again in a child."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x)
        return x


def sick_step(layers: int) -> Iterator[Figure]:
    """Yield how long a sick step of a deep network takes, in healthy ones: the first, and those after it."""
    asked = f"at most {SICK_STEP} × a healthy one"
    for kind in (nn.Sequential, OwnForward):
        for made_by in ("its batch", "its middle layer"):
            first, later = _sick_steps(kind, layers, made_by)
            what = f"{layers:,} layers, `{kind.__name__}`, a NaN made by {made_by}"
            yield Figure(f"{what}: first sick step", asked, f"{first:.1f} ×", first <= SICK_STEP)
            yield Figure(f"{what}: later ones", asked, f"{later:.1f} ×", later <= SICK_STEP)


def _sick_steps(kind: type[nn.Sequential], layers: int, made_by: str) -> tuple[float, float]:
    """Return the times of the first sick step and of later ones, in healthy steps; medians of fresh networks."""
    ratios = []
    for _ in range(FRESH):
        model, optimizer, batch = _deep(kind, layers)
        with quiet(), gradwatch.watch(model, optimizer):
            healthy = statistics.median([_timed_step(model, optimizer, batch) for _ in range(2 * ROUNDS)][ROUNDS:])
            if made_by == "its batch":
                batch = torch.full_like(batch, torch.nan)
            else:
                _set_weights_(model[layers // 2], torch.finfo(torch.float32).max)
            first, *later = [_timed_step(model, optimizer, batch) for _ in range(ROUNDS)]
        ratios.append((first / healthy, statistics.median(later) / healthy))
    firsts, laters = zip(*ratios, strict=True)
    return statistics.median(firsts), statistics.median(laters)


@torch.no_grad()
def _set_weights_(layer: nn.Module, value: float) -> None:
    for parameter in layer.parameters():
        parameter.fill_(value)


def _deep(kind: type[nn.Sequential], layers: int) -> tuple[nn.Sequential, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    model = kind(*(nn.Linear(4, 4, bias=False) for _ in range(layers)))
    for layer in model:
        nn.init.eye_(layer.weight)  # type: ignore[arg-type]
    return model, torch.optim.SGD(model.parameters(), lr=1e-7), torch.randn(8, 4)


def _timed_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    begin = time.perf_counter()  # not processor time: a child may take its own
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    return time.perf_counter() - begin


def started(steps: int, healthy_between: int, seed: int, folder: Path) -> subprocess.Popen[str]:
    """Start a run in a process of its own; ``healthy_between`` is 0 for one that is never sick."""
    arguments = [str(each) for each in (steps, healthy_between, seed, folder)]
    command = [sys.executable, "-m", "benchmarks.endurance.soak", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def looks_of(run: subprocess.Popen[str]) -> list[Look]:
    """Wait for a run, and return its looks.

    Raises:
        RuntimeError: if it failed.
    """
    printed, _ = run.communicate()
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, run.args))} ended with status {run.returncode}")  # type: ignore[arg-type]
    return [Look(**json.loads(line)) for line in printed.splitlines()]


def trained(steps: int, healthy_between: int, seed: int, folder: Path) -> Iterator[Look]:
    """Train a small network, and yield what the process holds at each look."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(8, 4)
    sick = torch.full_like(batch, torch.nan)
    with quiet(), gradwatch.watch(model, optimizer, on_nonfinite="skip", log_dir=folder, clip=1.0) as watcher:
        begin, every = time.process_time(), max(1, steps // LOOKS)
        for step in range(1, steps + 1):
            is_sick = healthy_between and step % (healthy_between + 1) == 0
            optimizer.zero_grad()
            model(sick if is_sick else batch).square().mean().backward()
            optimizer.step()
            if step % every == 0:
                spent = time.process_time() - begin
                yield look(watcher, step, 1000 * spent / every)
                begin = time.process_time()


def look(watcher: gradwatch.Watcher, step: int, milliseconds: float) -> Look:
    """Return what this process holds now."""
    state, findings = len(pickle.dumps(watcher.state_dict())), len(watcher.findings)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    descriptors, threads = (len(os.listdir(f"/proc/self/{each}")) for each in ("fd", "task"))
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Look(step, memory, descriptors, threads, milliseconds, state, findings)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Return a context in which nothing is logged."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    for each in trained(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])):
        print(json.dumps(asdict(each)), flush=True)
