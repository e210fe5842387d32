"""Train, and fork at moments of every kind: ``python -m benchmarks.endurance.forking FOLDER SEED NUMBER``.

Each child does one thing with the watcher that it has inherited, and ends. The last line of the output is a JSON
object: which children had not ended by their deadline, which of them failed, how many steps were made, what was found.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import faulthandler
import gc
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

import gradwatch
from benchmarks.endurance.figure import draws_of
from benchmarks.endurance.victims import batches, small_model
from gradwatch.event_files.reader import NoRunError, read_runs

__all__ = ["MOMENTS", "VERBS", "main"]

DEADLINE = 60.0  # seconds for a child, which needs milliseconds, on a machine however busy
STUCK = 0.8 * DEADLINE  # seconds until a child prints where it is
PAUSE = 0.005  # seconds between two looks at a child
LONGEST_WAIT = 0.02  # seconds that the other thread waits at most: a few steps
AT_ONCE = 4
MOST_STEPS = 20_000
PACKAGE = str(Path(gradwatch.__file__).parent)
WARM_UP = 3
"""Steps before another thread forks. Torch calls each operation for the first time under a lock of C++. A child of
another thread inherits it locked, and a bare loop hangs there, too: 6 of some 180 children at a first step."""

MOMENTS = (
    "between steps",
    "forward",
    "backward",
    "before the update",
    "on_finding",
    "in a sink",
    "in another thread",
    "at a line",
)
"""The last two are made by another thread: while the main one trains, wherever it is; and while it is stopped at one of
gradwatch's own lines, and holds whatever gradwatch has locked there."""


class Fork(NamedTuple):
    """A child that is to be made."""

    moment: str
    verb: str
    leaves: bool
    """True ends as a program does that is over; False ends at once, by ``os._exit``."""


