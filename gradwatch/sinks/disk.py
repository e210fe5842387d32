"""Have the system put on the disk what it was handed, so that it survives a loss of power."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["sync_file", "sync_folder"]


def sync_file(path: Path) -> None:
    """Have all that was written to a file, by whomever, on the disk.

    Raises:
        OSError: if it cannot be opened or the disk does not take it.
    """
    _sync(path, os.O_RDWR)  # Windows syncs only what it may write


def sync_folder(folder: Path) -> None:
    """Have the names of new files on the disk, where the system allows that: not on Windows."""
    with contextlib.suppress(OSError):
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
