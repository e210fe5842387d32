"""What keeps us from getting in the way of anyone's training.

Enters: a method that torch or an integration calls. Leaves: the same method, whose faults are logged and end there, or
whose many short-lived objects set off no garbage collection.
"""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gradwatch.findings import NonFiniteError

__all__ = ["UnwatchableError", "harmless", "without_collecting"]


class UnwatchableError(RuntimeError):
    """The loop does something that no watcher can make sense of: meant for the user."""


class Fallible(Protocol):
    """Has a note of which of its methods have failed."""

    broken: set[str]


S = TypeVar("S", bound=Fallible)
P = ParamSpec("P")
R = TypeVar("R")


def harmless(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """A fault inside is logged once, and that part rests from then on: it returns None.

    ``NonFiniteError`` and ``UnwatchableError`` are no faults: they are meant for the user, and pass.
    """

    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if method.__name__ in self.broken:
            return None
        try:
            return method(self, *args, **kwargs)
        except (NonFiniteError, UnwatchableError):
            raise
        except Exception:
            self.broken.add(method.__name__)
            logging.getLogger("gradwatch").warning(
                "gradwatch: a fault in gradwatch itself (%s); training goes on without this part of it. "
                "Please report it with these lines:",
                method.__name__.strip("_"),
                exc_info=True,
            )
            return None

    functools.update_wrapper(guarded, method)
    return guarded


def without_collecting(method: Callable[P, R]) -> Callable[P, R]:
    """Python's garbage collector rests while ``method`` runs, since it counts objects that are gone before it ends.

    Thousands of views and nodes at a sampled step would set it off several times, and now and then for a full
    collection: 0.2 s in a process that has transformers loaded.
    """

    def undisturbed(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return method(*args, **kwargs)
        gc.disable()
        try:
            return method(*args, **kwargs)
        finally:
            gc.enable()

    functools.update_wrapper(undisturbed, method)
    return undisturbed
