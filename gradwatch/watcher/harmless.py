"""What keeps a fault of ours from stopping anyone's training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gradwatch.findings import NonFiniteError
from gradwatch.sinks.log import logger

__all__ = ["harmless"]


class Fallible(Protocol):
    """Has a note of which of its methods have failed."""

    broken: set[str]


S = TypeVar("S", bound=Fallible)
P = ParamSpec("P")


def harmless(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """A fault inside is logged once, and that part of the watcher rests from then on; training never stops for it."""

    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if method.__name__ in self.broken:
            return
        try:
            method(self, *args, **kwargs)
        except NonFiniteError:
            raise
        except Exception:
            self.broken.add(method.__name__)
            logger.warning(
                "gradwatch: a fault in gradwatch itself (%s); training goes on without this part of it. "
                "Please report it with these lines:",
                method.__name__.strip("_"),
                exc_info=True,
            )

    functools.update_wrapper(guarded, method)
    return guarded
