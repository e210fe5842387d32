"""Refuse calls that gradwatch makes of the system and of libraries: the n-th of a sort, once or for good.

The calls are seen from below, by Python's profiler: each call of a C function has an event before it is made, and an
exception there takes its place. Calls that the training makes on its own behalf pass. So do those of other sorts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["SORTS", "Boundary"]

_FILES = ("FileIO", "BufferedWriter", "BufferedRandom", "BufferedReader", "TextIOWrapper")


def _full() -> OSError:
    return _RefusedError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _broken() -> OSError:
    return _RefusedError(errno.EIO, os.strerror(errno.EIO))


def _too_many() -> OSError:
    return _RefusedError(errno.EMFILE, os.strerror(errno.EMFILE))


def _forbidden() -> OSError:
    return _RefusedError(errno.EACCES, os.strerror(errno.EACCES))


def _no_locks() -> OSError:
    return _RefusedError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _no_lock() -> RuntimeError:
    return _FailedError("can't allocate lock")


def _no_thread() -> RuntimeError:
    return _FailedError("can't start new thread")


def _no_memory() -> MemoryError:
    return _NoMemoryError("made to happen")


def _raised() -> RuntimeError:
    return _FailedError("the user's own function fails")


class _Rearming:
    """An exception that, once whoever caught it is done with it, lets the boundary go on refusing in that thread.

    Python takes a profiler away that has raised.
    """

    boundary: Boundary | None = None

    def __del__(self) -> None:
        if self.boundary is not None:
            self.boundary.go_on()


class _RefusedError(_Rearming, OSError):
    pass


class _FailedError(_Rearming, RuntimeError):
    pass


class _NoMemoryError(_Rearming, MemoryError):
    pass


SORTS: dict[str, Callable[[], Exception]] = {
    "write": _full,
    "flush": _broken,
    "open": _too_many,
    "directory": _forbidden,
    "lock": _no_locks,
    "new lock": _no_lock,
    "thread": _no_thread,
    "allocation": _no_memory,
    "callback": _raised,
    "logging": _raised,
}
"""Sort of call → the error that refuses it. The last two are the user's own functions, which call ``pass_by_hand``."""

_OF_SYSTEM = {
    "write": "write", "pwrite": "write", "truncate": "write", "ftruncate": "write",
    "fsync": "flush", "fdatasync": "flush", "open": "open", "mkdir": "directory", "rename": "directory",
    "replace": "directory", "listdir": "directory", "scandir": "directory", "lstat": "directory", "stat": "directory",
    "fstat": "directory", "getcwd": "directory", "unlink": "directory",
}  # fmt: skip
_OF_FILES = {"write": "write", "writelines": "write", "truncate": "write", "flush": "flush"}
_OF_FILES |= {"read": "directory", "readline": "directory", "readinto": "directory", "seek": "directory"}


_NEVER_ALLOCATE = frozenset(
    (
        "_make_extobj", "_set_grad_enabled", "can_cast", "data_ptr", "dim", "element_size", "get_device", "nbytes",
        "normalize_axis_index", "numel", "promote_types", "result_type", "size", "storage_offset", "stride",
        "untyped_storage",
    )
)  # fmt: skip


