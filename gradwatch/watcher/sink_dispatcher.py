"""Hand rows and findings to the sinks and to ``on_finding``, none of which may stop the training."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from gradwatch.event_files.run import Coverage, Environment
from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.ranks.process import is_first_rank
from gradwatch.sinks import Row, Sink
from gradwatch.sinks.log import Log
from gradwatch.watcher.diagnosis import FindingUpdate
from gradwatch.watcher.outlet import Outlet

__all__ = ["SinkDispatcher"]

PATIENCE = 0.1  # seconds that training waits for sinks: what is not written by then is written beside it
LAST_PATIENCE = 2.0  # seconds that the end of a run, or whoever asks for a flush, waits for all of them


class SinkDispatcher:
    """The sinks, the log among them, and the user's callback.

    A sink that raises is tried again later, with one warning, and nobody waits long for one that hangs. A callback that
    raises is not called again. In a forked child nothing is handed on: files are the parent's, and the threads that
    write them are not there. Ranks other than the first hand findings to the callback, which may stop the training on
    every rank, and nothing to sinks.

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
        self._outlets = [Outlet(sink) for sink in (*sinks, Log(has_watcher=has_watcher))]
        self._on_finding, self._describe = on_finding, describe
        self._process = os.getpid()
        self._is_first = True
        self._coverage = Coverage(0, 0)

    def add(self, sink: Sink) -> None:
        """Hand everything to ``sink``, too, from now on."""
        self._outlets.append(Outlet(sink))

    def write_row(self, row: Row) -> None:
        """Hand ``row`` to every sink."""
        self._note_environment()
        _hand_over(self._listening(), lambda outlet: outlet.write_row(row))

    def write_finding(self, event: FindingUpdate) -> None:
        """Hand a finding to every sink: as it opens, goes on or ends; to ``on_finding``, too, where it opens."""
        self._note_environment()
        # whoever amends it says so
        outlets = [each for each in self._listening() if not (event.is_amended and isinstance(each.sink, Log))]
        if event.is_written:
            _hand_over(outlets, lambda outlet: outlet.write_finding(event.finding, event.ended))
        if not (event.is_new or event.is_again) or self._on_finding is None:
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
        _hand_over(self._listening(), lambda outlet: outlet.write_coverage(coverage))

    def flush(self) -> None:
        """Flush every sink and wait for it, but once only for one that hangs; say what is not safe then."""
        outlets = self._listening()
        _act(outlets, Outlet.flush, LAST_PATIENCE, [each for each in outlets if not each.is_given_up])
        for outlet in outlets:
            outlet.say_what_is_not_safe()

    def close(self) -> None:
        """Flush and close every sink, and do not wait long for those that hang; twice is fine."""
        outlets = self._outlets_of_this_process()
        self._outlets, self._describe = [], None
        until = time.monotonic() + LAST_PATIENCE
        with contextlib.ExitStack() as closing:  # each of them, whatever fails in another
            for outlet in reversed(outlets):
                closing.callback(outlet.say_what_was_lost)
            for outlet in reversed(outlets):
                closing.callback(outlet.wait, until)
            for outlet in sorted(outlets, key=lambda outlet: outlet.has_own_thread):  # threads begin first
                closing.callback(outlet.close)

    def _note_environment(self) -> None:
        """Have what the run is made with handed over to every sink, once."""
        if self._describe is None or not (outlets := self._listening()):
            return
        describe, self._describe = self._describe, None
        if (environment := describe()) is not None:
            for outlet in outlets:
                outlet.note_environment(environment)

    def _listening(self) -> list[Outlet]:
        """Return those that something is handed to in this process and on this rank."""
        # a rank that was another once has destroyed its process group since
        self._is_first = self._is_first and is_first_rank()
        outlets = self._outlets_of_this_process()
        return outlets if self._is_first else [each for each in outlets if each.is_of_every_rank]

    def _outlets_of_this_process(self) -> list[Outlet]:
        return self._outlets if os.getpid() == self._process else []

    def go_on(self) -> None:
        """Continue the files of a run that was cut."""
        for outlet in self._outlets:
            if hasattr(outlet.sink, "continues"):
                outlet.sink.continues = True


def _hand_over(outlets: Sequence[Outlet], act: Callable[[Outlet], object]) -> None:
    """Let each outlet ``act``, and wait shortly until the threads of those that keep up are done."""
    _act(outlets, act, PATIENCE, [outlet for outlet in outlets if not outlet.is_behind])


def _act(
    outlets: Sequence[Outlet], act: Callable[[Outlet], object], patience: float, awaited: Sequence[Outlet]
) -> None:
    """Let each outlet ``act``, and wait until the threads of those ``awaited`` are done, or patience ends.

    What has no thread comes last: a line of the log says what files hold. Each has its turn, whatever fails in
    another.
    """
    until = time.monotonic() + patience
    with_thread = [outlet for outlet in outlets if outlet.has_own_thread]
    without = [outlet for outlet in outlets if not outlet.has_own_thread]
    with contextlib.ExitStack() as turns:  # which takes the last first
        for outlet in reversed(without):
            turns.callback(act, outlet)
        for outlet in reversed(awaited):
            turns.callback(outlet.wait, until)
        for outlet in reversed(with_thread):
            turns.callback(act, outlet)
