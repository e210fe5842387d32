import contextlib
import errno
import gc
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

import gradwatch
from gradwatch.cli.report import command
from gradwatch.event_files.reader import read_runs
from gradwatch.findings import UNKNOWN_STATUS
from gradwatch.sinks.jsonl import JsonLines
from gradwatch.sinks.memory import Memory
from gradwatch.sinks.tensorboard import TensorBoard
from gradwatch.views.phrases import verdict
from gradwatch.watcher.diagnosis import FindingUpdate
from gradwatch.watcher.outlet import LONGEST_PAUSE, MOST_ROWS
from gradwatch.watcher.sink_dispatcher import SinkDispatcher
from tests.reports import NAN, findings, report
from tests.sinks.test_memory import row_of

CODES = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES)
(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])


class Flaky(Memory):
    """A sink that fails while ``is_down``, and counts how often it was asked."""

    is_down, asked = False, 0

    def write_row(self, row):
        self._ask()
        super().write_row(row)

    def write_finding(self, finding, ended):
        self._ask()
        super().write_finding(finding, ended)

    def _ask(self):
        self.asked += 1
        if self.is_down:
            raise OSError(errno.ENOSPC, "No space left on device")


def rows(count):
    return [row_of([replace(report([1.0, 1.0]), step=step)]) for step in range(count)]


def opened(step):
    return FindingUpdate(replace(SICK, step=step), ended=False, is_new=True)


def test_what_a_sink_did_not_take_comes_later_findings_first(caplog):
    sink = Flaky()
    dispatcher = SinkDispatcher([sink], None)
    dispatcher.write_row(rows(1)[0])
    sink.is_down = True
    for row in rows(3)[1:]:
        dispatcher.write_row(row)
    dispatcher.write_finding(opened(3))
    assert [row.report.step for row in sink.rows] == [0]
    sink.is_down = False
    dispatcher.flush()
    assert [row.report.step for row in sink.rows] == [0, 1, 2]
    assert [finding.step for finding, _ in sink.events] == [3]
    ours = [record.getMessage() for record in caplog.records if "Flaky" in record.getMessage()]
    assert ours == [
        "gradwatch: Flaky failed to write row (OSError: [Errno 28] No space left on device); it is tried again, "
        "training goes on.",
        "gradwatch: Flaky works again; nothing was lost.",
    ]


def test_a_sink_that_stays_down_is_asked_less_and_less_and_keeps_the_latest(caplog):
    sink = Flaky()
    dispatcher = SinkDispatcher([sink], None)
    sink.is_down = True
    for row in rows(1000):
        dispatcher.write_row(row)
    assert sink.asked <= 8 + 1000 // LONGEST_PAUSE
    sink.is_down = False
    dispatcher.flush()
    assert [row.report.step for row in sink.rows] == list(range(1000 - MOST_ROWS, 1000))
    assert f"works again; {1000 - MOST_ROWS} rows lost." in caplog.text


def test_what_was_never_taken_is_said_at_the_end(caplog):
    sink = Flaky()
    dispatcher = SinkDispatcher([sink], None)
    sink.is_down = True
    dispatcher.write_row(rows(1)[0])
    dispatcher.write_finding(opened(3))
    dispatcher.close()
    dispatcher.close()
    assert [record.getMessage() for record in caplog.records][-1] == "gradwatch: Flaky never took 1 row and 1 finding."


