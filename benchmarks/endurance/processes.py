"""Try cases in processes of their own: that one hangs or dies is a result, too.

A process is a fork, so that it need not load torch: of this one, which may then hand over any function, or of a server
that has loaded what it was told to and has no second thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

__all__ = ["LOADED", "SINGLE_THREAD", "Tried", "ends_in", "server_with", "started", "tried"]

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The environment of a process that is to be forked: no fork would have its second thread."""

LOADED = (
    "numpy",
    "torch.nn.parallel",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "tensorboard.compat.proto.event_pb2",
    "lightning.pytorch",
)
"""What a training loads that takes seconds, and nothing of gradwatch."""

SECONDS = 120.0  # that a case may take; most take a fifth of one, and one that takes so long hangs
_SAY_EVERY = 30.0  # seconds between two lines on how far it is
_FORK = multiprocessing.get_context("fork")

Case = tuple[Any, ...]


class Tried(NamedTuple):
    """The result of one case.

    Attributes:
        case: the arguments.
        result: what was returned; None where the process ended without.
        how: why there is no result; "" where there is one.
    """

    case: Case
    result: Any
    how: str


def server_with(modules: Sequence[str]) -> ForkServerContext:
    """Return what starts processes as forks of one that has loaded ``modules``. The first call of a process counts."""
    os.environ.update(SINGLE_THREAD)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules])
    return context


def tried(
    act: Callable[..., Any],
    cases: Sequence[Case],
    *,
    context: ForkContext | ForkServerContext = _FORK,
    apart: bool = False,
    seconds: float = SECONDS,
) -> Iterator[Tried]:
    """Yield what ``act(*case)`` returns for each of ``cases``, as they end; one process a processor works at once.

    Args:
        act: for processes that a server forks, a function of a module.
        cases: its arguments.
        context: starts the processes; each is a fork of this one if it is left out.
        apart: whether each case has a process of its own; else a few share one, as long as it lives.
        seconds: after which a case is ended.
    """
    at_once = min(len(cases), os.cpu_count() or 1)
    waiting = [[case] for case in cases] if apart else [[*cases[place::at_once]] for place in range(at_once)]
    waiting.reverse()
    working: list[_Worker] = []
    begin = said = time.monotonic()
    done = 0
    try:
        while waiting or working:
            while waiting and len(working) < at_once:
                working.append(_working(context, act, waiting.pop(), seconds))
            wait([each.answers for each in working], timeout=_until(working) - time.monotonic())
            for worker in [*working]:
                for each in _news(worker, seconds):
                    done += 1
                    yield each
                if worker.is_over:
                    working.remove(worker)
                    waiting += [worker.left] if worker.left else []
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                print(f"    {done} of {len(cases)}, {said - begin:.0f} s", file=sys.stderr, flush=True)
    finally:
        for worker in working:
            _end(worker)


@dataclass
class _Worker:
    """A process that works through cases.

    Attributes:
        left: cases without a result.
        answers: where results come from.
        until: when the first of ``left`` is given up.
        is_over: whether it was ended; others go on with what is left.
    """

    left: list[Case]
    process: BaseProcess
    answers: Connection
    until: float
    is_over: bool = False


def _working(
    context: ForkContext | ForkServerContext, act: Callable[..., Any], cases: list[Case], seconds: float
) -> _Worker:
    process, answers = started(context, _work, act, cases)
    return _Worker(cases, process, answers, time.monotonic() + seconds)


def _work(answers: Connection, act: Callable[..., Any], cases: Sequence[Case]) -> None:
    """Work through ``cases`` in a process of its own, which ends as if killed: no thread of a case holds it up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for case in cases:
        try:
            answer = act(*case), ""
        except BaseException:
            answer = None, traceback.format_exc()
        answers.send(answer)
    answers.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _until(working: Sequence[_Worker]) -> float:
    return min(each.until for each in working)


def _news(worker: _Worker, seconds: float) -> Iterator[Tried]:
    """Yield the results that have come; of a case that has hung or whose process has died, that this is so."""
    try:
        while worker.left and worker.answers.poll():
            answer = worker.answers.recv()
            worker.until = time.monotonic() + seconds
            yield Tried(worker.left.pop(0), *answer)
        how = "took too long" if time.monotonic() >= worker.until else ""
    except EOFError:
        how = "ended without a result"
    if how and worker.left:
        yield Tried(worker.left.pop(0), None, how)
        _end(worker)
    elif not worker.left:
        _end(worker)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.answers.close()
    worker.is_over = True


def started(
    context: ForkContext | ForkServerContext, target: Callable[..., Any], *arguments: Any
) -> tuple[BaseProcess, Connection]:
    """Start a process that speaks over a pipe, its first argument; return it and our end of the pipe."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def ends_in(process: BaseProcess, seconds: float) -> bool:
    """Wait for the end of a process; return False for one that had to be killed because it did not come."""
    is_ended = bool(wait([process.sentinel], seconds))
    if not is_ended:
        process.kill()
    process.join()
    return is_ended
