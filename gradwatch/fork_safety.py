"""Locks that a forked child finds free, and properties that need none.

A child has one thread, that which forked it. A lock that another thread held stays locked there for ever, and whoever
waits for it hangs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["ForkSafeLock", "lazy_property"]

T = TypeVar("T")

_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """A lock for ``with`` blocks that one thread may nest. A forked child has it anew, whoever held it before."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # noqa: TID251
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(RuntimeError):  # it is free already in a child that was forked within the block
            self._lock.release()

    def start_anew(self) -> None:
        """Let go of the threads that hold it or wait for it: they do not live in this process."""
        self._lock = threading.RLock()  # noqa: TID251


def _start_all_anew() -> None:
    for lock in list(_locks):
        lock.start_anew()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_start_all_anew)


class lazy_property(Generic[T]):  # noqa: N801 - it is used as a decorator
    """A property that is computed at its first reading, and kept in the object's ``__dict__``.

    ``functools.cached_property`` is the same, but takes a lock before Python 3.12, one for all objects of a class. Two
    threads that read this one at once may both compute it.

    Args:
        compute: takes the object and returns the value.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, owned: None, owner: type) -> lazy_property[T]: ...

    @overload
    def __get__(self, owned: object, owner: type) -> T: ...

    def __get__(self, owned: object | None, owner: type) -> lazy_property[T] | T:
        """Return the value, which Python itself finds in ``__dict__`` from the second reading on."""
        if owned is None:
            return self
        value = self._compute(owned)
        owned.__dict__[self._name] = value
        return value
