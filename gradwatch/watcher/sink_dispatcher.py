"""Hand rows and findings to the sinks and to ``on_finding``, none of which may stop the training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.sinks import Row, Sink
from gradwatch.sinks.log import Log
from gradwatch.watcher.diagnosis import FindingUpdate

__all__ = ["SinkDispatcher"]


class SinkDispatcher:
    """The sinks, the log among them, and the user's callback; one that raises is left out with one warning.

    Args:
        sinks: the user's, and ours.
        on_finding: called with each finding as it opens.
    """

    def __init__(self, sinks: Sequence[Sink], on_finding: Callable[[Finding], None] | None) -> None:
        self._sinks, self._on_finding = [*sinks, Log()], on_finding

    def add(self, sink: Sink) -> None:
        """Hand everything to ``sink``, too, from now on."""
        self._sinks.append(sink)

    def write_row(self, row: Row) -> None:
        """Hand ``row`` to every sink."""
        self._each("write_row", row)

    def write_finding(self, event: FindingUpdate) -> None:
        """Hand a finding to every sink: as it opens, goes on or ends; to ``on_finding``, too, where it opens."""
        self._each("write_finding", event.finding, event.ended)
        if not event.is_new or self._on_finding is None:
            return
        try:
            self._on_finding(event.finding)
        except Exception:
            self._on_finding = None
            logger.warning("gradwatch: on_finding raised; it is not called again, training goes on.", exc_info=True)

    def flush(self) -> None:
        """Flush every sink."""
        self._each("flush")

    def close(self) -> None:
        """Flush and close every sink; twice is fine."""
        self._each("flush")
        self._each("close")
        self._sinks = []

    def go_on(self) -> None:
        """Continue the files of a run that was cut."""
        for sink in self._sinks:
            if hasattr(sink, "continues"):
                sink.continues = True

    def _each(self, verb: str, *args: object) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, verb)(*args)
            except Exception as error:
                self._sinks.remove(sink)
                logger.warning(
                    "gradwatch: %s failed to %s (%s: %s); it is left out from here on, training goes on.",
                    type(sink).__name__, verb.replace("_", " "), type(error).__name__, error,
                )  # fmt: skip
                if verb != "close":
                    with contextlib.suppress(Exception):
                        sink.close()  # its files and threads are not left open
