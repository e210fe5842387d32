"""Damage event files, lines of JSON and states of watchers, and hand them to whoever reads them.

A reader may refuse: in one clear sentence, and a fit goes on. It may not raise anything else, take more than ten
seconds or half a gigabyte. What a reader takes grows with its input, and whatever is written can be read.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import io
import json
import logging
import random
import re
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import numpy as np
import torch
from torch import nn

import gradwatch
from benchmarks.endurance.figure import Figure, at_least_one, draws_of
from benchmarks.endurance.mutations import (
    HOSTILE_TO_STATES,
    damaged_bytes,
    damaged_records,
    damaged_tree,
    framed,
)
from benchmarks.endurance.processes import tried
from gradwatch.cli import main
from gradwatch.event_files.reader import NoRunError, read_runs
from gradwatch.event_files.records import records
from tests.tab_logs import Tab
from tests.written import FINDING, TABLE, event, norms, totals

EVENT_FILES, STATES, LINES = 7000, 2500, 500
SECONDS, MEGABYTES = 10.0, 500.0
RATIO = 2.2
REPETITIONS = 5
FILE = "events.out.tfevents.1.host"

Result = tuple[list[str], list[str]]
"""What a case has shown, and what is wrong with it."""

QUESTIONS = {
    "overview": {},
    "findings": {},
    "cells": {"statistic": "grad_norm", "start": 0, "end": 100, "width": 40},
    "course": {"start": 0, "end": 100, "width": 40},
    "curve": {"statistic": "grad_norm", "start": 0, "end": 100, "width": 40},
    "profile": {"statistic": "grad_norm", "step": 3},
}  # fmt: skip


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Damage files and states, then measure how reading grows, and write what is hard to read."""
    torch.set_num_threads(1)
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        known = Known(Path(directory))
        for what, act, count in (
            ("event files: report, JSON, page, tab", known.try_event_file, at_least_one(share, EVENT_FILES)),
            ("states of watchers: resumed, and trained on", known.try_state, at_least_one(share, STATES)),
            ("files of lines: sinks go on in them", known.try_lines, at_least_one(share, LINES)),
        ):
            yield damaged_figure(what, functools.partial(_in_limits, act, seed), count)
    if share == 1:  # the only figure that depends on how busy the machine is
        yield growth_figure()
    yield written_figure(share, seed)


def damaged_figure(what: str, act: Callable[[int], Result], count: int) -> Figure:
    """Return the figure of many damaged things of one kind."""
    seen: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    for number, (shown, faults) in _results(act, count):
        seen.update(shown)
        wrong += [f"{number}: {fault}" for fault in faults]
    for line in wrong[:20]:
        print(f"    {line}", flush=True)
    refused = f", {seen['refused']:,} of them refused in words" if seen["refused"] else ""
    asked = "0 tracebacks, 0 over 10 s or 500 MB, 0 fits ended"
    return Figure(f"{count:,} damaged {what}{refused}", asked, f"{len(wrong)} that do", not wrong)


def _results(act: Callable[[int], Result], count: int) -> Iterator[tuple[int, Result]]:
    """Yield what comes of each thing in a process of its own; where that hangs or dies, that this is so."""
    for (number,), result, how in tried(act, [(each,) for each in range(count)]):
        yield number, result or ([], [how])


def _in_limits(act: Callable[[random.Random], list[str]], seed: int, number: int) -> Result:
    """Try one thing; return what was shown, and what is wrong."""
    _forget_peak()
    before, begin = _peak(), time.process_time()
    faults = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # those of numpy are for whoever computes
            shown = act(draws_of(seed, number))
    except Exception:
        shown, faults = [], [traceback.format_exc()[-1200:]]
    if (took := time.process_time() - begin) > SECONDS:
        faults.append(f"took {took:.1f} s")
    if (grown := _peak() - before) > MEGABYTES:
        faults.append(f"took {grown:.0f} MB")
    return shown, faults


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Return the most megabytes that this process has taken since ``_forget_peak``; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()):
            return int(found[1]) / 1000
    return 0.0


