"""Launch programs on several ranks: real processes under ``torchrun``, gloo, and a limit of time that ends in words.

A program is a function of a module's ``PROGRAMS``. It runs on every rank and returns plain values. They go as JSON into
a file of that program and that rank, so that nothing of two ranks is interleaved. One launch runs many programs,
each in a process group of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.forked_python import run
from tests.once import made_once

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150  # that one program may take on a busy machine; alone, most take less than one
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    "OMP_NUM_THREADS": "1",  # torchrun itself sets it to 1, with a warning
}


def counted_too() -> dict[str, str]:
    """Return the variables by which lines of other processes count in the coverage of these tests, if any."""
    coverage = sys.modules.get("coverage")
    if coverage is None or coverage.Coverage.current() is None:
        return {}
    return {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(ROOT / ".coverage")}


@dataclass(frozen=True)
class Ended:
    """A launch that has ended, or that was ended because it took too long.

    Attributes:
        status: the exit status of ``torchrun``; None if the limit of time ended it.
        output: what each rank has written to its streams, and the launcher.
    """

    status: int | None
    output: str


def torchrun(world: int, command: Sequence[str], directory: Path, seconds: float, **variables: str) -> Ended:
    """Run ``command``, a script or ``-m`` and a module, on ``world`` ranks; a launch that takes too long is ended.

    Args:
        world: the number of ranks.
        command: what follows the options of ``torchrun``.
        directory: the working directory. The streams of the ranks go below it, a file each.
        seconds: the limit of time.
        variables: further environment variables.
    """
    streams = directory / "streams"
    options = ("--standalone", "--nproc-per-node", str(world), "--redirects", "3", "--log-dir", str(streams))
    with (directory / "launcher").open("w+", encoding="utf-8") as launcher:
        process = subprocess.Popen(
            [*TORCHRUN, *options, *command],
            cwd=directory,
            env={**ENVIRONMENT, **counted_too(), **variables},
            stdout=launcher,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
        launcher.seek(0)
        return Ended(status, launcher.read() + "".join(_streams(streams)))


def fork_ranks(world: int, arguments: Sequence[str], directory: Path, seconds: float) -> Ended:
    """Run ``worker.py`` on ``world`` ranks as ``torchrun`` would, with all that they import loaded once for all.

    A rank that fails ends the others. The tests that launch scripts do so by ``torchrun`` itself.
    """
    command = [sys.executable, "-m", "tests.distributed.worker", str(world), *arguments]
    try:
        done = run(command, cwd=directory, env={**ENVIRONMENT, **counted_too()}, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        return Ended(None, str(error))
    return Ended(done.returncode, done.stdout + done.stderr)


def end(process: subprocess.Popen[Any]) -> None:
    """Let the launcher end its ranks, which have sessions of their own, and end the launcher."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _streams(directory: Path) -> Iterator[str]:
    for path in sorted(directory.rglob("std*.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield f"\n--- rank {path.parent.name}, {path.stem} ---\n{text}"


class Results:
    """What programs have returned on each rank, or why they have not.

    They run in one launch, whichever processes of these tests ask for them. If one of them hangs, or ends its process,
    another launch runs those after it.

    Args:
        world: the number of ranks.
        module: the module whose ``PROGRAMS`` has the programs.
        names: which of them to run, in this order.
        temporary: pytest's own directories.
    """

    def __init__(self, world: int, module: str, names: Sequence[str], temporary: pytest.TempPathFactory) -> None:
        self._world = world
        launch = functools.partial(self._launch, module, names)
        self._directory, self._output = made_once(temporary, f"{module}-{world}", launch)

    def _launch(self, module: str, names: Sequence[str], directory: Path) -> tuple[str, dict[str, str]]:
        """Run the programs; return where they leave results, and the output of launches that left some out."""
        results, outputs = directory / "results", {}
        results.mkdir(exist_ok=True)
        left = list(names)
        while left:
            place = directory / f"launch{len(left)}"
            place.mkdir(exist_ok=True)
            ended = fork_ranks(self._world, (str(results), module, *left), place, SECONDS * 2 + 3 * len(left))
            missing = [
                index
                for index, name in enumerate(left)
                if not all(path.exists() for path in self._paths(results, name))
            ]
            if not missing:
                break
            outputs[left[missing[0]]] = f"status {ended.status}\n{ended.output}"
            left = left[missing[0] + 1 :]
        return str(results), outputs

    def of(self, name: str) -> list[Any]:
        """Return what ``name`` has returned, a value a rank.

        Raises:
            AssertionError: with the output of all ranks, if it raised, hung or ended its process.
        """
        assert name not in self._output, f"{name!r} hung, or ended its process; {self._output[name]}"
        answers = [json.loads(path.read_text(encoding="utf-8")) for path in self._paths(Path(self._directory), name)]
        errors = [f"--- rank {rank} ---\n{a['error']}" for rank, a in enumerate(answers) if "error" in a]
        assert not errors, f"{name!r} raised:\n" + "\n".join(errors)
        return [answer["result"] for answer in answers]

    def _paths(self, results: Path, name: str) -> list[Path]:
        return [results / f"{file_name(name)}.{rank}.json" for rank in range(self._world)]


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def same(one: Any, other: Any, tolerance: float = 0.0, floor: float = 0.0) -> bool:
    """Return True if two nested values are equal: numbers to a relative tolerance, or to ``floor``; NaN like NaN."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], tolerance, floor) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b, tolerance, floor) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int) and isinstance(other, float | int):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=floor)
    return one == other


def same_weights(mine: Mapping[str, Any], true: Mapping[str, Any], tolerance: float) -> bool:
    """Return True if each of ``mine`` is the true weight of that name, but for ``tolerance`` of its norm."""
    return all(distance(weight, true[name]) <= tolerance for name, weight in mine.items())


def distance(mine: Any, true: Any) -> float:
    """Return the norm of the difference ÷ the norm of what is true."""
    ours, theirs = list(entries(mine)), list(entries(true))
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    return math.hypot(*differences) / math.hypot(*theirs)


def entries(nested: Any) -> Iterator[float]:
    if isinstance(nested, list):
        for part in nested:
            yield from entries(part)
    else:
        yield nested
