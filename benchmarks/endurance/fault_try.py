"""A short training under gradwatch in which one sort of call fails: what every try of the attack ``faults`` makes.

It clips, it leaves updates out that are not finite, and it writes TensorBoard files, JSON lines and CSV. Two steps see
a NaN. A try says what became of the training and of what was to be written.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.ma  # noqa: F401  # what follows is loaded here, so that a forked try imports next to nothing
import tensorboard.plugins.hparams.metadata  # noqa: F401
import torch
from torch import nn

import gradwatch
import gradwatch.sinks.tensorboard
import gradwatch.views.terminal
from benchmarks.endurance.boundary import Boundary
from gradwatch.cli.report import command as report
from gradwatch.event_files.reader import NoRunError, read_runs
from gradwatch.sinks.csv import Csv
from gradwatch.sinks.jsonl import JsonLines

__all__ = ["NAN_STEPS", "STEPS", "Outcome", "attempt"]

STEPS, NAN_STEPS = 9, (4, 6)
torch.compiler.disable(lambda: None)  # loads the compiler
_WATCH = gradwatch.watch  # loads the watcher
_PACKAGE = str(Path(gradwatch.__file__).parent)
_TRANSPARENT = frozenset({("followed_function.py", "wrapper"), ("module_calls.py", "call")})
_EVERY = 3  # steps between two rows


@dataclass
class Outcome:
    """What became of a try.

    Attributes:
        stopped: the traceback of an exception that gradwatch let through; "" for none.
        weights: a digest of every weight and of the optimizer's state at the end.
        found: NaN steps that ``watcher.findings`` covers.
        is_called_whole: whether ``repr(watcher)`` says nothing of steps that were not measured, or not looked at.
        on_disk: the NaN steps that findings in each sort of file cover.
        rows: steps of the rows that each sort of file holds.
        status: exit status of ``gradwatch report --fail-on any``.
        says_healthy: whether the report calls the run healthy.
        log: lines that were logged.
        seen, refused, places: of the boundary.
        step: at which the first fault came.
        is_over: whether it has passed.
    """

    stopped: str = ""
    weights: str = ""
    found: list[int] = field(default_factory=list)
    is_called_whole: bool = True
    on_disk: dict[str, list[int]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    status: int = -1
    says_healthy: bool = False
    log: list[str] = field(default_factory=list)
    seen: int = 0
    refused: int = 0
    places: list[str] = field(default_factory=list)
    step: int = STEPS
    is_over: bool = True

    @property
    def says_loss(self) -> bool:
        """Return whether a line says that something is missing."""
        words = ("fault in gradwatch", "never took", "lost", "not measured", "failed to")
        return any(word in line for line in self.log for word in words)


class _Lines(logging.Handler):
    """A handler of the user's: keeps lines, and may fail."""

    def __init__(self, boundary: Boundary, outcome: Outcome) -> None:
        super().__init__()
        self._boundary, self._outcome = boundary, outcome

    def emit(self, record: logging.LogRecord) -> None:
        self._boundary.pass_by_hand("logging")
        self._outcome.log.append(record.getMessage()[:300])


class _OwnSink:
    """A sink of the user's, which may fail."""

    def __init__(self, boundary: Boundary) -> None:
        self._boundary = boundary

    def write_row(self, row: object) -> None:
        self._boundary.pass_by_hand("callback")

    def write_finding(self, finding: object, ended: bool) -> None:
        self._boundary.pass_by_hand("callback")

    def flush(self) -> None:
        self._boundary.pass_by_hand("callback")

    def close(self) -> None:
        self._boundary.pass_by_hand("callback")


