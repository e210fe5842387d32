"""Keep faults of our own away from anyone's training.

What only observes runs inside a ``Guard``, block by block. What acts on the training (clipping, skipping, raising)
never ends there: ``otherwise`` puts a plain way beside it, which acts where the fast one failed.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gradwatch.findings import NonFiniteError, RecoveryError
from gradwatch.hooks.logger import logger

__all__ = [
    "REST_AFTER",
    "Guard",
    "Guarded",
    "UnwatchableError",
    "observing",
    "otherwise",
    "without_collecting",
]

REST_AFTER = 3
"""Faults in a row after which a block rests: one may be the batch's fault, three are ours and would cost every step."""


class UnwatchableError(RuntimeError):
    """The error of a loop that no watcher can make sense of; it is meant for the user."""


_FOR_THE_USER = (NonFiniteError, RecoveryError, UnwatchableError)

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """The guard around what only observes: a fault ends there, and the next step tries again.

    Blocks are named, and each counts its own faults. A block that failed is left out for the rest of the step. A fault
    is logged with its traceback the first time that its block fails; without it where another block has failed at the
    same line. After ``REST_AFTER`` faults in a row the block
    rests for good, which is logged as well. Errors that are meant for the user pass.

    Attributes:
        step: a count that whoever makes steps raises at each; blocks that failed try again then.
    """

    def __init__(self) -> None:
        self.step = 0
        self._faults: dict[str, tuple[int, int]] = {}  # block → (faults in a row, step of the last)
        self._logged: set[str] = set()
        self._places: set[tuple[str, int]] = set()  # file and line of each fault that was logged

    def run(self, block: str, observe: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Return what ``observe`` returns; None where it fails, or where its ``block`` is left out."""
        if self._faults and self.leaves_out(block):
            return None
        try:
            result = observe(*args, **kwargs)
        except _FOR_THE_USER:
            raise
        except Exception:
            self.note_fault(block)
            return None
        if self._faults:
            self._faults.pop(block, None)
        return result

    @property
    def has_noted_faults(self) -> bool:
        """Return whether any block has ever failed."""
        return bool(self._logged)

    def leaves_out(self, block: str) -> bool:
        """Return whether ``block`` failed at this step, or rests."""
        in_a_row, step = self._faults.get(block, (0, -1))
        return in_a_row >= REST_AFTER or step == self.step

    def rests(self, block: str) -> bool:
        """Return whether ``block`` failed so often in a row that it is not tried any more."""
        return self._faults.get(block, (0, -1))[0] >= REST_AFTER

    def note_fault(self, block: str) -> None:
        """Count the exception that is being handled against ``block``, and log what the user should know."""
        in_a_row = self._faults.get(block, (0, -1))[0] + 1
        self._faults[block] = in_a_row, self.step
        if block not in self._logged:
            self._logged.add(block)
            is_known = self._is_known_place()
            logger.warning(
                "gradwatch: a fault in gradwatch itself (%s); training goes on, and the next step tries again. %s",
                block,
                "It is that of the lines above." if is_known else "Please report it with these lines:",
                exc_info=not is_known,
            )
        if in_a_row == REST_AFTER:
            logger.warning(
                "gradwatch: a fault in gradwatch itself (%s) came %d times in a row; this part rests from now on, "
                "training goes on.",
                block,
                in_a_row,
            )

    def _is_known_place(self) -> bool:
        """Return whether the exception that is being handled was raised where one was that is logged already."""
        trace = sys.exc_info()[2]
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        is_known = place in self._places
        self._places.add(place)
        return is_known

    def note_success(self, block: str) -> None:
        """Forget the faults of ``block``: the next one is the first in a row again."""
        self._faults.pop(block, None)


class Guarded(Protocol):
    """An object whose methods are guarded."""

    @property
    def guard(self) -> Guard: ...


S = TypeVar("S", bound=Guarded)
Method = Callable[Concatenate[S, P], R]


def observing(block: str) -> Callable[[Method[S, P, R]], Callable[Concatenate[S, P], R | None]]:
    """Decorate a method that only observes: it runs as ``block`` of its object's guard."""

    def decorate(method: Method[S, P, R]) -> Callable[Concatenate[S, P], R | None]:
        @functools.wraps(method)
        def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
            guard = self.guard
            if guard._faults and guard.leaves_out(block):
                return None
            try:  # not by Guard.run, so that a fault there ends here as well
                result = method(self, *args, **kwargs)
            except _FOR_THE_USER:
                raise
            except Exception:
                guard.note_fault(block)
                return None
            if guard._faults:
                guard.note_success(block)
            return result

        return guarded

    return decorate


def otherwise(
    block: str, plainly: Method[S, P, R]
) -> Callable[[Method[S, P, R]], Callable[Concatenate[S, P], R | None]]:
    """Decorate a method that acts on the training: where it fails, ``plainly`` acts.

    The method must act last: whatever may fail in it comes before. Its faults are logged and counted as those of
    ``block``; where that rests, ``plainly`` acts at once. A fault of ``plainly`` itself is logged, and ends there.
    """

    def decorate(method: Method[S, P, R]) -> Callable[Concatenate[S, P], R | None]:
        @functools.wraps(method)
        def acting(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
            guard = self.guard
            if not (guard._faults and guard.rests(block)):
                try:
                    result = method(self, *args, **kwargs)
                except _FOR_THE_USER:
                    raise
                except Exception:
                    guard.note_fault(block)
                else:
                    if guard._faults:
                        guard.note_success(block)
                    return result
            try:
                return plainly(self, *args, **kwargs)
            except _FOR_THE_USER:
                raise
            except Exception:
                guard.note_fault(f"{block}, the plain way")
                return None

        return acting

    return decorate


def without_collecting(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate what measures: Python's garbage collector pauses while it runs.

    The collector counts objects that are gone before the measurement ends. Thousands of views and nodes at a sampled
    step would set it off several times, and now and then for a full collection: 0.2 s in a process that has
    transformers loaded. Sinks and users' functions never run inside: what they leave behind is theirs to collect.
    """

    @functools.wraps(method)
    def undisturbed(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return method(*args, **kwargs)
        gc.disable()
        try:
            return method(*args, **kwargs)
        finally:
            gc.enable()

    return undisturbed
