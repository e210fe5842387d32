"""Make many tries, each in a process of its own that is forked from one which has loaded torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

__all__ = ["Made", "made_apart"]

SECONDS = 60.0  # a try takes a fifth of a second; one that takes so long hangs
_SAY_EVERY = 30.0  # seconds between two lines on how far it is


class Made(NamedTuple):
    """What became of one try.

    Attributes:
        try_: its arguments.
        result: what it returned; None where it ended without.
        how: why there is no result; "" where there is one.
    """

    try_: tuple[Any, ...]
    result: Any
    how: str


def made_apart(
    make: Callable[..., Any], tries: Sequence[tuple[Any, ...]], *, preload: Sequence[str], seconds: float = SECONDS
) -> Iterator[Made]:
    """Yield what ``make(*try_)`` returns for each of ``tries``, as they end; as many at once as there are processors.

    Args:
        make: a function of a module.
        tries: its arguments.
        preload: modules that the process has loaded from which all are forked.
        seconds: after which a try is ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    waiting = list(reversed(tries))
    running: dict[Connection, tuple[tuple[Any, ...], Any, float]] = {}
    begin = said = time.monotonic()
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            try_ = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_make, args=(theirs, make, try_))
            process.start()
            theirs.close()
            running[ours] = try_, process, time.monotonic() + seconds
        for ready in _ready(running):
            try_, process, _ = running.pop(ready)
            yield Made(try_, *_received(ready, process))
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            print(f"    {len(tries) - len(waiting)} of {len(tries)}, {said - begin:.0f} s", file=sys.stderr, flush=True)


def _ready(running: dict[Connection, tuple[tuple[Any, ...], Any, float]]) -> list[Connection]:
    """Return the tries that have ended; end those that take too long."""
    until = min(deadline for _, _, deadline in running.values())
    ready = [each for each in wait(list(running), max(0.0, until - time.monotonic())) if isinstance(each, Connection)]
    for each, (_, process, deadline) in running.items():
        if each not in ready and time.monotonic() >= deadline:
            process.kill()
            ready.append(each)
    return ready


def _received(ours: Connection, process: Any) -> tuple[Any, str]:
    """Return the result of a process that has ended or is about to, or why there is none."""
    try:
        result, how = ours.recv() if ours.poll() else (None, "took too long")
    except EOFError:
        result, how = None, "ended without a result"
    process.join()
    ours.close()
    return result, how if result is None else ""


def _make(theirs: Connection, make: Callable[..., Any], try_: tuple[Any, ...]) -> None:
    """Make one try, in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # tracebacks of threads whose calls were refused
    try:
        answer = make(*try_), ""
    except BaseException:
        answer = None, traceback.format_exc()
    theirs.send(answer)
    theirs.close()
    sys.stderr.flush()
    os._exit(0)
