"""Watch any training script without a change to it, as ``gradwatch run`` does.

The program ends as it would without us. A summary goes to stderr, and event files to a directory. Torch is loaded no
earlier than the program loads it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradwatch.findings import UNKNOWN_STATUS
from gradwatch.hooks.logger import logger
from gradwatch.scripts import program as programs
from gradwatch.scripts.imports import after_import
from gradwatch.scripts.program import Program

if TYPE_CHECKING:
    from gradwatch.scripts.optimizer_tracker import OptimizerTracker

__all__ = ["Program", "run_watched"]


def run_watched(
    program: Program, log_dir: Path, clip: float | str | None, fail_on: Collection[str], log_every: int | None = None
) -> None:
    """Run ``program`` and watch what it trains.

    Args:
        program: what to run.
        log_dir: where event files go.
        clip: as in ``gradwatch.watch``.
        fail_on: kinds of findings that turn the program's status 0 into 1. Steps that were not measured, or not judged
            by every rule, turn it into 7, since nobody has looked for those kinds there.
        log_every: as ``log_every_n_steps`` of ``gradwatch.watch``; None for its default, and more rows at first.

    Raises:
        SystemExit: always, with the status.
    """
    watched = _Watched(log_dir.absolute(), clip, log_every)  # the program may change its directory
    stop_waiting = after_import("torch", watched.begin)
    end = programs.run_program(program)
    stop_waiting()
    outcome = watched.end(has_failed=end.status != 0, raised=end.raised)
    programs.leave(end, otherwise=outcome.status(fail_on))


def _last_words(raised: BaseException) -> str | None:
    """Return what a model was given last that held NaN, where the script died of it."""
    from gradwatch.explain.last_words import last_words

    return last_words(raised)


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a run: the kinds that were found, and whether a part of it was not measured."""

    kinds: frozenset[str] = frozenset()
    is_unmeasured: bool = False

    def status(self, fail_on: Collection[str]) -> int:
        """Return the exit status of a run that was to be free of ``fail_on``: 0 where it is known to be so."""
        if not self.kinds.isdisjoint(fail_on):
            return 1
        return UNKNOWN_STATUS if fail_on and self.is_unmeasured else 0


class _Watched:
    """A tracker that begins as soon as torch is loaded. Its faults never reach the program."""

    def __init__(self, log_dir: Path, clip: float | str | None, log_every: int | None) -> None:
        self._log_dir, self._clip, self._log_every = log_dir, clip, log_every
        self._tracker: OptimizerTracker | None = None
        self._has_failed = False

    def begin(self) -> None:
        try:
            from gradwatch.scripts.optimizer_tracker import OptimizerTracker

            tracker = OptimizerTracker(self._log_dir, self._clip, self._log_every)
            tracker.begin()
            self._tracker = tracker
        except Exception:
            self._has_failed = True
            logger.warning("gradwatch: this run cannot be watched, so nothing is known of it:", exc_info=True)

    def end(self, *, has_failed: bool, raised: BaseException | None = None) -> _Outcome:
        """Print the summary, and return what was found."""
        tracker = self._tracker
        if self._has_failed or (tracker is not None and tracker.is_in_child):
            return _Outcome(is_unmeasured=self._has_failed)
        try:
            return _summed_up(tracker, has_failed, raised)
        except Exception:
            logger.warning("gradwatch: the summary failed:", exc_info=True)
            return _Outcome(is_unmeasured=True)


def _summed_up(tracker: OptimizerTracker | None, has_failed: bool, raised: BaseException | None) -> _Outcome:
    """Print the summary on the first rank, and return what was found."""
    from gradwatch.scripts.summary import summary_text

    if tracker is None:
        sys.stderr.write(summary_text([], has_failed=has_failed))
        return _Outcome()
    tracker.end()
    summaries, left_out = tracker.summaries, tracker.left_out
    if tracker.is_first_rank:
        words = None if raised is None else _last_words(raised)
        sys.stderr.write(summary_text(summaries, has_failed=has_failed, last_words=words, left_out=left_out))
    kinds = frozenset(finding.kind for summary in summaries for finding in summary.findings)
    return _Outcome(kinds, left_out > 0 or any(summary.unmeasured or summary.unjudged for summary in summaries))
