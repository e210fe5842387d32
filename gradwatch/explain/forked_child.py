"""Run something in a forked child process, where nothing that it does can change this process.

The child has a copy of all memory: tensors, generators, iterators, counters, queues, locks. It writes into no open file
and no connection, can open none, and gets no signal. Whoever waits for something that only another thread could bring
is ended after a time.

Nothing is forked on macOS, whose own libraries do not bear it, nor once an accelerator is in use, whose driver does
not.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import torch

__all__ = ["ChildFailedError", "ChildLostError", "can_fork", "in_child", "without_warning_of_threads"]

T = TypeVar("T")

MOST_FILES = 4096  # of open files that are looked for where the system does not list them


class ChildLostError(Exception):
    """The reason why a child has not answered: there was none, it took too long, or something has ended it."""


class ChildFailedError(Exception):
    """The exception, in words, that was raised in a child."""


def can_fork() -> bool:
    """Return whether this process can be copied: the system lets one with threads be, and no accelerator is in use."""
    accelerators = (torch.cuda, torch.xpu)
    return hasattr(os, "fork") and sys.platform != "darwin" and not any(each.is_initialized() for each in accelerators)


def in_child(act: Callable[[], T], seconds: float) -> T:
    """Return what ``act`` returns in a forked child of this process.

    Args:
        act: on tensors of the CPU, on one thread. What it returns can be pickled.
        seconds: after which the child is ended.

    Raises:
        ChildFailedError: where ``act`` raises.
        ChildLostError: where it does not end in time, or the system makes no child.
    """
    child, reader = _begin(act)
    answer = None
    try:
        answer = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        _forget(child, has_ended=answer is not None)
    if answer is None:
        raise ChildLostError(f"it has not answered within {seconds:.3g} s, or something has ended it")
    result, raised = pickle.loads(answer)
    if raised:
        raise ChildFailedError(raised)
    return result


def _begin(act: Callable[[], Any]) -> tuple[int, int]:
    """Return the number of a child that runs ``act``, and the file from which its answer can be read.

    Raises:
        ChildLostError: where the system makes no child.
    """
    files: tuple[int, ...] = ()
    try:
        files = reader, writer = os.pipe()
        with _no_signals():
            child = _fork()
            if child == 0:
                _run(act, writer)
    except OSError as error:
        for file in files:
            os.close(file)
        raise ChildLostError(f"the system makes no process: {error}") from error
    os.close(writer)
    return child, reader


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Return a context in which this thread gets no signal, so that the child begins without any, and stays so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork() -> int:
    with without_warning_of_threads():
        return os.fork()


@contextlib.contextmanager
def without_warning_of_threads() -> Iterator[None]:
    """Return a context in which Python 3.12 and later do not warn that other threads may hold locks as it forks.

    A child that waits for one is ended after a time, or takes none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _run(act: Callable[[], Any], writer: int) -> NoReturn:
    """Write what ``act`` returns, or what it raises, and end this child without a trace of it."""
    try:
        _close_off(writer)
        torch.set_num_threads(1)  # the threads of the parent are not here
        try:
            answer = pickle.dumps((act(), ""))
        except Exception as error:
            answer = pickle.dumps((None, "".join(traceback.format_exception(error))))
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _close_off(writer: int) -> None:
    """Put nothing in the place of every open file but ``writer``, and let no other be opened."""
    import resource

    nothing = os.open(os.devnull, os.O_RDWR)
    for file in _open_files():
        if file not in (writer, nothing):
            with contextlib.suppress(OSError):
                os.dup2(nothing, file)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _open_files() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return [*range(MOST_FILES)]


def _read(reader: int, deadline: float) -> bytes | None:
    """Return all that the child writes before it ends; None where it writes nothing, or not in time."""
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        poll = select.poll()  # unlike select(), takes any number of a file
        poll.register(reader, select.POLLIN)
        if not poll.poll(left * 1000):
            return None
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts) or None
        parts.append(part)
    return None


def _forget(child: int, *, has_ended: bool) -> None:
    """Let the system forget ``child``, and end it before if it has not ended by itself."""
    if not has_ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # the program ignores how its children end, or has asked already
        os.waitpid(child, 0)
