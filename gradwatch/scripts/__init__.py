"""Watch any training script without a change to it, as ``gradwatch run`` does.

The program ends as it would without us. A summary goes to stderr, and event files to a directory. Torch is loaded no
earlier than the program loads it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from gradwatch.hooks.logger import logger
from gradwatch.scripts import program as programs
from gradwatch.scripts.imports import after_import
from gradwatch.scripts.program import Program

if TYPE_CHECKING:
    from gradwatch.scripts.optimizer_tracker import OptimizerTracker

__all__ = ["Program", "run_watched"]


def run_watched(program: Program, log_dir: Path, clip: float | str | None, fail_on: Collection[str]) -> None:
    """Run ``program`` and watch what it trains.

    Args:
        program: what to run.
        log_dir: where event files go.
        clip: as in ``gradwatch.watch``.
        fail_on: kinds of findings that turn the program's status 0 into 1.

    Raises:
        SystemExit: always, with the status.
    """
    watched = _Watched(log_dir.absolute(), clip)  # the program may change its directory
    stop_waiting = after_import("torch", watched.begin)
    end = programs.run_program(program)
    stop_waiting()
    kinds = watched.end(has_failed=end.status != 0, raised=end.raised)
    programs.leave(end, otherwise=int(not kinds.isdisjoint(fail_on)))


def _last_words(tracker: OptimizerTracker | None, raised: BaseException | None) -> str | None:
    """Return what a model was given last that held NaN, where the script died of it."""
    if tracker is None or raised is None:
        return None
    from gradwatch.explain.last_words import last_words

    return last_words(raised)


class _Watched:
    """A tracker that begins as soon as torch is loaded. Its faults never reach the program."""

    def __init__(self, log_dir: Path, clip: float | str | None) -> None:
        self._log_dir, self._clip = log_dir, clip
        self._tracker: OptimizerTracker | None = None

    def begin(self) -> None:
        try:
            from gradwatch.scripts.optimizer_tracker import OptimizerTracker

            tracker = OptimizerTracker(self._log_dir, self._clip)
            tracker.begin()
            self._tracker = tracker
        except Exception:
            logger.warning("gradwatch: this run cannot be watched:", exc_info=True)

    def end(self, *, has_failed: bool, raised: BaseException | None = None) -> set[str]:
        """Print the summary, and return the kinds of findings."""
        tracker = self._tracker
        if tracker is not None and tracker.is_in_child:
            return set()
        try:
            from gradwatch.scripts.summary import summary_text

            if tracker is not None:
                tracker.end()
            summaries = [] if tracker is None else tracker.summaries
            if tracker is None or tracker.is_first_rank:
                sys.stderr.write(
                    summary_text(summaries, has_failed=has_failed, last_words=_last_words(tracker, raised))
                )
            return {finding.kind for summary in summaries for finding in summary.findings}
        except Exception:
            logger.warning("gradwatch: the summary failed:", exc_info=True)
            return set()