class Known:
    """Sound files and states, of which damaged ones are made.

    Args:
        directory: where they may be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[list[bytes]] = []
        self._states: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        self._lines: list[tuple[str, bytes]] = []
        for number, keywords in enumerate(({}, {"histograms": True}, {"clip": "auto"}, {"layer_scalars": True})):
            for steps in (3, 12, 60):
                self._train(directory / f"{number}-{steps}", steps, keywords)

    def _train(self, where: Path, steps: int, keywords: dict[str, Any]) -> None:
        sinks = [gradwatch.JsonLines(where / "rows.jsonl"), gradwatch.Csv(where / "rows.csv")]
        loop = Loop(log_dir=where / "run", sinks=sinks, log_every_n_steps=1, **keywords)
        for step in range(steps):
            loop.step(spoilt=step in (7, 30), grown=step == 25)
        self._states.append((loop.watcher.state_dict(), keywords))
        loop.watcher.close()
        (path,) = (where / "run").glob("*tfevents*")
        self._files.append([content for content in records(path) if isinstance(content, bytes)])
        self._lines += [(path.suffix, path.read_bytes()) for path in where.glob("rows.*")]

    def try_event_file(self, draws: random.Random) -> list[str]:
        """Damage an event file, and have it reported."""
        contents = draws.choice(self._files)
        if draws.random() < 0.4:
            damaged = damaged_bytes(draws, b"".join(map(framed, contents)))
        else:
            damaged = damaged_records(draws, contents)
            if draws.random() < 0.2:
                damaged = damaged_bytes(draws, damaged)
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            Path(directory, FILE).write_bytes(damaged)
            status = report(directory)
            told = draws.random()
            if told < 0.4:
                report("--json", directory)
            elif told < 0.55:
                report("--html", str(Path(directory, "page.html")), directory)
            elif told < 0.8:
                ask_tab(directory)
        return ["refused"] if status in (4, 5, 6) else []

    def try_state(self, draws: random.Random) -> list[str]:
        """Damage the state of a watcher, resume from it, and train on: a NaN is found whatever came of the state."""
        state, keywords = draws.choice(self._states)
        damaged: Any = state
        for _ in range(draws.randint(1, 3)):
            damaged = damaged_tree(draws, damaged, HOSTILE_TO_STATES)
        loop, shown = Loop(**keywords), []
        if draws.random() < 0.5:
            try:
                loop.watcher.load_state_dict(damaged)
            except ValueError as error:
                shown.append("refused")
                _refuse_riddles(str(error))
        else:
            loop.watcher._loop.resume(damaged)  # as integrations do
        loop.train_until_found()
        return shown

    def try_lines(self, draws: random.Random) -> list[str]:
        """Damage a file of lines, and go on in it."""
        suffix, content = draws.choice(self._lines)
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            path = Path(directory, f"rows{suffix}")
            path.write_bytes(damaged_bytes(draws, content))
            try:
                sink = (gradwatch.JsonLines if suffix == ".jsonl" else gradwatch.Csv)(path)
            except ValueError as error:
                if "holds something else than rows of gradwatch" not in str(error):
                    raise
                return ["refused"]
            loop = Loop(sinks=[sink])
            loop.train_until_found()
            loop.watcher.close()
            written = b"".join(each.read_bytes() for each in Path(directory).iterdir())
            if b"nonfinite" not in written and suffix == ".jsonl":
                raise AssertionError("the finding is not in the file")
        return []


class Loop:
    """A small training loop that is watched.

    Attributes:
        watcher: who watches it.
    """

    def __init__(self, **keywords: Any) -> None:
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 1))
        self._optimizer = torch.optim.Adam(self._model.parameters(), 0.01)
        self.faults: list[str] = []
        self.watcher = gradwatch.watch(self._model, self._optimizer, **keywords)

    def step(self, *, spoilt: bool = False, grown: bool = False) -> None:
        """Make one step, perhaps one with a NaN, which makes no update, or a very large one."""
        x = torch.randn(8, 4) * (torch.nan if spoilt else 1e4 if grown else 1.0)
        self._optimizer.zero_grad()
        self._model(x).square().mean().backward()
        weights = [parameter.detach().clone() for parameter in self._model.parameters()]
        self._optimizer.step()
        if spoilt or grown:
            with torch.no_grad():
                for parameter, before in zip(self._model.parameters(), weights):
                    parameter.copy_(before)
            self._optimizer.state.clear()

    def train_until_found(self) -> None:
        """Train on, healthy and then with NaN.

        Raises:
            AssertionError: where nobody finds the NaN, or gradwatch notes a fault of its own.
        """
        heard: list[str] = []
        handler, logger = logging.Handler(), logging.getLogger("gradwatch")
        handler.emit = lambda record: heard.append(logging.Formatter().format(record))  # type: ignore[method-assign]
        level, logger.propagate = logger.level, False
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        try:
            for step in range(6):
                self.step(spoilt=step >= 4)
            findings = self.watcher.findings
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        if faults := [line for line in heard if "fault in gradwatch" in line]:
            raise AssertionError(faults[0][-1000:])
        if not any(finding.kind == "nonfinite" for finding in findings):
            raise AssertionError("blind: the NaN was not found")


def _refuse_riddles(words: str) -> None:
    if len(words) > 700 or "\n" in words.strip() or not re.search("Resume without|go on without", words):
        raise AssertionError(f"no clear sentence: {words[:900]}")


def report(*arguments: str) -> int:
    """Run ``gradwatch report`` in this process; return its status."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = main(["report", *arguments], standalone_mode=False) or 0
        except click.ClickException as refused:
            status = refused.exit_code
    if "--json" in arguments and out.getvalue():
        json.loads(out.getvalue(), parse_constant=_refuse_constant)
        out.getvalue().encode()
    return status


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"JSON has no {name}")


