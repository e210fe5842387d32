"""Let one process at a time decide where in a directory its files go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Return a context in which no other process is in this one for ``directory``, which is made.

    The lock leaves no file behind, and ends with its process. Where the system or the file system knows no locks, there
    is none.

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
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _unlock(file: int) -> None:
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do for a child that was forked meanwhile
    os.close(file)
