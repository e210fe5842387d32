"""Make several runs at a time, each in a forked child of this process.

A child has whatever the functions of the user hold, whether that can be pickled or not, and changes nothing of it here.
Where the process cannot be copied (on a GPU, on macOS and Windows), runs are made one after the other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

import torch

from gradwatch.explain.forked_child import can_fork, without_warning_of_threads
from gradwatch.remedies import NotApplicableError

__all__ = ["TrialError", "number_of_workers", "one_thread", "side_by_side"]

MOST = 8
"""Workers at most: each holds a model and an optimizer of its own."""

T = TypeVar("T")
R = TypeVar("R")


class TrialError(Exception):
    """The error that a run has raised, in words: its type and its message."""


def number_of_workers() -> int:
    """Return how many runs are made at a time: one for each core that this process may use."""
    if not can_fork():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


@contextlib.contextmanager
def one_thread(workers: int) -> Iterator[None]:
    """Let torch use one thread meanwhile, where several workers share the cores; put the number back."""
    before = torch.get_num_threads()
    try:
        if workers > 1:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    act: Callable[[T], R], items: Iterable[T], workers: int
) -> Iterator[tuple[T, R | NotApplicableError | TrialError]]:
    """Yield each item with what ``act`` returns for it, or with the error that it raises, as they end.

    Args:
        act: on the CPU. What it returns can be pickled.
        items: the next one is taken when there is a worker for it.
        workers: 1 for this process itself.
    """
    if workers == 1:
        yield from ((item, _outcome(act, item)) for item in items)
        return
    left, running = iter(items), _Running(act)
    try:
        while running.begin(left, workers):
            yield from running.take_ended()
    finally:
        running.kill()


class _Running(Generic[T, R]):
    """The children that have not answered yet."""

    def __init__(self, act: Callable[[T], R]) -> None:
        self._act = act
        self._children: dict[Connection, tuple[multiprocessing.process.BaseProcess, T]] = {}

    def begin(self, left: Iterator[T], workers: int) -> bool:
        """Begin with items that are left until all workers are busy; return whether any is."""
        while len(self._children) < workers and (item := next(left, None)) is not None:
            self._children |= [_begin(self._act, item)]
        return bool(self._children)

    def take_ended(self) -> Iterator[tuple[T, R | NotApplicableError | TrialError]]:
        """Wait until a child has ended, and yield what those that have were given and have answered."""
        ended = wait([*self._children])
        for reader in [reader for reader in self._children if reader in ended]:
            process, item = self._children.pop(reader)
            yield item, _answer(process, reader)

    def kill(self) -> None:
        """End those that are still running."""
        for reader, (process, _) in self._children.items():
            process.kill()
            process.join()
            reader.close()


def _begin(act: Callable[[T], object], item: T) -> tuple[Connection, tuple[multiprocessing.process.BaseProcess, T]]:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(act, item, writer), daemon=True)
    with without_warning_of_threads():
        process.start()
    writer.close()
    return reader, (process, item)


def _run(act: Callable[[T], object], item: T, writer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process ends its children by itself
    torch.set_num_threads(1)  # the threads of the parent are not here
    writer.send(_outcome(act, item))


def _outcome(act: Callable[[T], R], item: T) -> R | NotApplicableError | TrialError:
    try:
        return act(item)
    except NotApplicableError as error:
        return NotApplicableError(str(error))
    except Exception as error:  # whatever a treated model raises is a reason, not an end
        return TrialError(f"{type(error).__name__}: {error}")


def _answer(process: multiprocessing.process.BaseProcess, reader: Connection) -> R | NotApplicableError | TrialError:
    """Return what a child has sent, or that it ended without: the system ends what takes too much memory."""
    try:
        answer: R | NotApplicableError | TrialError = reader.recv()
    except EOFError:
        process.join()
        answer = TrialError(f"its process ended without a result (exit code {process.exitcode})")
    process.join()
    reader.close()
    return answer
