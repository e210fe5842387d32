"""Kill training processes at random moments, and read what they leave.

A victim says over a pipe what gradwatch has said is safe, so it is known what must be there: ``victims``. The moment
is drawn; a seventh of all dies while it starts. What is left is read by gradwatch's own reader and by TensorBoard's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from benchmarks.endurance.figure import Figure, at_least_one, draws_of
from benchmarks.endurance.processes import LOADED, ends_in, server_with, started
from benchmarks.endurance.victims import VICTIMS

__all__ = ["attack"]

RUNS = 200
AT_ONCE = 2
DEADLINE = 120.0  # seconds for a process to start or to end, on a machine however busy
LATEST = 1.0  # seconds after its first step at which a victim is killed
WHILE_IT_STARTS = 1 / 7

Identity = tuple[str, str, int]


@dataclass
class Truth:
    """What a victim has said before it was killed.

    Attributes:
        said: findings that ``on_finding`` was called with.
        safe: findings that were there at a flush.
        steps: of the last flush, each of which has a row.
        is_ready: whether it has trained.
        is_awaited: whether it was let live until then.
    """

    said: set[Identity] = field(default_factory=set)
    safe: set[Identity] = field(default_factory=set)
    steps: int = 0
    is_ready: bool = False
    is_awaited: bool = False

    def hear(self, message: bytes) -> None:
        """Take in a message."""
        word, *rest = json.loads(message)
        if word == "said":
            self.said.add(tuple(rest))
        elif word == "flushed":
            self.steps = rest[0]
            self.safe.update(tuple(each) for each in rest[1])
        self.is_ready = True


@dataclass
class Remains:
    """What is left of a run.

    Attributes:
        steps: that have a row.
        opened: how often each finding was written as it opened.
        problems: what cannot be read.
    """

    steps: set[int] = field(default_factory=set)
    opened: Counter[Identity] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Killed:
    """One run: what had been said, what is left, and who did not end."""

    kind: str
    number: int
    truth: Truth
    remains: Remains
    hung: int

    @property
    def is_void(self) -> bool:
        """Return whether it was waited for and has never trained."""
        return self.truth.is_awaited and not self.truth.is_ready

    @property
    def lost(self) -> set[Identity]:
        """Return findings that had been said, or that were there at a flush, and are not there."""
        return (self.truth.said | self.truth.safe) - set(self.remains.opened)

    @property
    def lost_rows(self) -> set[int]:
        """Return steps whose row was flushed and is not there."""
        return set(range(self.truth.steps)) - self.remains.steps

    @property
    def doubled(self) -> set[Identity]:
        """Return findings that were written as new more than once."""
        return {identity for identity, count in self.remains.opened.items() if count > 1}


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Kill runs of every kind, and say what was lost."""
    number = max(len(VICTIMS), at_least_one(share, RUNS))
    server_with(LOADED)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        tries = pool.map(lambda each: killed_run(Path(folder), seed, each), range(number))
        killed = [_shown(each, number) for each in tries]
    said = sum(len(each.truth.said | each.truth.safe) for each in killed)
    rows = sum(each.truth.steps for each in killed)
    yield _none(f"{number} runs killed: findings lost", sum(len(each.lost) for each in killed), f" of {said:,}")
    yield _none("… that never trained, so that nothing was tried", sum(each.is_void for each in killed))
    yield _none("… findings doubled", sum(len(each.doubled) for each in killed))
    yield _none("… flushed rows lost", sum(len(each.lost_rows) for each in killed), f" of {rows:,}")
    yield _none("… runs that cannot be read", sum(bool(each.remains.problems) for each in killed))
    yield _none("… ranks that hung once the other was killed", sum(each.hung for each in killed))


def _none(what: str, count: int, of_how_many: str = "") -> Figure:
    return Figure(what, "0", f"{count:,}{of_how_many}", count == 0)


def _shown(each: Killed, number: int) -> Killed:
    """Say on the terminal how far it is, and what a run has lost."""
    told = {"lost": each.lost, "rows": each.lost_rows, "doubled": each.doubled, "problems": each.remains.problems}
    if any(told.values()) or each.hung:
        print(f"    run {each.number}, {each.kind}: {told}, hung {each.hung}", file=sys.stderr)
    if (each.number + 1) % 20 == 0:
        print(f"    {each.number + 1} of {number}", file=sys.stderr)
    return each


