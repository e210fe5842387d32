"""Follow a run in a loop: read what is new, show it, wait. On a screen, or line by line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from gradwatch.cli.keys import single_keys
from gradwatch.event_files.followed_run import FollowedRun, newest_run
from gradwatch.event_files.legible import legible
from gradwatch.event_files.reader import event_files
from gradwatch.event_files.run import Run
from gradwatch.findings import Finding
from gradwatch.views.live import LiveScreen, live_screen
from gradwatch.views.phrases import counted
from gradwatch.views.row_line import row_line

__all__ = ["Follower", "follow_in_lines", "follow_on_screen", "is_a_screen", "show_until"]

FOOTER = "q or Ctrl-C ends this view; training goes on"
_FOOTER_AT_END = "the run has ended; q or Ctrl-C ends this view"
_EVERY = 1.0  # seconds between two looks
_SHARE = 0.1  # of the time that may be spent on reading and drawing: a large run is looked at less often


class Follower:
    """The newest run in or below a directory, from when it is first seen on.

    Args:
        directory: of the run, or above it.
        since: leave out runs that were not written since then, in seconds since 1970.
    """

    def __init__(self, directory: Path, since: float = 0.0) -> None:
        self.directory, self._since = directory, since
        self._followed: FollowedRun | None = None
        self._run: Run | None = None
        self.others = 0

    def read(self) -> Run | None:
        """Return the run as it is now; None where nothing was written yet. A fault of the disk leaves it as it was."""
        with contextlib.suppress(OSError):  # the next look may have more luck
            self._run = self._read()
        return self._run

    def _read(self) -> Run | None:
        if self._followed is not None:
            return self._followed.read()
        newest = newest_run(self.directory)
        run = None if newest is None else newest.read()
        if run is None or run.written_at < self._since:
            return None
        self._followed, self.others = newest, len(event_files(self.directory)[0]) - 1
        return run


def is_a_screen() -> bool:
    """Return whether the output is a terminal on which a cursor can move."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


def follow_on_screen(directory: Path) -> None:
    """Show the run in ``directory`` on a screen of its own until q or Ctrl-C."""
    follower = Follower(directory)
    _end_as_by_ctrl_c(signal.SIGTERM, getattr(signal, "SIGHUP", None))
    with single_keys() as next_key:
        show_until(follower, lambda seconds: next_key(seconds) in ("q", "Q", "\x1b", "\x04"), FOOTER)


def show_until(
    follower: Follower,
    is_over: Callable[[float], bool],
    footer: str,
    output: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Show a run on the terminal's second screen; the first is as before afterwards, whatever ends this.

    Args:
        follower: reads the run.
        is_over: waits for at most so many seconds, and says whether to end.
        footer: the last line.
        output: returns the last lines that a script has printed.
    """
    console = Console(highlight=False)
    try:
        with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as live:
            spent = 0.0
            while not is_over(max(_EVERY, spent / _SHARE) if spent else 0.0):
                begun = time.monotonic()
                live.update(_screen(follower, console, footer, output()), refresh=True)
                spent = time.monotonic() - begun
    except KeyboardInterrupt:
        pass


def _end_as_by_ctrl_c(*signals: signal.Signals | None) -> None:
    """Leave the second screen at these signals, too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for each in signals:
        if each is not None:
            signal.signal(each, interrupt)


def _screen(follower: Follower, console: Console, footer: str, output: Sequence[str]) -> RenderableType:
    run, size = follower.read(), console.size
    if run is None:
        where = legible(str(follower.directory))
        return Text(f"gradwatch  waits for the first row of a run in {where}\n\n" + "\n".join(output) + f"\n{footer}")
    if footer == FOOTER and run.closed_after is not None:
        footer = _FOOTER_AT_END
    shown = LiveScreen(size.width, size.height, time.time(), footer, output, follower.others)
    return live_screen(run, shown)


def follow_in_lines(directory: Path) -> None:
    """Print a line for each look that finds a new row, and for each finding, until the run has ended or Ctrl-C."""
    follower = Follower(directory)
    lines = _Lines()
    where = legible(str(directory))
    _print(f"gradwatch: this is no terminal, so new rows and findings of {where} are lines; Ctrl-C ends this.")
    try:
        while True:
            run = follower.read()
            for line in lines.of(run) if run is not None else ():
                _print(line)
            if run is not None and run.closed_after is not None:
                _print(f"ended after {counted(run.closed_after, 'step')}: {counted(len(run.findings), 'finding')}")
                return
            time.sleep(_EVERY)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read the lines has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


class _Lines:
    """The lines that were not printed yet."""

    def __init__(self) -> None:
        self._last_step = -1
        self._known: dict[tuple[str, str, int], bool] = {}

    def of(self, run: Run) -> Iterator[str]:
        """Yield what is new in ``run``: the latest row, and findings that have opened or ended."""
        if len(run.steps) and run.steps[-1] > self._last_step:
            self._last_step = int(run.steps[-1])
            yield row_line(run)
        for finding, ended in zip(run.findings, run.ended, strict=True):
            if self._known.get(finding.identity) != ended:
                self._known[finding.identity] = ended
                yield _finding_line(finding, ended)


def _finding_line(finding: Finding, ended: bool) -> str:
    if ended:
        return f"ended: {finding.kind} in {finding.place}, last seen at step {finding.last_step}"
    return f"{finding.severity}: {finding.headline}"
