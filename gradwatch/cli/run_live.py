"""``gradwatch run --live``: the script runs in a process of its own, and the terminal shows the live view meanwhile.

What the script prints goes to a pseudo-terminal, is kept, and stands in the terminal once the view has ended, as if the
view had never been there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from gradwatch.cli.following import Follower, is_a_screen, show_until
from gradwatch.event_files.legible import legible

__all__ = ["can_show", "run_live"]

_FOOTER = "Ctrl-C interrupts the script; all that it prints follows when this view ends"
_TAIL = 4096  # bytes of the output that are looked through for its last lines
_BLOCK = 65536
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and moves of the cursor
_GRACE = 2.0  # seconds for what a process that has ended has printed: one that it left behind may hold the terminal


def can_show() -> bool:
    """Return whether there is a terminal to draw on, and a system with pseudo-terminals."""
    return os.name == "posix" and is_a_screen()


def run_live(command: Sequence[str], log_dir: Path) -> int:
    """Run ``command``, a ``gradwatch run`` without the view, and show the run in ``log_dir`` until it ends.

    Returns:
        The exit status of the command; it ends this process, too, if a signal has ended it.
    """
    follower = Follower(log_dir, since=time.time() - 1)
    with _Child(command) as child:
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, child.pass_on)
        show_until(follower, child.has_ended, _FOOTER, child.last_lines)
        status = child.end()
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


class _Child:
    """The process of the script, and what it has printed."""

    def __init__(self, command: Sequence[str]) -> None:
        import pty

        master, slave = pty.openpty()
        _set_size(slave)
        error = slave if sys.stderr.isatty() else None  # what goes to a file goes there at once
        self._process = subprocess.Popen(command, stdout=slave, stderr=error)
        os.close(slave)
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._shown, self._lock = False, threading.Lock()
        self._reader = threading.Thread(target=self._read, args=(master,), daemon=True)
        self._reader.start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._printed.close()

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Hand a signal on to the process."""
        self._process.send_signal(number)

    def has_ended(self, seconds: float) -> bool:
        """Wait for at most so many seconds; return whether the process has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_lines(self) -> list[str]:
        """Return the last lines that were printed, without colours and what moves the cursor."""
        with self._lock:
            self._printed.seek(0, os.SEEK_END)
            self._printed.seek(max(0, self._printed.tell() - _TAIL))
            text = self._printed.read().decode(errors="replace")
            self._printed.seek(0, os.SEEK_END)
        plain = _ESCAPES.sub("", text.replace("\r\n", "\n"))
        lines = [line.rpartition("\r")[2] for line in plain.split("\n")]
        return [legible(line) for line in lines if line.strip()]

    def end(self) -> int:
        """Print what was printed so far, go on with what comes, and return the status once the process has ended."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process hears it by itself
        with self._lock:
            self._printed.seek(0)
            while block := self._printed.read(_BLOCK):
                _write(block)
            self._shown = True
        status = self._process.wait()
        self._reader.join(_GRACE)
        return status

    def _read(self, master: int) -> None:
        while block := _next_block(master):
            with self._lock:
                if self._shown:
                    _write(block)
                else:
                    self._printed.write(block)
        os.close(master)


def _next_block(master: int) -> bytes:
    """Return what was printed next; nothing at the end, which Linux reports as an error."""
    try:
        return os.read(master, _BLOCK)
    except OSError:
        return b""


def _write(block: bytes) -> None:
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _set_size(terminal: int) -> None:
    """Give a pseudo-terminal the size of the real one: progress bars are drawn for it."""
    import fcntl
    import termios

    size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
