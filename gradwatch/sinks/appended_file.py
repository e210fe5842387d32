"""A file to whose end whole lines are added."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from gradwatch.sinks.disk import sync_file, sync_folder

__all__ = ["AppendedFile"]

_READ_AT_ONCE = 65_536  # bytes, while the last line break is looked for


class AppendedFile:
    """A file that is open for appending, without a buffer.

    It can be pickled and copied: the copy has opened the same file. Once closed, or deleted by whomever, it is opened
    again by the next write.

    Args:
        path: the file; its directory is made.

    Attributes:
        path: as given, absolute.

    Raises:
        OSError: if it cannot be opened for appending.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # the program may change its directory
        self._file = self._open()

    def first_line(self) -> str:
        """Return the first line of the file, without its end; "" if it is empty."""
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            return file.readline().rstrip("\r\n")

    def write(self, lines: str) -> None:
        """Add whole lines at once. They are there whole, or not at all where the disk is full.

        Raises:
            OSError: if they cannot be written.
        """
        left, file = memoryview(lines.encode()), self._reopened()
        size = os.fstat(file.fileno()).st_size
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise

    def drop_torn_line(self) -> None:
        """Take away what follows the last line break: a process was killed while it wrote that."""
        appended = self._reopened()
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - _READ_AT_ONCE)
                file.seek(start)
                whole = file.read(end - start).rfind(b"\n") + 1
                end = start + whole
                if whole:
                    break
        appended.truncate(end)

    def sync(self) -> None:
        """Have what was written on the disk: it survives a loss of power.

        Raises:
            OSError: if the disk does not take it.
        """
        sync_file(self.path)
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._file.close()

    def _open(self) -> io.FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("ab", buffering=0)

    @property
    def is_deleted(self) -> bool:
        """Return whether no directory holds the file any more: what is written to it is lost."""
        return not self._file.closed and os.fstat(self._file.fileno()).st_nlink == 0

    def _reopened(self) -> io.FileIO:
        """Return the file, opened again if it was closed or deleted."""
        if self.is_deleted:
            self._file.close()
        if self._file.closed:
            self._file = self._open()
        return self._file

    def __reduce__(self) -> tuple[type[AppendedFile], tuple[Path]]:
        return AppendedFile, (self.path,)
