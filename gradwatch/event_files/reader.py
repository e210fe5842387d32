"""Read runs back from the event files in a directory; no torch is needed.

``gradwatch.sinks.tensorboard`` writes them, ``gradwatch.views`` shows what was read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from gradwatch.event_files.assemble import RunAssembler
from gradwatch.event_files.decode import UnreadableError
from gradwatch.event_files.event import decode_event
from gradwatch.event_files.legible import legible
from gradwatch.event_files.records import Damage, records
from gradwatch.event_files.run import FindingEvent, LoggedRow, Run

__all__ = ["NoRunError", "read_runs"]

Reason = Literal["missing", "empty", "foreign", "corrupt"]


class NoRunError(Exception):
    """The error of a directory in which no run could be read.

    Attributes:
        reason: no such directory; no event files in it; event files without gradwatch's figures; damaged ones.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_runs(directory: Path, tell: Callable[[str], object] = lambda problem: None) -> list[Run]:
    """Return every run in and below ``directory``, by name; one that is still being written as far as it is by now.

    Args:
        directory: where to look, and below it.
        tell: is called with what could not be read at all beside the runs that could.

    Raises:
        NoRunError: if there is none.
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
    """Say why nothing was read, the gravest reason first."""
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
    """Find event files by directory; within one, from the oldest on: their names begin with the time.

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
    assembler, problems = RunAssembler(), list[str]()
    for path in files:
        problems += _read_file(path, assembler)
    if not assembler:
        return _NoRun([f"{name}: {problem}" for problem in problems])
    return assembler.build(name, max(path.stat().st_mtime for path in files), problems)


def _read_file(path: Path, assembler: RunAssembler) -> list[str]:
    """Add what ``path`` holds to ``assembler``; return what could not be read.

    A later file of the same run wins from its first step on.
    """
    problems: Counter[str] = Counter()
    found = _decoded(path, problems)
    steps = [each.step if isinstance(each, LoggedRow) else each.finding.raised_step for each in found if _is_new(each)]
    if steps:
        assembler.begin_anew(min(steps))
    for each in found:
        try:
            assembler.add(each)
        except UnreadableError as error:
            problems[_problem(error)] += 1
    file = legible(path.name)
    return [f"{file}: {words}" + (f" ({count} times)" if count > 1 else "") for words, count in problems.items()]


def _decoded(path: Path, problems: Counter[str]) -> list[LoggedRow | FindingEvent]:
    """Return the rows and findings in ``path``; count what could not be read in ``problems``."""
    found: list[LoggedRow | FindingEvent] = []
    try:
        for record in records(path):
            if isinstance(record, Damage):
                problems[record.words] += 1
                continue
            try:
                decoded = decode_event(record)
            except UnreadableError as error:
                problems[_problem(error)] += 1
                continue
            if decoded is not None:
                found.append(decoded)
    except OSError as error:
        problems[f"cannot be read: {error.strerror}"] += 1
    return found


def _is_new(found: LoggedRow | FindingEvent) -> bool:
    """Return whether this file tells it first: the finding of an update or an end may have opened before the cut."""
    return isinstance(found, LoggedRow) or found.is_opening


def _problem(error: UnreadableError) -> str:
    return str(error).removesuffix(".")
