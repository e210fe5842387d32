"""Run one program in a process of its own, bare or under ``gradwatch run``, and keep what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.external import feeds
from benchmarks.external.program import External
from gradwatch.event_files.reader import read_runs
from gradwatch.views.plain import runs_as_json

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = Path(__file__).parent / "adapters"
DRIVERS = Path(__file__).parent / "drivers"
DRIVER = "baselines.py"
GRACE_SECONDS = 20
MOST_OUTPUT = 4000


@dataclass(frozen=True)
class Places:
    """Where things are on this machine.

    Attributes:
        repositories: the folder of the fetched repositories, each under its short name.
        scratch: a folder for the copies that programs run in.
        python: the interpreter that has torch and what the programs import.
    """

    repositories: Path
    scratch: Path
    python: Path


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        status: the exit status; None where the time limit ended the run.
        seconds: how long it took.
        output: the last lines of standard output and error.
        record: of a bare run: updates, losses and gradient norms.
        findings: of a watched run: every field of each finding.
        steps: of a watched run: updates that gradwatch saw.
    """

    status: int | None
    seconds: float
    output: str
    record: dict[str, Any] | None = None
    findings: tuple[dict[str, Any], ...] = ()
    steps: int = 0


def run_bare(program: External, places: Places, limit: float) -> Outcome:
    """Run ``program`` without gradwatch; the record says whether it trained."""
    folder = _copy(program, places)
    record = places.scratch / f"{folder.name}.json"
    record.unlink(missing_ok=True)
    arguments = [Path(program.path).name, *program.arguments]
    variables = _environment(program, places) | {"EXTERNAL_RECORD": str(record)}
    status, seconds, output = _run(arguments, folder, variables, limit, places, _modules(program))
    read = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
    return Outcome(status, seconds, output, read)


def run_watched(program: External, places: Places, limit: float) -> Outcome:
    """Run ``program`` under ``gradwatch run`` and read the findings from its event files."""
    folder = _copy(program, places)
    logs = places.scratch / f"{folder.name}-logs"
    shutil.rmtree(logs, ignore_errors=True)
    arguments = ["-m", "gradwatch", "run", "--log-dir", str(logs), Path(program.path).name, *program.arguments]
    variables = _environment(program, places)
    status, seconds, output = _run(arguments, folder, variables, limit, places, _modules(program))
    findings = _read(logs)
    steps = [int(count) for count in re.findall(r"gradwatch: (?:\S+: )?(\d+) steps?, ", output)]
    return Outcome(status, seconds, output, None, tuple(findings), max(steps, default=0))


def run_kept(program: External, places: Places, limit: float, file: Path) -> Outcome:
    """Run ``program`` until what it trains is in ``file``; an adapter writes that (``kept.py``)."""
    folder = _copy(program, places)
    arguments = [Path(program.path).name, *program.arguments]
    variables = _environment(program, places) | {"EXTERNAL_KEPT": str(file)}
    return Outcome(*_run(arguments, folder, variables, limit, places, _modules(program)))


def _copy(program: External, places: Places) -> Path:
    """Copy the script's folder, so that nothing is written into the fetched repository; add the files that it reads."""
    source = (_repository(program, places) / program.path).parent
    folder = places.scratch / program.name.replace("/", "-").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git", "*.png", "*.jpg", "*.gif"))
    for file, content in program.feed.items():
        feeds.write(content, folder / file)
    return folder


def _repository(program: External, places: Places) -> Path:
    """Return the folder of the fetched repository, or that of our drivers of an installed package."""
    return places.repositories / program.repository if program.path != DRIVER else DRIVERS


def _environment(program: External, places: Places) -> dict[str, str]:
    paths = [ROOT, ADAPTERS, *(_repository(program, places) / folder for folder in program.folders)]
    return {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "EXTERNAL_ADAPTERS": ",".join(("updates", *program.adapters)),
        "EXTERNAL_UPDATES": str(program.updates),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **program.environment,
    }


def _run(
    arguments: list[str],
    folder: Path,
    variables: dict[str, str],
    limit: float,
    places: Places,
    modules: tuple[str, ...],
) -> tuple[int | None, float, str]:
    """Run ``python ARGUMENTS``; interrupt it after ``limit`` seconds, as Ctrl-C would, and kill it if it goes on.

    It starts as a copy of a process that has imported ``modules``.
    """
    server = _server(places, modules)
    file = places.scratch / f"{folder.name}.out"
    task = {"arguments": arguments, "folder": str(folder), "variables": variables, "output": str(file)}
    start = time.monotonic()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(task) + "\n")
    server.stdin.flush()
    process = int(server.stdout.readline())
    timers = [
        threading.Timer(limit, _signal, (process, signal.SIGINT)),
        threading.Timer(limit + GRACE_SECONDS, _signal, (process, signal.SIGKILL)),
    ]
    for timer in timers:
        timer.start()
    status = int(server.stdout.readline())
    for timer in timers:
        timer.cancel()
    seconds = round(time.monotonic() - start, 1)
    output = file.read_text(encoding="utf-8", errors="replace")
    return None if seconds >= limit else status, seconds, output[-MOST_OUTPUT:]


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


_servers = threading.local()


def _server(places: Places, modules: tuple[str, ...]) -> subprocess.Popen[str]:
    """Return this thread's process that has imported ``modules``."""
    known = vars(_servers)
    key = " ".join(modules)
    if key not in known:
        command = [str(places.python), str(Path(__file__).with_name("forks.py")), *modules]
        variables = os.environ | {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        known[key] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    found: subprocess.Popen[str] = known[key]
    return found


def _modules(program: External) -> tuple[str, ...]:
    """Return what to import before the program starts."""
    return ("torch", "sklearn.datasets", *(("keras",) if "keras_torch" in program.adapters else ()))


def _read(logs: Path) -> list[dict[str, Any]]:
    """Return the findings of all models of a run, as ``gradwatch report --json`` prints them."""
    if not logs.exists():
        return []
    runs = json.loads(runs_as_json(list(read_runs(logs, print))))
    runs = runs if isinstance(runs, list) else [runs]  # one run is an object by itself
    return [finding for run in runs for finding in run["findings"]]
