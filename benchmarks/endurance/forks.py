"""Fork at every moment of a training, read a watcher from other threads, and start two runs at once in one directory.

What is forked, and when, is in ``forking``. The run of the parent is read back: each row must be there once, in every
file.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.endurance.figure import Figure, at_least_one
from benchmarks.endurance.processes import LOADED, SINGLE_THREAD, ends_in, server_with, started
from benchmarks.endurance.victims import batches, quiet, small_model

__all__ = ["attack"]

FORKS = 1_000
FORKS_OF_ONE = 100  # of one training, at most
STEPS = 100_000
READERS = 4
PAIRS = 100
PAIR_STEPS = 20
AT_ONCE = 2
PAUSE = 0.005  # seconds between two readings of a thread, each of which takes up to a millisecond
DEADLINE = 1_800.0  # seconds for a training, on a machine however busy
SICK_SHARE = 0.001  # of the batches that are read about: a hundred findings


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Fork, read and start together."""
    yield from _forks(at_least_one(share, FORKS), seed)
    yield _readers(at_least_one(share, STEPS), seed)
    yield _pairs(at_least_one(share, PAIRS), seed)


# children


@dataclass(frozen=True)
class Forked:
    """A training that was forked: what it has said itself, and what is wrong with its files."""

    said: dict[str, Any]
    wrong: list[str]