@contextlib.contextmanager
def threads_that_end():
    """Wait for all threads that begin within: TensorBoard's ends by an exception, which is this test's to ignore."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread ends so
@pytest.mark.parametrize("down", [range(50, 52), range(50, 120), range(148, 156), range(1)])
def test_a_disk_that_is_full_for_a_while_loses_nothing_that_matters(tmp_path, monkeypatch, down):
    torch.manual_seed(0)  # other weights may leave a layer without living units
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    write = LocalFileSystem._write

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with threads_that_end(), gradwatch.watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=5) as watcher:
        for step in range(200):
            monkeypatch.setattr(LocalFileSystem, "_write", refuse if step in down else write)
            inputs = torch.ones(8, 8)
            if step == 150:
                inputs[0, 0] = torch.nan
            optimizer.zero_grad()
            (model(inputs) - 1).square().mean().backward()
            optimizer.step()
    (run,) = read_runs(tmp_path)
    assert [(each.kind, each.layer, each.step) for each in run.findings] == [
        (each.kind, each.layer, each.step) for each in watcher.findings
    ]
    assert run.findings[0].step == 150
    assert list(run.steps) == [0, *range(5, 200, 5)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", [OSError(code, os.strerror(code)) for code in CODES] + [MemoryError()], ids=repr)
def test_where_a_disk_fails_for_good_the_run_is_not_called_healthy(tmp_path, monkeypatch, fault):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def refuse(*args):
        raise fault

    with threads_that_end(), gradwatch.watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=5):
        for step in range(60):
            if step == 30:
                monkeypatch.setattr(LocalFileSystem, "_write", refuse)
            optimizer.zero_grad()
            (model(torch.ones(8, 4)) * (torch.nan if step == 40 else 1)).square().mean().backward()
            optimizer.step()
    (run,) = read_runs(tmp_path)
    assert (run.findings, verdict(run).word) == ((), "unknown")
    assert CliRunner().invoke(command, [str(tmp_path), "--fail-on", "any"]).exit_code == UNKNOWN_STATUS


def test_a_line_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    sink = JsonLines(tmp_path / "run.jsonl")
    sink.write_row(rows(1)[0])
    whole = (tmp_path / "run.jsonl").read_bytes()
    file = sink._file._file

    class Full:
        """A disk on which ten more bytes fit."""

        left = 10

        def write(self, line):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.left = file.write(line[: self.left]), 0
            return written

        def __getattr__(self, name):
            return getattr(file, name)

    sink._file._file = Full()
    with pytest.raises(OSError, match="No space"):
        sink.write_row(rows(2)[1])
    assert (tmp_path / "run.jsonl").read_bytes() == whole
    sink._file._file = file
    sink.write_row(rows(2)[1])
    sink.close()
    assert (tmp_path / "run.jsonl").read_bytes().startswith(whole)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2


def exit_status_of_child(do, seconds=20):
    """Fork, ``do`` in the child, and return its exit status; a child that hangs is killed, and that is a failure."""
    child = os.fork()
    if not child:
        try:
            do()
        except BaseException:
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_that_trains_on_leaves_black_box_and_snapshots_to_the_parent(tmp_path):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recover = gradwatch.Rewind(every=2, keep=2, confirm=2, path=tmp_path / "snapshots")
    watcher = gradwatch.watch(model, optimizer, recover=recover, black_box=tmp_path / "failed.pt")

    def step(scale=1.0):
        optimizer.zero_grad()
        (model(torch.ones(8, 4)) * scale).square().mean().backward()
        optimizer.step()

    def train_on():
        with watcher:
            step(float("nan"))
            for _ in range(8):
                step()
            raise ValueError("an error of the child's")

    for _ in range(9):
        step()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pt")}
    assert before
    assert exit_status_of_child(train_on) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pt")} == before
    assert exit_status_of_child(lambda: watcher.black_box.write(tmp_path / "asked.pt")) == 0
    assert (tmp_path / "asked.pt").exists()
    step(float("nan"))
    watcher.close()
    assert (tmp_path / "failed.pt").exists()


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("verb", ["close", "flush", "findings", "history", "state_dict", "garbage", "step"])
def test_a_forked_child_neither_hangs_nor_writes(tmp_path, verb):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = [gradwatch.watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1)]

    def step(spoiled=1.0):
        optimizer.zero_grad()
        (model(torch.ones(8, 4)) * spoiled).square().mean().backward()
        optimizer.step()

    def in_child():
        if verb == "garbage":
            held.pop()
            gc.collect()
        elif verb == "step":
            for _ in range(30):
                step(torch.nan)
        elif callable(found := getattr(held[0], verb)):
            found()

    for _ in range(20):
        step()
    held[0].flush()
    before = [path.read_bytes() for path in tmp_path.glob("*tfevents*")]
    assert exit_status_of_child(in_child) == 0
    assert [path.read_bytes() for path in tmp_path.glob("*tfevents*")] == before
    step(torch.nan)
    held[0].close()
    (run,) = read_runs(tmp_path)
    assert [finding.step for finding in run.findings if finding.kind == "nonfinite"] == [20]
    assert len(run.steps) == 21


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_another_thread_reads_waits_for_nobody():
    model = torch.nn.Linear(4, 1)
    watcher = gradwatch.watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loop, is_read, may_end = watcher._loop, threading.Event(), threading.Event()

    def read():
        with loop.turns.lock:
            is_read.set()
            may_end.wait()

    reader = threading.Thread(target=read)
    reader.start()
    is_read.wait()
    status = exit_status_of_child(lambda: None if loop.turns.lock.acquire(blocking=False) else os._exit(3))
    may_end.set()
    reader.join()
    watcher.close()
    assert status == 0


def test_each_sink_has_its_turn_whatever_fails_in_another():
    class Unprepared(Memory):
        def prepare(self):
            raise MemoryError

    broken, sound = Unprepared(), Memory()
    broken.shares_thread = sound.shares_thread = False
    dispatcher = SinkDispatcher([broken, sound], None)
    with pytest.raises(MemoryError):
        dispatcher.write_row(rows(1)[0])
    dispatcher._outlets[1].wait(time.monotonic() + 60)
    assert len(sound.rows) == 1


def test_a_run_that_lost_rows_is_not_called_healthy_though_it_was_closed(tmp_path, monkeypatch):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    write = TensorBoard.write_row

    def refuse_one(sink, row):
        if row.report.step == 2:
            raise MemoryError
        write(sink, row)

    monkeypatch.setattr(TensorBoard, "write_row", refuse_one)
    with gradwatch.watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=1):
        for _ in range(5):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    (run,) = read_runs(tmp_path)
    assert (run.steps.tolist(), run.lost, run.closed_after) == ([0, 1, 3, 4], {"row": 1}, 5)
    done = CliRunner().invoke(command, [str(tmp_path), "--fail-on", "any"])
    assert done.exit_code == UNKNOWN_STATUS
    assert "No findings in what is known: 1 row could not be written." in " ".join(done.output.split())
