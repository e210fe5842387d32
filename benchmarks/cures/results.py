"""Keep results as lines of JSON, one a program, written at once, so that a run that was broken off can go on."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cures.form import Named
from benchmarks.cures.forms import silence

Result = dict[str, Any]


def read(path: Path) -> list[Result]:
    """Return the results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def go_on(
    path: Path,
    programs: Iterable[Named],
    work: Callable[[Named], Result],
    seconds: float,
    only: Sequence[str] | None,
) -> None:
    """Work on those of ``programs`` that are not in ``path`` yet, for about so many seconds.

    Args:
        path: of the results; each is added to it.
        programs: in the order in which they are worked on.
        work: a program → its result.
        seconds: after which no other one is begun.
        only: names; None for all.
    """
    silence()
    warnings.simplefilter("ignore")
    end = time.perf_counter() + seconds
    known = {each["program"] for each in read(path)}
    for program in programs:
        if program.name in known or (only and program.name not in only):
            continue
        if time.perf_counter() > end:
            return
        result = work(program)
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(result, flush=True)
