"""Hand rows and findings to the sinks and to ``on_finding``, none of which may stop the training."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence

from gradwatch.event_files.run import Coverage, Environment
from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.ranks.process import is_first_rank
from gradwatch.sinks import Row, Sink
from gradwatch.sinks.log import Log
from gradwatch.watcher.diagnosis import FindingUpdate

__all__ = ["SinkDispatcher"]

MOST_ROWS = 100  # that wait for a sink that fails; each holds a few arrays of one entry per layer
MOST_FINDINGS = 1_000
LONGEST_PAUSE = 64  # calls between two attempts: a disk that is full is not asked at every step


class _Outlet:
    """One sink, and what waits for it while it fails.

    An attempt follows after 1, 2, 4, … up to 64 calls. What waits is handed over in order, findings first, once the
    sink works again. There is one warning as it begins to fail, and one line at its end that says what was lost.

    Args:
        sink: takes rows and findings.

    Attributes:
        sink: as given.
        is_of_every_rank: whether it takes them on ranks other than the first, too.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.is_of_every_rank = getattr(sink, "is_of_every_rank", False)
        self._findings: deque[tuple[Finding, bool]] = deque()
        self._rows: deque[Row] = deque()
        self._environment: Environment | None = None  # until it was handed over
        self._coverage: Coverage | None = None  # the latest that waits
        self._lost: Counter[str] = Counter()
        self._failures = self._calls_to_leave_out = 0
        self._has_warned = False

    def write_row(self, row: Row) -> None:
        """Hand over ``row``, now or later."""
        self._rows.append(row)
        self._go_on("write row")

    def write_finding(self, finding: Finding, ended: bool) -> None:
        """Hand over ``finding``, now or later."""
        self._findings.append((finding, ended))
        self._go_on("write finding")

    def write_coverage(self, coverage: Coverage) -> None:
        """Hand over ``coverage``, now or later, to a sink that takes it."""
        if hasattr(self.sink, "write_coverage"):
            self._coverage = coverage
            self._go_on("write coverage")

    def note_environment(self, environment: Environment) -> None:
        """Hand over ``environment`` before all else, to a sink that takes it."""
        if hasattr(self.sink, "write_environment"):
            self._environment = environment

    def flush(self) -> None:
        """Hand over what waits, and flush."""
        self._calls_to_leave_out = 0
        self._go_on("flush", self.sink.flush)

    def close(self) -> None:
        """Flush and close; say what was lost."""
        try:
            self.flush()
        finally:  # its files and threads are not left open
            self._close_sink()
        self._lost += Counter(row=len(self._rows), finding=len(self._findings))
        self._rows.clear()
        self._findings.clear()
        if lost := self._words_of_lost():
            logger.warning("gradwatch: %s never took %s.", type(self.sink).__name__, lost)

    def _close_sink(self) -> None:
        try:
            self.sink.close()
        except Exception as error:
            self._warn("close", error)

    def _go_on(self, verb: str, then: Callable[[], object] = lambda: None) -> None:
        self._forget_the_oldest()
        if self._calls_to_leave_out:
            self._calls_to_leave_out -= 1
            return
        try:
            if self._environment is not None:
                self.sink.write_environment(self._environment)  # type: ignore[attr-defined]
                self._environment = None
            while self._findings:
                self.sink.write_finding(*self._findings[0])
                self._findings.popleft()
            while self._rows:
                self.sink.write_row(self._rows[0])
                self._rows.popleft()
            if self._coverage is not None:
                self.sink.write_coverage(self._coverage)  # type: ignore[attr-defined]
                self._coverage = None
            then()
        except Exception as error:
            self._calls_to_leave_out = min(2**self._failures, LONGEST_PAUSE)
            self._failures += 1
            self._warn(verb, error)
        else:
            self._note_success()

    def _note_success(self) -> None:
        if not self._failures:
            return
        self._failures = 0
        lost = self._words_of_lost()
        logger.warning("gradwatch: %s works again; %s lost.", type(self.sink).__name__, lost or "nothing was")
        self._lost.clear()

    def _forget_the_oldest(self) -> None:
        """Keep no more than fits."""
        while len(self._rows) > MOST_ROWS:
            self._rows.popleft()
            self._lost["row"] += 1
        while len(self._findings) > MOST_FINDINGS:
            self._findings.popleft()
            self._lost["finding"] += 1

    def _warn(self, verb: str, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        logger.warning(
            "gradwatch: %s failed to %s (%s: %s); it is tried again, training goes on.",
            type(self.sink).__name__, verb, type(error).__name__, error,
        )  # fmt: skip

    def _words_of_lost(self) -> str:
        counts = [f"{count} {what}{'' if count == 1 else 's'}" for what, count in self._lost.items() if count]
        return " and ".join(counts)


class SinkDispatcher:
    """The sinks, the log among them, and the user's callback.

    A sink that raises is tried again later, with one warning, and a callback that raises is not called again. In a
    forked child nothing is handed on: files are the parent's, and the threads that write them are not there. Ranks
    other than the first hand findings to the callback, which may stop the training on every rank, and nothing to sinks.

    Args:
        sinks: the user's, and ours.
        on_finding: called with each finding as it opens.
        has_watcher: whether a watcher is at hand, so that a line of the log may name it.
        describe: returns what the run is made with, or None; it is called once, when there is something to write.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        on_finding: Callable[[Finding], None] | None,
        *,
        has_watcher: bool = True,
        describe: Callable[[], Environment | None] | None = None,
    ) -> None:
        self._outlets = [_Outlet(sink) for sink in (*sinks, Log(has_watcher=has_watcher))]
        self._on_finding, self._describe = on_finding, describe
        self._process = os.getpid()
        self._is_first = True
        self._coverage = Coverage(0, 0)

    def add(self, sink: Sink) -> None:
        """Hand everything to ``sink``, too, from now on."""
        self._outlets.append(_Outlet(sink))

    def write_row(self, row: Row) -> None:
        """Hand ``row`` to every sink."""
        self._note_environment()
        for outlet in self._listening():
            outlet.write_row(row)

    def write_finding(self, event: FindingUpdate) -> None:
        """Hand a finding to every sink: as it opens, goes on or ends; to ``on_finding``, too, where it opens."""
        self._note_environment()
        for outlet in self._listening():
            if not (event.is_amended and isinstance(outlet.sink, Log)):  # whoever amends it says so
                outlet.write_finding(event.finding, event.ended)
        if not event.is_new or self._on_finding is None:
            return
        try:
            self._on_finding(event.finding)
        except Exception:
            self._on_finding = None
            logger.warning("gradwatch: on_finding raised; it is not called again, training goes on.", exc_info=True)

    def write_coverage(self, coverage: Coverage) -> None:
        """Hand how much was measured to every sink that takes it, unless it is as it was."""
        if coverage == self._coverage:
            return
        self._coverage = coverage
        for outlet in self._listening():
            outlet.write_coverage(coverage)

    def flush(self) -> None:
        """Flush every sink."""
        for outlet in self._listening():
            outlet.flush()

    def close(self) -> None:
        """Flush and close every sink; twice is fine."""
        with contextlib.ExitStack() as closing:  # each of them, whatever fails in another
            for outlet in reversed(self._outlets_of_this_process()):
                closing.callback(outlet.close)
            self._outlets = []
            self._describe = None

    def _note_environment(self) -> None:
        """Have what the run is made with handed over to every sink, once."""
        if self._describe is None or not (outlets := self._listening()):
            return
        describe, self._describe = self._describe, None
        if (environment := describe()) is not None:
            for outlet in outlets:
                outlet.note_environment(environment)

    def _listening(self) -> list[_Outlet]:
        """Return those that something is handed to in this process and on this rank."""
        # a rank that was another once has destroyed its process group since
        self._is_first = self._is_first and is_first_rank()
        outlets = self._outlets_of_this_process()
        return outlets if self._is_first else [each for each in outlets if each.is_of_every_rank]

    def _outlets_of_this_process(self) -> list[_Outlet]:
        return self._outlets if os.getpid() == self._process else []

    def go_on(self) -> None:
        """Continue the files of a run that was cut."""
        for outlet in self._outlets:
            if hasattr(outlet.sink, "continues"):
                outlet.sink.continues = True