def _forks(number: int, seed: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        each = min(FORKS_OF_ONE, -(-number // AT_ONCE))
        parts = [(Path(folder, str(first)), seed, first, min(each, number - first)) for first in range(0, number, each)]
        trainings = list(pool.map(lambda part: _forked(*part), parts))
    hung = [fork for training in trainings for fork in training.said["hung"]]
    failed = [fork for training in trainings for fork in training.said["failed"]]
    wrong = [words for training in trainings for words in training.wrong]
    for what in (*hung, *failed, *wrong):
        print(f"    {what}", file=sys.stderr)
    yield Figure(f"{number:,} forks, with every verb in the child: hung", "0", f"{len(hung)}", not hung)
    yield Figure("… children that failed", "0", f"{len(failed)}", not failed)
    rows = sum(training.said["steps"] for training in trainings)
    whole = f"{len(wrong)} faults in {rows:,} rows of {len(trainings)} runs"
    yield Figure("… what is not in the parent's files, or more than once", "0", whole, not wrong)


def _forked(folder: Path, seed: int, first: int, number: int) -> Forked:
    """Have a process train and fork, and read its files."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.endurance.forking", str(folder), str(seed), str(first), str(number)]
    log = folder / "errors.txt"
    with log.open("wb") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, timeout=DEADLINE, env={**os.environ, **SINGLE_THREAD}
        )
    print(f"    {first + number} forks", file=sys.stderr)
    if done.returncode:
        ended = f"the training ended with {done.returncode}: {log.read_text(errors='replace')[-2000:]}"
        return Forked({"hung": [], "failed": [], "steps": 0}, [ended])
    said = json.loads(done.stdout.splitlines()[-1])
    if said["hung"] or said["failed"]:
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
    return Forked(said, _wrong_with(folder, said))


def _wrong_with(folder: Path, said: dict[str, Any]) -> list[str]:
    """Say what of a training is not in its files, or more than once."""
    from gradwatch.event_files.reader import read_runs

    (run,) = read_runs(folder / "run")
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    with (folder / "run.csv").open(newline="", encoding="utf-8") as file:
        of_csv = [int(line["step"]) for line in csv.DictReader(file)]
    steps, found = list(range(said["steps"])), sorted(tuple(each) for each in said["findings"])
    opened = [tuple(each[key] for key in ("kind", "layer", "step")) for each in lines if each["event"] == "opened"]
    faults = {
        "children were not made": said["unmade"],
        "black boxes and snapshots": said["wrong_files"],
        "rows of event files": run.steps.tolist() != steps,
        "rows of JSON lines": [each["step"] for each in lines if each["event"] == "row"] != steps,
        "rows of CSV": of_csv != steps,
        "findings of event files": sorted(each.identity for each in run.findings) != found,
        "findings of JSON lines": sorted(opened) != found,
        "the end": run.closed_after != said["steps"],
        "the measurement": run.coverage is not None,
        "the reading": run.problems,
    }
    return [f"{folder.name}: {what}: {fault}" for what, fault in faults.items() if fault]


# threads that read


def _readers(steps: int, seed: int) -> Figure:
    """Compare a training that others read with one that nobody reads."""
    with tempfile.TemporaryDirectory() as folder:
        context, asked = server_with(LOADED), (0, READERS)
        both = [started(context, _train_and_read, Path(folder, str(each)), steps, seed, each) for each in asked]
        alone, read = (_answer_of(*each) for each in both)
    what = f"{READERS} threads read the watcher during {steps:,} steps: findings as without them"
    if alone is None or read is None:
        return Figure(what, "all", "a training ended without an answer", False)
    least = min(read["polls"].values(), default=0)
    same = read["findings"] == alone["findings"] and read["steps"] == alone["steps"] == steps
    reached = f"{'all' if same else 'not all'} of {len(alone['findings'])}, at {sum(read['polls'].values()):,} readings"
    return Figure(what, "all", reached, bool(same and alone["findings"] and least and not read["faults"]))


def _train_and_read(pipe: Connection, folder: Path, steps: int, seed: int, readers: int) -> None:
    """Train while threads read the watcher, and say what was found."""
    quiet()
    import torch

    import gradwatch

    torch.set_num_threads(1)
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watcher = gradwatch.watch(model, optimizer, log_dir=folder, on_nonfinite="skip")
    is_over, polls, faults = threading.Event(), Counter[str](), list[str]()
    asked = [partial(_read, watcher, name, is_over, polls, faults) for name in list(READINGS)[:readers]]
    threads = [threading.Thread(target=each) for each in asked]
    for thread in threads:
        thread.start()
    for x in batches(seed, steps, SICK_SHARE):
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    is_over.set()
    for thread in threads:
        thread.join()
    found = [finding.as_dict() for finding in watcher.findings]
    watcher.close()
    seen = int(repr(watcher).split(" steps")[0].split()[-1])
    answer = {"findings": found, "steps": seen, "polls": polls, "faults": faults}
    pipe.send_bytes(json.dumps(answer).encode())


READINGS: dict[str, Callable[[Any], object]] = {
    "findings": lambda watcher: watcher.findings,
    "history": lambda watcher: watcher.history["grad_norm"],
    "report": lambda watcher: (repr(watcher), watcher._repr_html_()),
    "state_dict": lambda watcher: watcher.state_dict(),
}


def _read(watcher: Any, name: str, is_over: threading.Event, polls: Counter[str], faults: list[str]) -> None:
    """Read one thing again and again."""
    while not is_over.wait(PAUSE):
        try:
            READINGS[name](watcher)
        except Exception as error:
            faults.append(f"{name}: {error!r}")
            return
        polls[name] += 1


# runs that start together


def _pairs(number: int, seed: int) -> Figure:
    """Start two processes at once, again and again, all in one directory, and read what they leave."""
    from gradwatch.event_files.reader import NoRunError, read_runs

    with tempfile.TemporaryDirectory() as name:
        folder, context = Path(name, "runs"), server_with(LOADED)
        for pair in range(number):
            barrier = context.Barrier(2)
            both = [started(context, _start_together, folder, seed + 2 * pair + rank, barrier) for rank in (0, 1)]
            for each in both:
                _answer_of(*each)
        try:
            runs = read_runs(folder)
        except NoRunError:
            runs = []
    whole = [run for run in runs if run.steps.tolist() == list(range(PAIR_STEPS)) and not run.problems]
    closed = [run for run in whole if run.closed_after == PAIR_STEPS]
    what = f"{number} pairs of processes start at once in one directory: runs that can be read"
    return Figure(what, f"{2 * number}", f"{len(closed)}", len(closed) == len(runs) == 2 * number)


def _start_together(pipe: Connection, folder: Path, seed: int, barrier: Any) -> None:
    """Train a few steps, from the moment on at which another process does."""
    quiet()
    import torch

    import gradwatch

    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradwatch.watch(model, optimizer, log_dir=folder, log_every_n_steps=1):
        barrier.wait()
        for x in batches(seed, PAIR_STEPS, 0.0):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    pipe.send_bytes(b"{}")


def _answer_of(process: BaseProcess, pipe: Connection) -> Any:
    """Return what a process has answered; None where it has ended without, or had to be ended."""
    answer = None
    try:
        if pipe.poll(DEADLINE):
            answer = json.loads(pipe.recv_bytes())
    except EOFError:
        pass
    if not ends_in(process, 0 if answer is None else DEADLINE):
        answer = None
    pipe.close()
    return answer
