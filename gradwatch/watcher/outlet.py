"""Hand rows and findings to one sink, in a thread for which training does not wait long.

A disk that is full makes a sink raise, one that hangs lets it wait, a server far away makes it slow. What a sink has
not taken waits for it, findings first; there is room for the latest.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

from gradwatch.event_files.run import Coverage, Environment
from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.sinks import Row, Sink

__all__ = ["Outlet"]

MOST_ROWS = 100  # that wait for a sink; each holds a few arrays of one entry per layer
MOST_FINDINGS = 1_000
LONGEST_PAUSE = 64  # calls between two attempts: a disk that is full is not asked at every step
LAST_ATTEMPTS = 3  # at each part that waits as the sink is closed: a fault that passes loses nothing

_SAYS_WHAT_IS_LOST = "write what was lost"


class Outlet:
    """One sink, what waits for it, and the thread that hands it over, which lives while something waits.

    After a fault an attempt follows after 1, 2, 4, … up to 64 calls. There is one warning as the sink begins to fail,
    one as it begins to be too slow, and one line at the end of its faults that says what was lost. A sink that is
    closed gets every part that waits, whatever becomes of another.

    Args:
        sink: takes rows and findings. It is called in the caller's thread if its ``shares_thread`` is True.

    Attributes:
        sink: as given.
        is_of_every_rank: whether it takes them on ranks other than the first, too.
        has_own_thread: whether a thread hands over.
        is_given_up: whether a flush has waited for it in vain, and it is still at what it was at then.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.is_of_every_rank = getattr(sink, "is_of_every_rank", False)
        self.has_own_thread = not getattr(sink, "shares_thread", False)
        self.is_given_up = False
        self._findings: deque[tuple[Finding, bool]] = deque()
        self._rows: deque[Row] = deque()
        self._environment: Environment | None = None  # until it was handed over
        self._coverage: Coverage | None = None  # the latest that waits
        self._has_to_flush = self._has_to_close = False
        self._changed = threading.Condition()  # noqa: TID251 (a child uses no outlet)  # guards whether it works
        self._is_working = False
        self._is_ending = False  # it will be closed: what fails now is not left for later
        self._last_attempts = 0  # at what is next, since then
        self._verb = ""  # what it is at, or was last
        self._lost: Counter[str] = Counter()  # since the last line about it
        self._lost_for_good: Counter[str] = Counter()
        self._failures = self._calls_to_leave_out = 0
        self._has_warned = self._has_warned_of_slowness = False

    def write_row(self, row: Row) -> None:
        """Hand over ``row``, now or later."""
        self._rows.append(row)
        self._go_on()

    def write_finding(self, finding: Finding, ended: bool) -> None:
        """Hand over ``finding``, now or later."""
        self._findings.append((finding, ended))
        self._go_on()

    def write_coverage(self, coverage: Coverage) -> None:
        """Hand over ``coverage``, now or later, to a sink that takes it."""
        if hasattr(self.sink, "write_coverage"):
            self._coverage = coverage
            self._go_on()

    def note_environment(self, environment: Environment) -> None:
        """Hand over ``environment`` before all else, to a sink that takes it."""
        if hasattr(self.sink, "write_environment"):
            self._environment = environment

    def flush(self) -> None:
        """Hand over what waits and flush, now or later."""
        self._has_to_flush, self._calls_to_leave_out = True, 0
        self._go_on()

    def close(self) -> None:
        """Hand over what waits, flush and close, now or later."""
        self._has_to_close = self._is_ending = True
        try:
            self.flush()
        except Exception:
            self._close_after_fault()
            raise

    @property
    def is_behind(self) -> bool:
        """Return whether the thread is still at what it was given."""
        return self._is_working

    def wait(self, until: float) -> None:
        """Wait until the thread is done with what it was given, or ``time.monotonic()`` is ``until``."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_working, max(0.0, until - time.monotonic()))

    def say_what_is_not_safe(self) -> None:
        """Say after a flush that this sink has not come to its end in time."""
        with self._changed:
            is_late, self.is_given_up = self._is_working and not self.is_given_up, self._is_working
        if is_late:
            name = type(self.sink).__name__
            logger.warning(
                "gradwatch: %s has not come to the end of its %s in time: what it was given is not safe yet.",
                name, self._verb,
            )  # fmt: skip

    def say_what_was_lost(self) -> None:
        """Say at the end what the sink has not taken."""
        name, is_late = type(self.sink).__name__, self._is_working
        self._lost += Counter(row=len(self._rows), finding=len(self._findings))
        if not is_late:
            self._rows.clear()
            self._findings.clear()
        if lost := _in_words(self._lost):
            logger.warning("gradwatch: %s never took %s%s.", name, lost, " in time" if is_late else "")
        elif is_late:
            logger.warning("gradwatch: %s has not come to the end of its %s in time.", name, self._verb)

    def _go_on(self) -> None:
        """Have handed over what waits, unless that is under way or a fault is too recent."""
        self._forget_the_oldest()
        with self._changed:
            if self._is_working:
                return
            if self._calls_to_leave_out:
                self._calls_to_leave_out -= 1
                return
            self._is_working = True
        try:
            is_done = self.has_own_thread and self._starts_thread()
        except BaseException:
            self._rest()
            raise
        if not is_done:
            self._work()

    def _starts_thread(self) -> bool:
        """Start the thread; return False where the system has nothing left for it, or the program is about to end."""
        if (prepare := getattr(self.sink, "prepare", None)) is not None:
            prepare()
        try:
            threading.Thread(target=self._work, name="gradwatch-sink", daemon=True).start()
        except (RuntimeError, MemoryError, OSError):
            return False
        return True

    def _work(self) -> None:
        is_over = False
        while not is_over:
            is_over = True
            try:
                while self._goes_on():
                    self._hand_over_next()
            except Exception as error:
                try:
                    is_over = self._note_fault(error)
                finally:
                    if is_over:
                        self._rest()
            except BaseException:
                self._rest()
                raise

    def _goes_on(self) -> bool:
        """Return whether something waits; rest where nothing does."""
        if not self._something_waits():
            self._note_success()
        with self._changed:
            if self._something_waits():
                return True
            self._rest()
        return False

    def _rest(self) -> None:
        with self._changed:
            self._is_working = self.is_given_up = False
            self._changed.notify_all()

    def _something_waits(self) -> bool:
        waiting = (self._environment, self._coverage)
        return bool(self._findings or self._rows or self._has_to_flush or self._has_to_close) or waiting != (None, None)

    def _hand_over_next(self) -> None:
        """Hand over the next part of what waits, or flush or close; what was not taken goes on waiting."""
        sink: Any = self.sink
        if (environment := self._environment) is not None:
            self._verb = "write environment"
            sink.write_environment(environment)
            self._environment = None
        elif self._findings:
            self._verb = "write finding"
            sink.write_finding(*self._findings[0])
            self._findings.popleft()
        elif self._rows:
            self._verb = "write row"
            sink.write_row(self._rows[0])
            self._rows.popleft()
        else:
            self._finish_next()
        self._last_attempts = 0

    def _finish_next(self) -> None:
        sink: Any = self.sink
        if (coverage := self._coverage) is not None:
            self._verb = "write coverage"
            sink.write_coverage(coverage)
            self._coverage = None if self._coverage is coverage else self._coverage  # a later one came meanwhile
        elif self._has_to_flush:
            self._verb, self._has_to_flush = "flush", False
            sink.flush()
        else:
            self._tell_what_is_lost()
            self._verb, self._has_to_close = "close", False
            sink.close()

    def _tell_what_is_lost(self) -> None:
        """Tell a sink that takes it what it never got, so that whoever reads it knows of the holes."""
        if self._lost_for_good and hasattr(self.sink, "write_lost"):
            self._verb = _SAYS_WHAT_IS_LOST
            self.sink.write_lost(dict(self._lost_for_good))
        self._lost_for_good.clear()

    def _note_fault(self, error: Exception) -> bool:
        """Return whether to wait for the next call: not as the sink ends, for there may be none."""
        self._calls_to_leave_out = min(2**self._failures, LONGEST_PAUSE)
        self._failures += 1
        self._warn(error)
        if not (self._is_ending and self._has_to_close):
            return True
        self._last_attempts += 1
        if self._last_attempts < LAST_ATTEMPTS:
            self._has_to_flush |= self._verb == "flush"
        else:
            self._last_attempts = 0
            self._leave_out_next()
        return False

    def _leave_out_next(self) -> None:
        """Leave out what cannot be handed over, so that the rest comes to its turn."""
        if self._environment is not None:
            self._environment = None
        elif self._findings:
            self._findings.popleft()
            self._lose("finding")
        elif self._rows:
            self._rows.popleft()
            self._lose("row")
        elif self._coverage is not None:
            self._coverage = None
            self._lost_for_good["coverage"] += 1
        else:  # nothing is left but to close it
            self._has_to_flush = False
            if self._verb == _SAYS_WHAT_IS_LOST:
                self._lost_for_good.clear()
            self._close_after_fault()

    def _lose(self, what: str) -> None:
        self._lost[what] += 1
        self._lost_for_good[what] += 1

    def _close_after_fault(self) -> None:
        """Close the sink, if it is to be closed: its files and threads are not left open."""
        if not self._has_to_close:
            return
        self._verb, self._has_to_close = "close", False
        self._lost_for_good += Counter(row=len(self._rows), finding=len(self._findings))
        try:
            self._tell_what_is_lost()
            self.sink.close()
        except Exception as error:
            self._warn(error)

    def _note_success(self) -> None:
        if not self._failures or (self._is_ending and self._lost):  # then its last line says what was lost
            return
        self._failures = 0
        lost = _in_words(self._lost)
        logger.warning("gradwatch: %s works again; %s lost.", type(self.sink).__name__, lost or "nothing was")
        self._lost.clear()

    def _forget_the_oldest(self) -> None:
        """Keep no more than fits."""
        oldest = 1 if self._is_working else 0  # the very first may be under way
        while len(self._rows) > MOST_ROWS:
            del self._rows[oldest]
            self._lose("row")
            self._warn_of_slowness()
        while len(self._findings) > MOST_FINDINGS:
            del self._findings[oldest]
            self._lose("finding")

    def _warn(self, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        logger.warning(
            "gradwatch: %s failed to %s (%s: %s); it is tried again, training goes on.",
            type(self.sink).__name__, self._verb, type(error).__name__, error,
        )  # fmt: skip

    def _warn_of_slowness(self) -> None:
        """Say once that rows are left out though nothing fails."""
        if self._failures or self._has_warned_of_slowness:
            return
        self._has_warned_of_slowness = True
        logger.warning(
            "gradwatch: %s is slower than the training, which does not wait for it: rows are left out from now on, and "
            "counted at the end.",
            type(self.sink).__name__,
        )


def _in_words(lost: Counter[str]) -> str:
    counts = [f"{lost[what]} {what}{'' if lost[what] == 1 else 's'}" for what in ("row", "finding") if lost[what]]
    return " and ".join(counts)
