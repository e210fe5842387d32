"""Let one process at a time decide where in a directory its files go."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]

PATIENCE = 1.0
"""Seconds to wait for another process, which needs milliseconds: one that was stopped must stop nobody else."""

_PAUSE = 0.01


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Return a context in which no other process is in this one for ``directory``, which is made.

    The lock leaves no file behind, and ends with its process. Where the system or the file system knows no locks, and
    where another holds it for longer than ``PATIENCE``, there is none.

    Raises:
        OSError: if the directory cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = _lock(directory)
    try:
        yield
    finally:
        if file is not None:
            _unlock(file)


def _lock(directory: Path) -> int | None:
    try:
        import fcntl

        file = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:
            break
        else:
            break
    return file


def _unlock(file: int) -> None:
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do for a child that was forked meanwhile
    os.close(file)