class _Tab(Tab):
    """The tab over files of which TensorBoard's own reader may end anywhere: that is a thread of its own."""

    def reload(self) -> None:
        with contextlib.suppress(Exception):
            super().reload()


def ask_tab(directory: str) -> None:
    """Ask the tab every question about every run in ``directory``."""
    tab = _Tab(directory)
    for each in tab.get("runs").content:
        layers: list[str] = []
        for question, arguments in QUESTIONS.items():
            more = {"layer": layers[0] if layers else "a"} if question == "curve" else {}
            answer = tab.get(question, run=each["run"], **arguments, **more)
            if answer.status >= 500:
                raise AssertionError(f"{question}?{urlencode(arguments)}: {answer.status} {answer.body[:300]!r}")
            if question == "overview" and answer.status == 200:
                layers = answer.content.get("layers", [])


# how the time grows


def growth_figure() -> Figure:
    """Return how much longer reading takes for twice the input: the worst of several kinds of files."""
    ratios = {}
    for name, (make, act, size) in GROWING.items():
        with tempfile.TemporaryDirectory() as directory:
            ratios[name] = growth(Path(directory), make, act, size)
        print(f"    {name}: twice the input takes {ratios[name]:.2f} times as long", file=sys.stderr, flush=True)
    worst = max(ratios, key=lambda name: ratios[name])
    words = f"{ratios[worst]:.2f} times at most ({worst})"
    return Figure(f"twice the input, {len(ratios)} kinds of files: time", "2.2 times", words, ratios[worst] <= RATIO)


def growth(directory: Path, make: Callable[[int], bytes], act: Callable[[str], Any], size: int) -> float:
    """Return the processor time for twice the input, divided by that for once: the median of interleaved tries."""
    for name, count in (("once", size), ("twice", 2 * size)):
        (directory / name).mkdir()
        (directory / name / FILE).write_bytes(make(count))
    act(str(directory / "once"))  # loads what is loaded on first use
    gc.collect()
    gc.freeze()  # else each collection walks over all that was imported, and some tries have one more
    times: dict[str, list[float]] = {"once": [], "twice": []}
    for _ in range(REPETITIONS):
        for name, taken in times.items():
            begin = time.process_time()
            act(str(directory / name))
            taken.append(time.process_time() - begin)
    return statistics.median(times["twice"]) / statistics.median(times["once"])


def _rows(count: int, end: bytes = b"") -> bytes:
    rows = [event(step, grad_norm=norms(1.0, 2.0), totals=totals(loss=0.5)) for step in range(1, count)]
    first = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0), totals=totals(loss=0.5))
    return b"".join(framed(each) + end for each in (first, *rows))


def _findings(count: int, layers: int = 2) -> bytes:
    names = [f"layer.{number}.weight" for number in range(layers)]
    table = {"layers": names, "depth": list(range(layers)), "size": [4] * layers}
    told = [
        {**FINDING, "layer": names[number % layers], "layers": [names[number % layers]], "step": number,
         "raised_step": number + 1, "last_step": number + 2, "kind": KINDS[number % len(KINDS)]}
        for number in range(count)
    ]  # fmt: skip
    row = event(0, layers=table, grad_norm=norms(*np.linspace(1, 2, layers)), totals=totals(loss=0.5))
    parts = [event(each["step"], finding={**each, "ended": number % 2 == 0}) for number, each in enumerate(told)]
    return b"".join(map(framed, (row, *parts)))


def _layers(count: int) -> bytes:
    table = {
        "layers": [f"block.{n // 8}.layer.{n}" for n in range(count)],
        "depth": [*range(count)],
        "size": [4] * count,
    }
    values = norms(*np.linspace(1, 2, count))
    rows = [event(step, grad_norm=values, totals=totals(loss=0.5)) for step in range(1, 4)]
    return b"".join(map(framed, (event(0, layers=table, grad_norm=values), *rows)))


def _one_finding_of_all(count: int) -> bytes:
    names = [f"block.{n // 8}.layer.{n}" for n in range(count)]
    told = event(4, finding={**FINDING, "layer": names[0], "layers": names})
    return _layers(count) + framed(told)


