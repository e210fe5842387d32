"""Let one thread at a time use a watched loop: a dashboard may read it while another thread trains."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["Turns", "in_turn"]

LONGEST_WAIT = 1.0
"""Seconds after which a thread goes on without its turn: a callback of the user's may wait for the very thread that
waits here, and neither a training nor a reader is to stand still for ever."""


class Turns:
    """A lock around the loop, and the thread that trains."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # noqa: TID251 (start_anew is called in a child)
        self._training: int | None = None

    def note_training(self) -> None:
        """Note that this thread makes updates."""
        self._training = threading.get_ident()

    @property
    def is_of_another_thread(self) -> bool:
        """True if another thread makes the updates; it may be within one."""
        return self._training is not None and self._training != threading.get_ident()

    def start_anew(self) -> None:
        """Forget who has the turn: in a forked child only the forking thread lives on."""
        self.lock = threading.RLock()  # noqa: TID251 (start_anew is called in a child)
        self._training = None


class _HasTurns(Protocol):
    @property
    def turns(self) -> Turns: ...


S = TypeVar("S", bound=_HasTurns)
P = ParamSpec("P")
R = TypeVar("R")


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorate a method that other threads may call: it runs when no other thread uses its object."""

    @functools.wraps(method)
    def waiting(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        lock = self.turns.lock
        has_turn = lock.acquire(timeout=LONGEST_WAIT)
        try:
            return method(self, *args, **kwargs)
        finally:
            if has_turn:
                lock.release()

    return waiting
