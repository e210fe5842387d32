"""Faults that the system itself makes: a full disk, no descriptors, a directory that is closed or deleted."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.endurance.fault_try import STEPS, Outcome, attempt

__all__ = ["FAULTS", "attempt_under"]

_FIRST, _LAST = 2, 4  # a fault that passes holds at these steps; the second NaN comes later


@contextlib.contextmanager
def _limited(which: int, limit: int) -> Iterator[None]:
    """Return a context with another soft limit of this process."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def _full(where: Path) -> contextlib.AbstractContextManager[None]:
    """No file may grow: the system answers writes as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return _limited(resource.RLIMIT_FSIZE, 0)


def _nearly_full(where: Path) -> contextlib.AbstractContextManager[None]:
    """Files may grow by a few bytes: a record is written in part."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    largest = max((each.stat().st_size for each in where.rglob("*") if each.is_file()), default=0)
    return _limited(resource.RLIMIT_FSIZE, largest + 20)


def _no_descriptors(where: Path) -> contextlib.AbstractContextManager[None]:
    """Nothing more can be opened."""
    return _limited(resource.RLIMIT_NOFILE, 3)


@contextlib.contextmanager
def _closed(where: Path) -> Iterator[None]:
    """Directories and files may not be written; for root, who may do all, a user without rights does it."""
    paths = [where, *where.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    is_root = os.geteuid() == 0
    for path in reversed(paths):
        path.chmod(0o500 if path.is_dir() else 0o400)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in paths:
            path.chmod(modes[path])


@contextlib.contextmanager
def _deleted(where: Path) -> Iterator[None]:
    """All that was written is deleted at each step, with its directories."""
    for path in where.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    yield


@contextlib.contextmanager
def _in_the_way(where: Path) -> Iterator[None]:
    """Files lie where the directories were."""
    moved = [path for path in where.iterdir() if path.is_dir()]
    aside = Path(tempfile.mkdtemp())
    for path in moved:
        shutil.move(path, aside / path.name)
        path.touch()
    try:
        yield
    finally:
        for path in moved:
            path.unlink()
            shutil.move(aside / path.name, path)
        aside.rmdir()


_MADE: dict[str, Callable[[Path], contextlib.AbstractContextManager[None]]] = {
    "full disk": _full,
    "nearly full disk": _nearly_full,
    "no descriptors": _no_descriptors,
    "closed directory": _closed,
    "deleted directory": _deleted,
    "file in the way": _in_the_way,
}
FAULTS = tuple(f"{name}, {when}" for name in _MADE for when in ("for three steps", "for good"))
"""The names of all faults."""


def attempt_under(name: str) -> Outcome:
    """Train once under a real fault, and say what became of it."""
    fault, _, when = name.partition(", ")
    for_good = when == "for good"

    def around(step: int, where: Path) -> contextlib.AbstractContextManager[object]:
        holds = step >= _FIRST if for_good else _FIRST <= step <= _LAST
        return _MADE[fault](where) if holds else contextlib.nullcontext()

    outcome = attempt(around=around)
    outcome.places, outcome.step, outcome.is_over = [name], _LAST if not for_good else STEPS, not for_good
    return outcome
