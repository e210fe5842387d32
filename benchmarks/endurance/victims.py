"""Train until somebody kills this process, and say meanwhile what gradwatch has said is safe.

Each victim is called in a process of its own with one end of a pipe. Its messages are ``["said", kind, layer, step]``
for a finding as ``on_finding`` is called, ``["ready"]`` once it trains, and ``["flushed", steps, findings]`` after a
``flush`` that followed so many steps, with all findings so far.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.endurance.figure import draws_of

__all__ = ["VICTIMS", "Watched", "Witness", "batches", "small_model"]

STEPS = 5_000  # then it ends by itself, should nobody kill it
SICK_SHARE = 0.03  # of all batches: a finding opens every few dozen steps
FLUSHED_SHARE = 0.1


class Witness:
    """What the parent hears."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._heard: set[tuple[str, str, int]] = set()

    def say(self, *words: object) -> None:
        """Send one message; it is in the pipe, whole, once this returns."""
        self._pipe.send_bytes(json.dumps(words).encode())

    def note_finding(self, finding: Any) -> None:
        """Say that a finding was told."""
        self.say("said", *finding.identity)

    def note_flush(self, watcher: Any, steps: int) -> None:
        """Flush, and say what is safe since."""
        known = [finding.identity for finding in watcher.findings]
        watcher.flush()
        self.say("flushed", steps, [each for each in known if each not in self._heard])
        self._heard.update(known)


class Watched:
    """What ``gradwatch run`` watches, in the words of a watcher."""

    def __init__(self) -> None:
        from gradwatch.watcher.open_loops import open_loops

        self._loops = list(open_loops)

    @property
    def findings(self) -> list[Any]:
        return [finding for loop in self._loops for finding in loop.findings() or []]

    def flush(self) -> None:
        for loop in self._loops:
            loop.flush()


def quiet() -> None:
    """Keep lines of logs and warnings off the terminal of the attack."""
    warnings.simplefilter("ignore")
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def small_model() -> Any:
    """Return a network of four parameters."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))


def batches(seed: int, steps: int = STEPS, sick_share: float = SICK_SHARE) -> Iterator[Any]:
    """Yield batches, some of which are NaN."""
    import torch

    draws, generator = draws_of(seed, 0), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator)
        yield x * torch.nan if draws.random() < sick_share else x


def train(model: Any, optimizer: Any, watcher: Any, witness: Witness, seed: int) -> None:
    """Train, and flush now and then."""
    draws = draws_of(seed, 1)
    for step, x in enumerate(batches(seed)):
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        if step == 0:
            witness.say("ready")
        if draws.random() < FLUSHED_SHARE:
            witness.note_flush(watcher, step + 1)


def plain(pipe: Connection, folder: Path, seed: int) -> None:
    """Train in a plain loop that writes event files."""
    _plainly(pipe, seed, log_dir=folder)


def json_lines(pipe: Connection, folder: Path, seed: int) -> None:
    """Train in a plain loop that writes JSON lines."""
    import gradwatch

    _plainly(pipe, seed, sinks=[gradwatch.JsonLines(folder / "run.jsonl")])


def _plainly(pipe: Connection, seed: int, **options: Any) -> None:
    quiet()
    import torch

    import gradwatch

    witness, model = Witness(pipe), small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watcher = gradwatch.watch(
        model, optimizer, on_nonfinite="skip", log_every_n_steps=1, on_finding=witness.note_finding, **options
    )
    train(model, optimizer, watcher, witness, seed)


def lightning(pipe: Connection, folder: Path, seed: int) -> None:
    """Train by a Trainer with the callback."""
    quiet()
    import lightning.pytorch as pl
    import torch

    from gradwatch.lightning import GradWatch

    witness, draws = Witness(pipe), draws_of(seed, 1)
    watch = GradWatch(log_dir=folder, on_nonfinite="skip", log_every_n_steps=1, on_finding=witness.note_finding)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_model()

        def training_step(self, x: Any, index: int) -> Any:
            return (self.model(x) - x.sum(1, keepdim=True)).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    class Flushes(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if trainer.global_step == 1:
                witness.say("ready")
            if draws.random() < FLUSHED_SHARE:
                witness.note_flush(watch.watcher, trainer.global_step)

    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[watch, Flushes()],
    )  # fmt: skip
    data: Any = list(batches(seed))
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=None))


def gradwatch_run(pipe: Connection, folder: Path, seed: int) -> None:
    """Run a script that does not know gradwatch by ``gradwatch run``."""
    quiet()
    sys.argv = ["gradwatch", "run", "--log-dir", str(folder), "--log-every", "1", SCRIPT, str(pipe.fileno()), str(seed)]
    from gradwatch.cli import main

    main()


def two_ranks(rank: int, pipe: Connection, folder: Path, seed: int) -> None:
    """Train one of two ranks; the second one says only that it trains."""
    quiet()
    import torch
    import torch.distributed as dist

    import gradwatch

    meeting = f"file://{folder.with_suffix('.store')}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    witness, model = Witness(pipe), torch.nn.parallel.DistributedDataParallel(small_model())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watcher = gradwatch.watch(
        model, optimizer, log_dir=folder, on_nonfinite="skip", log_every_n_steps=1,
        on_finding=witness.note_finding if rank == 0 else None,
    )  # fmt: skip
    with contextlib.suppress(RuntimeError):  # the other one was killed
        train(model, optimizer, watcher, witness, seed)
    watcher.close()
    witness.say("ended")


SCRIPT = str(Path(__file__).with_name("victim_script.py"))
VICTIMS: dict[str, list[Callable[[Connection, Path, int], None]]] = {
    "watch, event files": [plain],
    "watch, JSON lines": [json_lines],
    "Lightning": [lightning],
    "gradwatch run": [gradwatch_run],
    "two ranks": [functools.partial(two_ranks, 0), functools.partial(two_ranks, 1)],
}
"""What is killed: a process, or two that know each other."""
