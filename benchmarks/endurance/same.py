"""Train random programs bare and watched, and compare every bit of what they leave, and the memory that they take.

A program that differs is shrunk to the fewest parts that still differ, and printed. To run it again:
``python -m benchmarks.endurance.same 'what was printed'``.
"""

from __future__ import annotations

import collections
import functools
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from benchmarks.endurance.figure import Figure, at_least_one
from benchmarks.endurance.peak import WORKLOADS, growths
from benchmarks.endurance.programs.program import Program, drawn, shrunk
from benchmarks.endurance.programs.training import run

PROGRAMS = 1000
PATIENCE = 120  # seconds that one program may take; most take a fifth of one
LIMIT = 1.10
SHRUNK = 5  # of the programs that differ, how many are shrunk: the first are the likeliest to be of one kind

_FORK = multiprocessing.get_context("fork")


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Run programs bare and watched, then a few with large activations."""
    prepare()
    count = at_least_one(share, PROGRAMS)
    seen: collections.Counter[str] = collections.Counter()
    unequal: list[int] = []
    for number, (said, differences) in in_processes(functools.partial(compared_number, seed), range(count)):
        seen.update(said)
        if differences:
            unequal.append(number)
            report(drawn(seed, number), differences, shrinks=len(unequal) <= SHRUNK)
        if seen["a program"] % 200 == 0:
            print(f"    {seen['a program']} programs", file=sys.stderr, flush=True)
    what = (
        f"{count:,} random programs, bare and watched: weights, states, losses, gradients, random numbers, own state, "
        f"order of calls ({seen['has a finding']:,} with findings, {seen['observed']:,} of them with an observed "
        f"origin; {seen['differs from itself']} left out that differ bare from bare)"
    )
    yield Figure(what, "0 unequal", f"{len(unequal)} unequal", not unequal)
    yield memory_figure(share)


def prepare() -> None:
    """Make this process one that can be forked: it has loaded torch, and has no second thread."""
    torch.set_num_threads(1)
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)  # what it says of the user's state


def memory_figure(share: float) -> Figure:
    """Return the figure of memory."""
    some = WORKLOADS[: max(2, at_least_one(share, len(WORKLOADS)))]
    found = growths(some)
    for name, growth in found.items():
        if growth > LIMIT:
            print(f"    {name}: peak memory {growth - 1:+.1%}", flush=True)
    worst = max(found, key=lambda name: found[name])
    words = f"{found[worst] - 1:+.1%} at most ({worst})"
    return Figure(f"{len(found)} programs of large activations: peak memory", "+10 %", words, found[worst] <= LIMIT)


def compared_number(seed: int, number: int) -> tuple[list[str], list[str]]:
    """Return what ``compared`` does of the program of this number."""
    return compared(drawn(seed, number))


def compared(program: Program) -> tuple[list[str], list[str]]:
    """Return what watching ``program`` has shown, and by what it differs from a bare run."""
    bare, _ = run(program, watched=False)
    watched, said = run(program, watched=True)
    differences = [name for name in bare if bare[name] != watched[name]]
    if differences:
        again, _ = run(program, watched=False)
        if again != bare:  # some of TorchScript's graphs are optimised while they run
            return ["a program", "differs from itself"], []
    faults = [line for line in said if line and not line.startswith("found ")]
    findings = [line for line in said if line.startswith("found ")]
    shown = ["a program"] + ["has a finding"] * bool(findings)
    shown += ["observed"] * any("Observed:" in line for line in findings)
    return shown, differences + faults


def report(program: Program, differences: Sequence[str], *, shrinks: bool) -> None:
    """Print a program that differs, and the smallest part of it that does."""
    smallest = shrunk(program, differs) if shrinks else program
    print(f"    differs by {', '.join(differences)}\n    {program}\n    smallest: {smallest}", flush=True)


def differs(program: Program) -> bool:
    """Return whether ``program`` differs, in a process of its own, which may hang or die."""
    ((_, (_, differences)),) = in_processes(lambda _: compared(program), [0])
    return bool(differences)


Result = tuple[list[str], list[str]]


def in_processes(act: Callable[[int], Result], numbers: Sequence[int]) -> Iterator[tuple[int, Result]]:
    """Yield each number with what ``act`` returns for it, in a few forked processes.

    One that does not answer in time is ended, and another one goes on with what is left of its batch.
    """
    count = min(len(numbers), os.cpu_count() or 1)
    workers = [_Worker(act, list(numbers)[place::count]) for place in range(count)]
    try:
        while workers:
            wait([each.answers for each in workers], timeout=1)
            for worker in list(workers):
                yield from worker.new()
                if not worker.left:
                    worker.end()
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that works through a batch of numbers.

    Attributes:
        left: numbers without an answer.
        answers: where they come from.
    """

    def __init__(self, act: Callable[[int], Result], numbers: list[int]) -> None:
        self._act, self.left = act, numbers
        self._begin()

    def _begin(self) -> None:
        self.answers, theirs = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_work, args=(self._act, list(self.left), theirs))
        self._process.start()
        theirs.close()
        self._heard_at = time.monotonic()

    def new(self) -> Iterator[tuple[int, Result]]:
        """Yield the answers that have come; of one that hangs or has died, that this is so."""
        try:
            while self.left and self.answers.poll():
                answer = self.answers.recv()
                self._heard_at = time.monotonic()
                yield self.left.pop(0), answer
        except EOFError:
            yield from self._given_up("the process has died")
        if self.left and time.monotonic() - self._heard_at > PATIENCE:
            yield from self._given_up("it hangs")

    def _given_up(self, why: str) -> Iterator[tuple[int, Result]]:
        self.end()
        yield self.left.pop(0), ([], [why])
        if self.left:
            self._begin()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.answers.close()


def _work(act: Callable[[int], Result], numbers: Sequence[int], answers: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in numbers:
        try:
            answer: Any = act(number)
        except Exception as error:  # the program itself is at fault
            answer = [], [f"{type(error).__name__}: {error}"]
        answers.send(answer)


if __name__ == "__main__":
    prepare()
    for _text in sys.argv[1:]:
        print("\n".join(compared(Program.of(_text))[1]) or "equal")
