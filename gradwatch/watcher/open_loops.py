"""The loops that are open in this process: closed when it ends, and left to the parent by a forked child."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # it leads back here
    from gradwatch.watcher.watched_loop import WatchedLoop

__all__ = ["loop_of", "open_loops", "will_be_closed"]

open_loops: weakref.WeakSet[WatchedLoop] = weakref.WeakSet()


def loop_of(parameters: Sequence[Tensor]) -> WatchedLoop | None:
    """Return the open loop that watches any of ``parameters``."""
    return next((loop for loop in list(open_loops) if loop.owns(parameters)), None)


def will_be_closed(loop: WatchedLoop) -> None:
    """Have ``loop`` closed at the end of the program, if nobody does so before.

    That is before the loggers close that the program has opened by now, which sinks may write to.
    """
    open_loops.add(loop)
    atexit.unregister(_close_all)
    atexit.register(_close_all)  # what is registered last is called first


def _close_all() -> None:
    """Close what a script has left open, so that it loses nothing; say what it died of, once."""
    error = getattr(sys, "last_value", None)  # of an exception that nobody caught
    for number, loop in enumerate(list(open_loops)):
        if isinstance(error, BaseException) and number == 0:
            loop.say_last_words(error)
        if isinstance(error, BaseException):
            loop.note_exception(error)
        loop.close()


def _leave_to_the_parent() -> None:
    """Close nothing in a forked child: it has no thread that writes files, and would wait for one for ever."""
    for loop in list(open_loops):
        loop.turns.start_anew()  # a thread that the child lacks may have had its turn
    open_loops.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_leave_to_the_parent)