def attempt(
    sort: str = "write",
    at: int = -1,
    for_good: bool = False,
    around: Callable[[int, Path], contextlib.AbstractContextManager[object]] = lambda step, where: (
        contextlib.nullcontext()
    ),
    where: Path | None = None,
) -> Outcome:
    """Train once, and say what became of it.

    Args:
        sort: which calls may fail.
        at: the number of the call that fails; -1 for none.
        for_good: every later one fails, too.
        around: returns a context around each step, and around the end of the run, which is step ``STEPS``.
        where: the directory for all files; None makes one.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        directory = where or Path(made)
        outcome = Outcome()
        boundary = Boundary(_PACKAGE, frozenset({__file__}), _TRANSPARENT, sort, at, for_good=for_good)
        _train(boundary, outcome, directory, around)
        outcome.seen, outcome.refused = boundary.seen, boundary.refused
        outcome.places, outcome.step, outcome.is_over = boundary.places, boundary.first_at, not for_good
        _look_at_files(outcome, directory)
    return outcome


def _train(
    boundary: Boundary,
    outcome: Outcome,
    directory: Path,
    around: Callable[[int, Path], contextlib.AbstractContextManager[object]],
) -> None:
    logger, handler = logging.getLogger("gradwatch"), _Lines(boundary, outcome)
    logger.addHandler(handler)
    logger.propagate = False
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    sinks = [JsonLines(directory / "run.jsonl"), Csv(directory / "run.csv"), _OwnSink(boundary)]  # these may raise
    told: list[int] = []

    def tell(finding: gradwatch.Finding) -> None:
        boundary.pass_by_hand("callback")
        told.append(finding.step)

    watcher = _WATCH(  # which may raise as well: nothing is trained yet
        model,
        optimizer,
        log_dir=directory / "tensorboard",
        clip=1.0,
        on_nonfinite="skip",
        log_every_n_steps=_EVERY,
        sinks=sinks,
        on_finding=tell,
    )
    try:
        with boundary.armed():
            for step in range(STEPS):
                boundary.begin_step(step)
                with around(step, directory):
                    _step(model, optimizer, step)
            boundary.begin_step(STEPS)
            with around(STEPS, directory):
                watcher.close()
    except BaseException:
        outcome.stopped = traceback.format_exc()
    logger.removeHandler(handler)
    outcome.weights = _digest(model, optimizer)
    outcome.found = _covered((each.step, each.last_step) for each in watcher.findings if each.kind == "nonfinite")
    outcome.is_called_whole = not any(words in repr(watcher) for words in ("not measured", "not looked for"))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = torch.randn(16, 6)
    if step in NAN_STEPS:
        x[0, 0] = torch.nan
    loss = 30 * (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    tensors = [*model.state_dict().values()]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in tensors)).hexdigest()


def _covered(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Return the NaN steps that lie within ``spans``, (first step, last step) of findings."""
    known = list(spans)
    return [step for step in NAN_STEPS if any(first <= step <= last for first, last in known)]


def _look_at_files(outcome: Outcome, directory: Path) -> None:
    """Read back what was written, as people would."""
    lines = [json.loads(line) for line in _lines_of(directory / "run.jsonl")]
    outcome.rows["JSON lines"] = [line["step"] for line in lines if line["event"] == "row"]
    outcome.on_disk["JSON lines"] = _covered(_spans_of(lines))
    outcome.on_disk["CSV"] = _covered(_spans_of(csv.DictReader(_lines_of(directory / "run.findings.csv"))))
    outcome.rows["CSV"] = [int(line["step"]) for line in csv.DictReader(_lines_of(directory / "run.csv"))]
    try:
        runs = list(read_runs(directory / "tensorboard", lambda problem: None))
    except (NoRunError, OSError):
        runs = []
    findings = [each.as_dict() for run in runs for each in run.findings]
    outcome.on_disk["TensorBoard"] = _covered(_spans_of(findings))
    outcome.rows["TensorBoard"] = [int(step) for run in runs for step in run.steps]
    outcome.status, text = _reported(directory / "tensorboard")
    outcome.says_healthy = "healthy" in text.lower()


def _spans_of(findings: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    for each in findings:
        if each.get("kind") == "nonfinite":
            yield int(each["step"]), int(each["last_step"])


def _lines_of(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            yield from file


def _reported(directory: Path) -> tuple[int, str]:
    """Return the exit status of ``gradwatch report --fail-on any``, and what it shows."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            report.main([str(directory), "--fail-on", "any"], standalone_mode=True)
        except SystemExit as end:
            return (end.code if isinstance(end.code, int) else int(end.code is not None)), text.getvalue()
    return 0, text.getvalue()


def _show(arguments: list[str]) -> None:
    """Make one try and print what became of it: ``python -m benchmarks.endurance.fault_try write 7 [good]``."""
    made: dict[str, Any] = vars(attempt(arguments[0], int(arguments[1]), len(arguments) > 2))
    for name, value in made.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _show(sys.argv[1:])