KINDS = ("exploding", "nonfinite", "vanishing", "dead", "unstable")
_page = lambda directory: report("--html", str(Path(directory, "page.html")), directory)
_json = lambda directory: report("--json", directory)
GROWING: dict[str, tuple[Callable[[int], bytes], Callable[[str], Any], int]] = {
    "rows, as JSON": (_rows, _json, 3000),
    "rows, in words": (_rows, report, 3000),
    "rows, as a page": (_rows, _page, 3000),
    "rows with a line break after each": (lambda count: _rows(count, b"\r"), _json, 1500),
    "zeros": (lambda count: _rows(20) + bytes(2000 * count), _json, 1000),
    "text": (lambda count: _rows(20) + b"no event file\n" * 100 * count, _json, 1000),
    "random bytes": (lambda count: _rows(20) + random.Random(0).randbytes(1000 * count), _json, 2000),
    "findings, as JSON": (_findings, _json, 4000),
    "findings, in words": (_findings, report, 1000),
    "findings, as a page": (_findings, _page, 2000),
    "findings, in the tab": (_findings, ask_tab, 3000),
    "findings of as many layers, as a page": (lambda count: _findings(count, count), _page, 2000),
    "layers, as JSON": (_layers, _json, 40_000),
    "layers, in words": (_layers, report, 20_000),
    "layers, as a page": (_layers, _page, 30_000),
    "layers, in the tab": (_layers, ask_tab, 20_000),
    "one finding of all layers, in words": (_one_finding_of_all, report, 60_000),
    "one finding of all layers, as a page": (_one_finding_of_all, _page, 30_000),
}
"""What grows, who reads it, and how large it is at first."""


# whatever is written can be read

HARD = (
    "n" * 1100, "x" * 50_000, "\ud800", "a\ud800b", r"\ud800", "\0", "\x1b[31m", "\x07", "line\nbreak", "\u202eleft",
    "é", "😀", " ", "a b", "</script>", "{{ 7 }}", "[bold]", "`", "|", "%s", "..", "a.b.c", "%", "\ufffd", "\\", '"',
)  # fmt: skip
"""Names that are hard to write, to read or to show."""


def written_figure(share: float, seed: int) -> Figure:
    """Return how many runs with hard names, and with many layers, can be read as they were written."""
    count = at_least_one(share, 200)
    act = functools.partial(_in_limits, _try_names, seed)
    wrong = [f"{number}: {words}" for number, (_, found) in _results(act, count) for words in found]
    layers = 100_000 if share >= 0.5 else 10_000
    wrong += _wrong_of_layers(layers)
    for line in wrong[:20]:
        print(f"    {line}", flush=True)
    what = (
        f"{count} runs of names of up to 50,000 characters and of lone surrogates, and one of {layers:,} layers: read"
    )
    return Figure(what, "as written", f"{len(wrong)} are not", not wrong)


def _try_names(draws: random.Random) -> list[str]:
    names = [*draws.sample(HARD, draws.randint(1, 4)), _random_name(draws)]
    _write_and_read({name: torch.ones(2, requires_grad=True) for name in dict.fromkeys(names)}, steps=6)
    return []


def _random_name(draws: random.Random) -> str:
    return "".join(chr(draws.choice([draws.randrange(1, 128), draws.randrange(1, 0x11_0000)])) for _ in range(12))


def _wrong_of_layers(count: int) -> list[str]:
    try:
        _write_and_read({f"layer.{number}": torch.ones(1, requires_grad=True) for number in range(count)}, steps=2)
    except Exception:
        return [traceback.format_exc()[-1200:]]
    return []


def _write_and_read(tensors: dict[str, torch.Tensor], steps: int) -> None:
    """Watch tensors, with a NaN at the end, and read all of it back.

    Raises:
        AssertionError: where something is missing.
    """
    with tempfile.TemporaryDirectory() as directory:
        lines = gradwatch.JsonLines(Path(directory, "rows.jsonl"))
        keywords: dict[str, Any] = {"log_dir": directory, "log_every_n_steps": 1, "histograms": len(tensors) < 100}
        with gradwatch.watch_tensors(tensors, sinks=[lines], **keywords) as watcher:
            for step in range(steps):
                grown = torch.nan if step == steps - 1 else 1.0
                watcher.step(grads={name: torch.ones_like(tensor) * grown for name, tensor in tensors.items()})
        found = watcher.findings
        try:
            (run,) = read_runs(Path(directory))
        except NoRunError as error:
            raise AssertionError(str(error)) from error
        assert not run.problems, run.problems
        assert len(run.layers) == len(set(run.layers)) == len(tensors), "names are missing"
        assert len(run.steps) == steps, f"{len(run.steps)} rows"
        assert len(run.findings) == len(found) > 0, "findings are missing"
        for line in Path(directory, "rows.jsonl").read_text(encoding="utf-8").splitlines():
            json.loads(line)
        assert report(directory) == 0
        assert report("--json", directory) == 0
        if len(tensors) < 100:
            assert report("--html", str(Path(directory, "page.html")), directory) == 0
            ask_tab(directory)