class Boundary:
    """The boundary between gradwatch and what it calls.

    Args:
        package: the directory of gradwatch; calls from frames in it, or from libraries on its behalf, count.
        own: files of the training program; calls from there pass.
        transparent: (file, function) of gradwatch's that call functions of the training program or of torch for it.
        sort: of ``SORTS``; which calls count.
        at: the number of the call that is refused, counted from 0; -1 refuses none.
        for_good: also refuse every later one; of those that take memory every later one from the same place.

    Attributes:
        seen: how many calls of the sort there were so far.
        refused: how many were refused.
        places: where they came from, as ``file:line function``.
        first_at: the step at which the first was refused; -1 before.
    """

    def __init__(
        self,
        package: str,
        own: frozenset[str],
        transparent: frozenset[tuple[str, str]],
        sort: str,
        at: int = -1,
        *,
        for_good: bool = False,
    ) -> None:
        self._package, self._own, self._transparent = package + os.sep, own, transparent
        self._sort, self._at, self._for_good = sort, at, for_good
        self._is_armed = False
        self._step, self._place = 0, ("", 0)
        self.first_at = -1
        self.seen = self.refused = 0
        self.places: list[str] = []
        self._profile = self._look  # kept: Python has crashed where it called one that was let go meanwhile

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Return a context in which calls are counted and refused, in threads that begin in it, too."""
        self._is_armed = True
        threading.setprofile(self._profile)
        self.go_on()
        try:
            yield
        finally:
            self._is_armed = False
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def begin_step(self, step: int) -> None:
        """Note that the training begins a step."""
        self._step = step
        self.go_on()

    def go_on(self) -> None:
        """Look at the calls of this thread, again if it was refused one."""
        if self._is_armed and (self._for_good or not self.refused):
            sys.setprofile(self._profile)

    def pass_by_hand(self, sort: str) -> None:
        """Count a call of a function of the user's, and refuse it if it is its turn."""
        if self._is_armed and sort == self._sort:
            self._count(sys._getframe(1), f"{sort} of the user's")

    def _look(self, frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and self._is_armed and self._sort_of(function) == self._sort and self._is_ours(frame):
            self._count(frame, function.__qualname__)

    def _count(self, frame: FrameType, name: str) -> None:
        number, self.seen = self.seen, self.seen + 1
        if self._at < 0 or number < self._at or (number > self._at and not self._goes_on_at(frame)):
            return
        if number == self._at:
            self._place = self._place_of(frame)
        self.refused += 1
        self.first_at = self._step if self.first_at < 0 else self.first_at
        if len(self.places) < 3:
            self.places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {name}")
        raise self._error()  # bound to no name: a frame that held it would keep it alive

    def _goes_on_at(self, frame: FrameType) -> bool:
        """Return whether a later call is refused, too: of those that take memory only those from the same place.

        Nobody can clip without memory. So what fails for good is one way to it, and another must be found.
        """
        return self._for_good and (self._sort != "allocation" or self._place_of(frame) == self._place)

    def _place_of(self, frame: FrameType | None) -> tuple[str, int]:
        """Return the nearest line of the package that a call comes from."""
        while frame is not None and not frame.f_code.co_filename.startswith(self._package):
            frame = frame.f_back
        return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)

    def _error(self) -> Exception:
        error = SORTS[self._sort]()
        if self._for_good:
            error.boundary = self  # type: ignore[attr-defined]
        return error

    def _sort_of(self, function: Any) -> str | None:
        if self._sort == "allocation":
            return "allocation" if _allocates(function) else None
        name, owner = function.__name__, getattr(function, "__self__", None)
        if type(owner).__name__ in _FILES:
            return _OF_FILES.get(name)
        module = getattr(function, "__module__", None)
        if module in ("posix", "nt", "io", "_io"):
            return _OF_SYSTEM.get(name)
        if name == "flock" or (module == "_thread" and name in ("allocate_lock", "RLock")):
            return "lock" if name == "flock" else "new lock"
        return "thread" if name in ("start_new_thread", "start_joinable_thread") else None

    def _is_ours(self, frame: FrameType | None) -> bool:
        """Return whether a call in ``frame`` is made on behalf of gradwatch: the nearest of its files or ours tells.

        A thread that a library has started for gradwatch's files has neither; it counts.
        """
        while frame is not None:
            file = frame.f_code.co_filename
            if file in self._own:
                return False
            is_transparent = (os.path.basename(file), frame.f_code.co_name) in self._transparent
            if file.startswith(self._package) and not is_transparent:
                return True
            frame = frame.f_back
        return True


def _allocates(function: Any) -> bool:
    """Return whether ``function`` of torch or numpy may need memory, and does not merely ask or set a flag."""
    owner = getattr(function, "__self__", None)
    about = owner if isinstance(owner, type) else type(owner)
    module = str(getattr(function, "__module__", None) or about.__module__).partition(".")[0]
    library = next((each for each in (module, about.__module__.partition(".")[0]) if each in ("torch", "numpy")), "")
    name = function.__name__
    if not library or name in _NEVER_ALLOCATE or name.startswith(("is_", "set_")):
        return False
    return library == "numpy" or not name.startswith("_") or name.startswith("_foreach")
