"""What keeps a fault of ours from stopping anyone's training.

Enters: a method that torch or an integration calls. Leaves: the same method, whose faults are logged and end there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gradwatch.findings import NonFiniteError

__all__ = ["UnwatchableError", "harmless"]


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
