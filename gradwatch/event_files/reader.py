"""Read runs back from the event files in a directory; no torch is needed.

``gradwatch.sinks.tensorboard`` writes them, ``gradwatch.views`` shows what was read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from gradwatch.event_files.assemble import RunAssembler
from gradwatch.event_files.growing_file import GrowingFile
from gradwatch.event_files.legible import legible
from gradwatch.event_files.run import Run

__all__ = ["NoRunError", "event_files", "files_in", "read_runs"]

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
    by_directory, problems = event_files(directory)
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


def event_files(directory: Path) -> tuple[dict[Path, list[Path]], list[str]]:
    """Find event files by directory; within one, from the oldest on: names hold the time, and count those of a process.

    Returns:
        The files, and which directories cannot be looked into.
    """
    found: dict[Path, list[Path]] = {}
    refused: list[OSError] = []
    for where, below, names in os.walk(directory, onerror=refused.append):
        below.sort()
        if files := _files_among(where, names):
            found[Path(where)] = files
    return found, [f"{legible(str(error.filename))}: cannot be read: {error.strerror}" for error in refused]


def files_in(directory: Path) -> list[Path]:
    """Return the event files in ``directory`` itself, from the oldest on.

    Raises:
        OSError: if it cannot be looked into.
    """
    return _files_among(directory, os.listdir(directory))


def _files_among(where: str | Path, names: Iterable[str]) -> list[Path]:
    named = [Path(where, name) for name in sorted(names, key=_in_order) if "tfevents" in name]
    return [path for path in named if path.is_file()]


def _in_order(name: str) -> list[str | int]:
    """Return what sorts names of files by the numbers in them: the tenth of one second comes after the ninth."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _read(name: str, files: list[Path]) -> Run | _NoRun:
    assembler, problems = RunAssembler(), list[str]()
    for path in files:
        file = GrowingFile(path)
        file.read_into(assembler)
        problems += file.problems()
    if not assembler:
        return _NoRun([f"{name}: {problem}" for problem in problems])
    return assembler.build(name, max(path.stat().st_mtime for path in files), problems)
