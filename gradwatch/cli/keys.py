"""Read single keys from a terminal, where there is one."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["single_keys"]


@contextlib.contextmanager
def single_keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits for a key for at most so many seconds and returns it, ``""`` where none came.

    The terminal is as before afterwards. Without a terminal, and on Windows, the function just waits.
    """
    try:
        import select
        import termios
        import tty

        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield _wait
        return

    def next_key(seconds: float) -> str:
        readable, _, _ = select.select([file], [], [], seconds)
        return sys.stdin.read(1) if readable else ""

    try:
        tty.setcbreak(file)
        yield next_key
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""