class Program:
    """A training that is watched, with every sink that writes files.

    Args:
        folder: for files.
        seed: of the batches.
        fork: is called with each moment as it comes.
    """

    def __init__(self, folder: Path, seed: int, fork: Callable[[str], None]) -> None:
        self.folder, self.model = folder, small_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)
        self._batches, self._fork, self.steps = batches(seed, MOST_STEPS), fork, 0
        self.is_at_a_step = False
        sinks: list[gradwatch.Sink] = [gradwatch.JsonLines(folder / "run.jsonl"), gradwatch.Csv(folder / "run.csv")]
        self.watcher = gradwatch.watch(
            self.model, self.optimizer, log_dir=folder / "run", on_nonfinite="skip", log_every_n_steps=1,
            on_finding=lambda _: fork("on_finding"), sinks=[*sinks, Forking(fork)], black_box=folder / "failed.pt",
            recover=gradwatch.Rewind(every=10, keep=3, confirm=10, path=folder / "snapshots"),
        )  # fmt: skip
        self.black_boxes: dict[Path, bytes] = {}
        self.state = copy.deepcopy(self.watcher.state_dict())
        self.model[1].register_forward_hook(lambda *_: fork("forward"))
        self.model[0].weight.register_hook(lambda _: fork("backward"))

    def step(self) -> None:
        """Make one step, with a fork at each of its moments if one is due."""
        self._fork("between steps")
        x = next(self._batches)
        self.is_at_a_step = True
        self.optimizer.zero_grad()
        (self.model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        self._fork("before the update")
        self.optimizer.step()
        self.is_at_a_step = False
        self.steps += 1
        self.note_files()

    def note_files(self) -> None:
        """Note black boxes as they are once they were written: nobody else is to write them."""
        assert self.watcher.black_box is not None
        for path in self.watcher.black_box.written[len(self.black_boxes) :]:
            self.black_boxes[path] = path.read_bytes()

    def wrong_files(self) -> list[str]:
        """Return the names of black boxes and snapshots that somebody else has written, or removed."""
        recovery = self.watcher._loop.recovery
        assert recovery is not None
        kept = {f"snapshot-{snapshot.steps}.pt" for snapshot in recovery._policy.snapshots}
        kept |= {path.name for path in self.black_boxes}
        there = {path.name for path in [*(self.folder / "snapshots").iterdir(), *self.folder.glob("failed*")]}
        others = [path.name for path, content in self.black_boxes.items() if path.read_bytes() != content]
        return [*others, *sorted(kept ^ there)]


class Forking:
    """A sink, within which a child may be made; it has a thread of its own, as those have that write files."""

    def __init__(self, fork: Callable[[str], None]) -> None:
        self._fork = fork

    def write_row(self, row: object) -> None:
        self._fork("in a sink")

    def write_finding(self, finding: object, ended: bool) -> None:
        self._fork("in a sink")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


# what a child does


def _watch_anew(program: Program) -> None:
    """Watch a model of the child's own, in a directory of its own, which can be read then."""
    model, where = nn.Linear(8, 1), program.folder / f"child-{os.getpid()}"
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradwatch.watch(model, optimizer, log_dir=where, log_every_n_steps=1):
        for _ in range(3):
            model(torch.ones(2, 8)).sum().backward()
            optimizer.step()
    (run,) = read_runs(where)
    assert len(run.steps) == 3
    assert run.closed_after == 3


def _train_on(program: Program) -> None:
    for _ in range(25):  # enough for snapshots of its own
        program.step()


def _load_state(program: Program) -> None:
    with contextlib.suppress(ValueError):  # once a step was seen it is refused, in words
        program.watcher.load_state_dict(program.state)


def _collect(program: Program) -> None:
    del program.watcher, program.model, program.optimizer
    gc.collect()


def _read_history(program: Program) -> None:
    history = program.watcher.history
    assert all(len(history[name]) == len(history.steps) for name in ("grad_norm", "loss"))


def _write_black_box(program: Program) -> None:
    assert program.watcher.black_box is not None
    program.watcher.black_box.write(program.folder / f"asked-{os.getpid()}.pt")


def _read(program: Program) -> None:
    with contextlib.suppress(NoRunError):  # nothing may be written yet
        read_runs(program.folder / "run")


def _fork_again(program: Program) -> None:
    child = os.fork()
    if not child:
        _ = program.watcher.findings
        program.watcher.close()
        os._exit(0)
    os.waitpid(child, 0)


def _die_of_an_error(program: Program) -> None:
    with contextlib.suppress(ValueError), program.watcher:
        raise ValueError("an error of the child's")


VERBS: dict[str, Callable[[Program], object]] = {
    "nothing": lambda program: None,
    "findings": lambda program: program.watcher.findings,
    "history": _read_history,
    "step": lambda program: program.watcher.step(),
    "observe_loss": lambda program: program.watcher.observe_loss(1.0),
    "report": lambda program: (repr(program.watcher), program.watcher._repr_html_()),
    "flush": lambda program: program.watcher.flush(),
    "close": lambda program: program.watcher.close(),
    "state_dict": lambda program: program.watcher.state_dict(),
    "load_state_dict": _load_state,
    "black box": _write_black_box,
    "garbage collection": _collect,
    "with, and an error": _die_of_an_error,
    "train on": _train_on,
    "watch anew": _watch_anew,
    "read the run": _read,
    "fork again": _fork_again,
}


TRAINING = ("train on", "watch anew")
REFUSED = [(moment, verb) for moment in ("backward", "in a sink", "in another thread") for verb in TRAINING]
"""No optimizer that is watched may step within a backward pass. And torch itself allows no child to train that another
thread has forked while the main one is within torch: of 1,000 children of a bare loop 14 crashed, and 9 hung."""


class Forks:
    """The children that are to be made, one after the other, each at its moment, and those that were made."""

    def __init__(self, planned: Iterator[Fork]) -> None:
        self._planned, self._due = planned, next(planned, None)
        self.program: Program | None = None
        self.made: deque[tuple[int, Fork, float]] = deque()  # by any thread; the main one takes them
        self._main_thread, self.is_child = threading.get_ident(), False

    @property
    def due(self) -> Fork | None:
        """Return the next one; None once all were made."""
        return self._due

    def __call__(self, moment: str) -> None:
        """Make a child if one is due at this moment."""
        due = self._due
        if self.is_child or self.program is None or due is None or due.moment != moment:
            return
        self._due = next(self._planned, None)
        child = os.fork()
        if not child:
            self.is_child = True
            _act(self.program, due, is_main_thread=threading.get_ident() == self._main_thread)
        self.made.append((child, due, time.monotonic() + DEADLINE))


def _act(program: Program, fork: Fork, *, is_main_thread: bool) -> None:
    """Be the child: do one thing, and end.

    Raises:
        SystemExit: at the end, where the child is to leave as a program does. Not in a child of another thread, which
            Python 3.11 ends by a fatal error as soon as torch is loaded, without gradwatch, too.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable()
    faulthandler.dump_traceback_later(STUCK)
    try:
        with torch.enable_grad():  # a backward pass has turned it off
            VERBS[fork.verb](program)
        if fork.leaves and not is_main_thread:
            atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    if fork.leaves and is_main_thread:
        sys.exit(0)
    os._exit(0)


def _reap(forks: Forks, hung: list[Fork], failed: list[Fork], most: int) -> None:
    """Take in children that have ended, until at most so many are left; kill those that are past their deadline."""
    while len(forks.made) > most:
        child, fork, deadline = forks.made[0]
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended and time.monotonic() < deadline:
            time.sleep(PAUSE)
            continue
        if not ended:
            hung.append(fork)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        elif status:
            failed.append(fork)
            print(f"{fork} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
        forks.made.popleft()


class Beside:
    """The thread beside the main one, which makes children of its own."""

    def __init__(self, forks: Forks, program: Program, draws: Random) -> None:
        self._forks, self._program, self._draws = forks, program, draws
        self._is_stopped, self._may_go_on, self._is_over = threading.Event(), threading.Event(), threading.Event()
        self._line, self._stop_at, self._lines_of_a_step = 0, math.inf, 1
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over.is_set():
            if self._is_stopped.wait(self._draws.uniform(0, LONGEST_WAIT)):
                self._is_stopped.clear()
                self._forks("at a line")
                self._may_go_on.set()
            elif self._program.is_at_a_step:
                self._forks("in another thread")

    def stop_within_a_step(self) -> None:
        """Make a step that is stopped at a line of gradwatch's until the child is made."""
        self._line, self._stop_at = 0, self._draws.randrange(self._lines_of_a_step)
        sys.settrace(self._trace)
        try:
            self._program.step()
        finally:
            sys.settrace(None)
        self._lines_of_a_step = self._line

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        self._line += event == "line"
        if self._line > self._stop_at and not _is_in_backward(frame):
            self._stop_at = math.inf  # once a step
            self._is_stopped.set()
            self._may_go_on.wait()
            self._may_go_on.clear()
        return self._trace

    def end(self) -> None:
        """Wait until the thread has ended."""
        self._is_over.set()
        self.thread.join()


def _is_in_backward(frame: FrameType | None) -> bool:
    """Return whether a frame was called by the backward pass, in which torch locks the node of a weight."""
    while frame is not None and frame.f_code.co_name != "_engine_run_backward":
        frame = frame.f_back
    return frame is not None


def planned(seed: int, first: int, number: int) -> list[Fork]:
    """Return children from the ``first`` on: every verb at every moment, again and again, in an order that is drawn."""
    both = [(moment, verb) for moment in MOMENTS for verb in VERBS if (moment, verb) not in REFUSED]
    every = [Fork(moment, verb, leaves) for moment, verb in both for leaves in (True, False)]
    order: list[Fork] = []
    for round_ in range(-(-(first + number) // len(every))):
        draws_of(seed, round_).shuffle(every)
        order += every
    return order[first : first + number]


def main(folder: Path, seed: int, first: int, number: int) -> None:
    """Train until every child was made, and say how they ended."""
    forks, hung, failed = Forks(iter(planned(seed, first, number))), list[Fork](), list[Fork]()
    program = Program(folder, seed + first, forks)
    forks.program, draws = program, Random(seed + first)
    beside = Beside(forks, program, draws_of(seed, first))
    while (due := forks.due) is not None and program.steps < MOST_STEPS:
        if beside.thread.is_alive() and due.moment == "at a line":
            beside.stop_within_a_step()
        else:
            program.step()
        if program.steps == WARM_UP:
            beside.thread.start()
        _reap(forks, hung, failed, draws.randrange(AT_ONCE))
    beside.end()
    _reap(forks, hung, failed, 0)
    found = [[*each.identity] for each in program.watcher.findings]
    wrong_files = program.wrong_files()
    program.watcher.close()
    unmade = number if forks.due is not None else 0
    result = {"hung": hung, "failed": failed, "unmade": unmade, "steps": program.steps, "findings": found}
    print(json.dumps({**result, "wrong_files": wrong_files}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
