"""The logger ``gradwatch``: it never throws, of several ranks one speaks, and no line is shown twice.

Its handlers, filters and streams are the user's, and may be broken. Where there are none, lines are shown in colour on
a terminal, and in a notebook beside the output.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gradwatch.jupyter import is_kernel
from gradwatch.ranks.process import is_first_rank

__all__ = ["logger"]

_PREFIX = "gradwatch:"
_COLOURS = {logging.ERROR: "\x1b[1;31m", logging.WARNING: "\x1b[1;33m"}  # as `gradwatch report` has them

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # takes no argument before Python 3.11


class _QuietLogger(_Adapter):
    """The logger of that name, whose lines are lost where they cannot be written.

    It is called from within ``optimizer.step()``: a closed stderr would throw there. Ranks other than the first would
    say the same once more: their lines are debug lines.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        try:
            speaks = is_first_rank()
        except Exception:  # said twice is better than not said
            speaks = True
        with contextlib.suppress(Exception):
            super().log(level if speaks else logging.DEBUG, msg, *args, **kwargs)


class _Console(logging.Handler):
    """Shows the lines of a program that has not set up logging, as Python's handler of last resort does."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if is_kernel() else sys.stderr  # a notebook shows stderr as a fault, in red
        text = self.format(record)
        if record.levelno in _COLOURS and _takes_colours(stream) and text.startswith(_PREFIX):
            text = f"{_COLOURS[record.levelno]}{_PREFIX}\x1b[0m{text.removeprefix(_PREFIX)}"
        stream.write(f"{text}\n")
        stream.flush()


def _takes_colours(stream: Any) -> bool:
    """Return True for a terminal whose user has not refused colours (https://no-color.org)."""
    is_refused = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or os.name == "nt"
    return not is_refused and stream.isatty()


def _hand_on(record: logging.LogRecord) -> None:
    """Hand ``record`` to the handlers of the logger and of those above it, of those that share a stream to one."""
    taken: set[object] = set()
    for handler in list(_handlers()) or [_CONSOLE]:
        stream = _stream_of(handler)
        if record.levelno >= handler.level and stream not in taken:
            handler.handle(record)
            taken |= set() if stream is None else {stream}


def _handlers() -> Iterator[logging.Handler]:
    """Yield the handlers that a record of the logger goes to."""
    named: logging.Logger | None = _NAMED
    while named is not None:
        yield from named.handlers
        named = named.parent if named.propagate else None


def _stream_of(handler: logging.Handler) -> object:
    """Return what tells apart where the lines of ``handler`` are seen: all terminals are one; None for no stream."""
    stream = getattr(handler, "stream", None)
    with contextlib.suppress(Exception):  # it may be closed
        if stream.isatty():  # type: ignore[union-attr]
            return "terminal"
    return None if stream is None else id(stream)


_CONSOLE = _Console(logging.WARNING)
_NAMED = logging.getLogger("gradwatch")
_NAMED.callHandlers = _hand_on  # type: ignore[method-assign]  # users may have made this logger before us
logger = _QuietLogger(_NAMED, {})