def killed_run(folder: Path, seed: int, number: int) -> Killed:
    """Start a run, kill it, and read it."""
    kinds, draws = list(VICTIMS), draws_of(seed, number)
    kind, where = kinds[number % len(kinds)], folder / f"run{number}"
    where.mkdir()
    context = server_with(LOADED)
    both = [started(context, target, where, draws.randrange(2**31)) for target in VICTIMS[kind]]
    processes, pipes = zip(*both, strict=True)
    truth = _heard_until_killed(pipes[0], processes, draws)
    hung = sum(not ends_in(process, DEADLINE) for process in processes)
    for pipe in pipes:
        pipe.close()
    return Killed(kind, number, truth, _read(where, truth), hung)


def _heard_until_killed(pipe: Connection, processes: Sequence[BaseProcess], draws: Random) -> Truth:
    """Hear the first process until a moment that is drawn, kill some of them, and hear what it had still said."""
    truth, delay = Truth(), draws.uniform(0, LATEST)
    truth.is_awaited = draws.random() >= WHILE_IT_STARTS
    if truth.is_awaited:
        _hear(pipe, truth, time.monotonic() + DEADLINE, until_ready=True)
    _hear(pipe, truth, time.monotonic() + delay)
    for process in draws.choice([[*processes], *([each] for each in processes)]):
        process.kill()
    _hear(pipe, truth, time.monotonic() + DEADLINE)
    return truth


def _hear(pipe: Connection, truth: Truth, deadline: float, *, until_ready: bool = False) -> None:
    """Take in messages until the deadline, or until the other end is closed."""
    while not (until_ready and truth.is_ready) and pipe.poll(max(0.0, deadline - time.monotonic())):
        try:
            truth.hear(pipe.recv_bytes())
        except EOFError:
            return


def _read(where: Path, truth: Truth) -> Remains:
    remains = Remains()
    if (lines := where / "run.jsonl").exists():
        _read_lines(lines, remains)
    else:
        _read_events(where, remains, truth)
        _read_by_tensorboard(where, remains, truth)
    return remains


def _read_lines(path: Path, remains: Remains) -> None:
    """Read JSON lines; the last one may be torn, and then has no end."""
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    for line in whole:
        try:
            event = json.loads(line)
        except ValueError as error:
            remains.problems.append(f"{line[:40]}: {error}")
            continue
        if event["event"] == "row":
            remains.steps.add(event["step"])
        elif event["event"] == "opened":
            remains.opened[event["kind"], event["layer"], event["step"]] += 1


def _read_events(where: Path, remains: Remains, truth: Truth) -> None:
    """Read event files as ``gradwatch report`` does, and count what was written of each finding."""
    from gradwatch.event_files.event import decode_event
    from gradwatch.event_files.reader import NoRunError, files_in, read_runs
    from gradwatch.event_files.records import records
    from gradwatch.event_files.run import FindingEvent

    try:
        (run,) = read_runs(where)
    except NoRunError as error:
        if truth.steps or error.reason == "corrupt":
            remains.problems.append(str(error))
        return
    remains.problems += [each for each in run.problems if "ends within a record" not in each]
    remains.steps.update(run.steps.tolist())
    events = [decode_event(each) for path in files_in(where) for each in records(path) if isinstance(each, bytes)]
    written = [each.finding for each in events if isinstance(each, FindingEvent) and each.is_opening]
    kept = {finding.identity for finding in run.findings}
    remains.opened.update({finding.identity for finding in written} & kept)
    cards = Counter((finding.identity, finding.cause, finding.ranks) for finding in written)
    remains.opened.update(key[0] for key, count in cards.items() if count > 1)


def _read_by_tensorboard(where: Path, remains: Remains, truth: Truth) -> None:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    try:
        accumulator = EventAccumulator(str(where), {SCALARS: 0}).Reload()
        steps = {each.step for each in accumulator.Scalars("grad_norm_total")} if truth.steps else set()
    except Exception as error:  # whatever it is, TensorBoard does not show the run
        remains.problems.append(f"TensorBoard: {type(error).__name__}: {error}")
        return
    remains.problems += [f"TensorBoard lacks step {step}" for step in sorted(set(range(truth.steps)) - steps)[:3]]
