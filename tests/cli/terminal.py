"""A terminal for tests: a real process on a pseudo-terminal, and what it has shown."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

from tests.distributed.launch import counted_too

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()=>][A-Z0-9]?")
SECOND_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
LONGEST = 240  # seconds that a busy machine may need


class Terminal:
    """``python -m gradwatch`` with ``arguments`` on a terminal of ``columns`` × ``lines``."""

    def __init__(self, *arguments, cwd=None, columns=80, lines=24, **environment):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gradwatch", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, cwd=cwd, start_new_session=True,
            env={**variables, **counted_too(), "TERM": "xterm-256color", **environment},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C comes as from a keyboard
        )  # fmt: skip
        os.close(slave)
        self.raw = ""

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    @property
    def text(self):
        """What was shown so far, without colours and moves of the cursor."""
        return _ESCAPES.sub("", self.raw)

    def wait_for(self, words):
        """Read until ``words`` were shown."""
        until = time.monotonic() + LONGEST
        while words not in self.text:
            assert time.monotonic() < until, f"{words!r} was not shown in {LONGEST} s: {self.text[-2000:]}"
            assert self._read(), f"{words!r} was never shown: {self.text[-2000:]}"

    def type(self, keys):
        os.write(self.master, keys.encode())

    def wait(self):
        """Read until the process has ended; return its exit status."""
        while self._read():
            pass
        return self.process.wait(LONGEST)

    def _read(self):
        """Read once; return False at the end."""
        readable, _, _ = select.select([self.master], [], [], 1.0)
        if not readable:
            return True
        try:
            block = os.read(self.master, 65536)
        except OSError:
            return False
        self.raw += block.decode(errors="replace")
        return bool(block)
