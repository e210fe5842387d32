"""Runs read back from event files; no torch needed.

Enters: a directory. Leaves: a ``Run`` for each directory in it that holds event files of gradwatch's
(sinks/tensorboard.py says what is in them). Knows nothing of how a run is shown.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from gradwatch.event_files.content import Row, legible, parse
from gradwatch.event_files.decode import Told, UnreadableError
from gradwatch.event_files.records import Damage, records
from gradwatch.event_files.run import Run, Series
from gradwatch.event_files.timeline import Timeline

__all__ = ["NoRunError", "Run", "Series", "legible", "read_runs"]

Reason = Literal["missing", "empty", "foreign", "corrupt"]


class NoRunError(Exception):
    """No run could be read.

    Attributes:
        reason: no such directory; no event files in it; event files without gradwatch's figures; damaged ones.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_runs(directory: Path, tell: Callable[[str], object] = lambda problem: None) -> list[Run]:
    """Every run in ``directory``, itself included, by name; one that is still being written as far as it is by now.

    Args:
        directory: where to look, and below it.
        tell: is called with what could not be read at all beside the runs that could.

    Raises:
        NoRunError: where there is none.
    """
    shown = legible(str(directory))
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise NoRunError("missing", f"{shown}: expected the directory of a run, found {found}.")
    by_directory, problems = _event_files(directory)
    runs = []
    for where, files in by_directory.items():
        read = _read(legible(str(where)), files)
        if isinstance(read, Run):
            runs.append(read)
        else:
            problems += read.problems
    if not runs:
        _refuse(shown, by_directory, problems)
    for problem in problems:
        tell(problem)
    return runs


def _refuse(shown: str, by_directory: Mapping[Path, Sequence[Path]], problems: Sequence[str]) -> NoReturn:
    """Says why nothing was read, the gravest reason first."""
    if problems:
        raise NoRunError("corrupt", f"{shown}: nothing of gradwatch's can be read: {'; '.join(problems[:3])}.")
    if not any(path.stat().st_size for files in by_directory.values() for path in files):
        raise NoRunError(
            "empty",
            f"{shown}: expected event files (*tfevents*), found {'empty ones' if by_directory else 'none'}. "
            "gradwatch writes them to watch(log_dir=…), or where Lightning's TensorBoardLogger does.",
        )
    raise NoRunError(
        "foreign",
        f"{shown}: these event files hold nothing of gradwatch's. Watch the run: gradwatch.watch(…, log_dir=…), or "
        "GradWatch among Lightning's callbacks.",
    )


@dataclass(frozen=True)
class _NoRun:
    problems: list[str]


def _event_files(directory: Path) -> tuple[dict[Path, list[Path]], list[str]]:
    """Event files by directory; within one, from the oldest on: their names begin with the time.

    Returns:
        The files, and which directories cannot be looked into.
    """
    found: dict[Path, list[Path]] = {}
    refused: list[OSError] = []
    for where, below, names in os.walk(directory, onerror=refused.append):
        below.sort()
        files = [path for name in sorted(names) if "tfevents" in name and (path := Path(where, name)).is_file()]
        if files:
            found[Path(where)] = files
    return found, [f"{legible(str(error.filename))}: cannot be read: {error.strerror}" for error in refused]


def _read(name: str, files: list[Path]) -> Run | _NoRun:
    timeline, problems = Timeline(), list[str]()
    for path in files:
        problems += _read_file(path, timeline)
    if not timeline:
        return _NoRun([f"{name}: {problem}" for problem in problems])
    return timeline.build(name, max(path.stat().st_mtime for path in files), problems)


def _read_file(path: Path, timeline: Timeline) -> list[str]:
    """Adds what ``path`` holds to ``timeline``; returns what could not be read."""
    found: list[Row | Told] = []
    problems: Counter[str] = Counter()
    try:
        for record in records(path):
            if isinstance(record, Damage):
                problems[record.words] += 1
                continue
            try:
                if (written := parse(record)) is not None:
                    found.append(written)
            except UnreadableError as error:
                problems[str(error).removesuffix(".")] += 1
    except OSError as error:
        problems[f"cannot be read: {error.strerror}"] += 1
    timeline.add_file(found)
    file = legible(path.name)
    return [f"{file}: {words}" + (f" ({count} times)" if count > 1 else "") for words, count in problems.items()]
