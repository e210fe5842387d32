"""Try many cases in a few forked processes, and survive those that hang or die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["Result", "in_processes"]

PATIENCE = 120  # seconds that one case may take; most take a fifth of one

_FORK = multiprocessing.get_context("fork")

Result = tuple[list[str], list[str]]
"""What a case has shown, and what is wrong with it."""


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
