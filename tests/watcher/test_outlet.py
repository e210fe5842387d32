"""A sink that hangs keeps nobody waiting: what it has not taken waits for it, and what is lost is counted."""

import errno
import threading
import time

import pytest
import torch
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

import gradwatch
from gradwatch.event_files.reader import read_runs
from gradwatch.sinks.memory import Memory
from gradwatch.watcher import sink_dispatcher
from gradwatch.watcher.outlet import MOST_ROWS
from gradwatch.watcher.sink_dispatcher import SinkDispatcher
from tests.watcher.test_sink_dispatcher import opened, rows

LONG = 60.0  # seconds, on a machine however busy


class Hanging(Memory):
    """A sink that answers once it ``may_answer``, and knows which threads have called it."""

    shares_thread = False

    def __init__(self):
        super().__init__()
        self.may_answer, self.is_asked = threading.Event(), threading.Event()
        self.threads = set()

    def write_row(self, row):
        self._answer()
        super().write_row(row)

    def write_finding(self, finding, ended):
        self._answer()
        super().write_finding(finding, ended)

    def close(self):
        self._answer()
        super().close()

    def _answer(self):
        self.threads.add(threading.current_thread())
        self.is_asked.set()
        assert self.may_answer.wait(LONG)


@pytest.fixture
def hanging(monkeypatch):
    """A sink that hangs until the test is over, where the ends of waits are near."""
    monkeypatch.setattr(sink_dispatcher, "PATIENCE", 0.2)
    monkeypatch.setattr(sink_dispatcher, "LAST_PATIENCE", 0.4)
    sink = Hanging()
    yield sink
    sink.may_answer.set()
    for thread in sink.threads - {threading.current_thread()}:
        thread.join(LONG)


def settle(dispatcher):
    """Wait until every thread is done."""
    for outlet in dispatcher._outlets:
        outlet.wait(time.monotonic() + LONG)
        assert not outlet.is_behind


def test_training_waits_once_for_a_sink_that_hangs(hanging):
    dispatcher, began = SinkDispatcher([hanging], None), time.monotonic()
    for row in rows(80):
        dispatcher.write_row(row)
        dispatcher.write_finding(opened(row.report.step))
    assert time.monotonic() - began < 40 * 0.2  # of 160 waits
    hanging.may_answer.set()
    settle(dispatcher)
    assert [row.report.step for row in hanging.rows] == [*range(80)]
    assert [finding.step for finding, _ in hanging.events] == [*range(80)]


def test_findings_go_first_once_a_sink_answers(hanging):
    dispatcher, taken = SinkDispatcher([hanging], None), []
    hanging.rows = hanging.events = taken
    for row in rows(3):
        dispatcher.write_row(row)
    dispatcher.write_finding(opened(3))
    hanging.may_answer.set()
    settle(dispatcher)
    assert [type(each).__name__ for each in taken] == ["Row", "tuple", "Row", "Row"]  # the first was under way


def test_other_sinks_get_everything_in_time(hanging):
    prompt = Memory()
    prompt.shares_thread = False
    dispatcher = SinkDispatcher([hanging, prompt], None)
    for row in rows(3):
        dispatcher.write_row(row)
    settle_of_prompt = next(each for each in dispatcher._outlets if each.sink is prompt)
    settle_of_prompt.wait(time.monotonic() + LONG)
    assert len(prompt.rows) == 3
    dispatcher.close()
    assert prompt.closed
    assert not hanging.closed


def test_rows_that_have_no_room_are_counted_and_said(hanging, caplog):
    dispatcher = SinkDispatcher([hanging], None)
    for row in rows(MOST_ROWS + 7):
        dispatcher.write_row(row)
    assert caplog.text.count("is slower than the training, which does not wait for it: rows are left out") == 1
    hanging.may_answer.set()
    settle(dispatcher)
    dispatcher.close()
    steps = [row.report.step for row in hanging.rows]
    assert steps == [0, *range(8, MOST_ROWS + 7)]
    assert caplog.records[-1].getMessage() == "gradwatch: Hanging never took 7 rows."


def test_the_end_of_a_run_waits_once_for_all_and_says_what_was_lost(hanging, caplog):
    other = Hanging()
    dispatcher = SinkDispatcher([hanging, other], None)
    dispatcher.write_row(rows(1)[0])
    dispatcher.write_finding(opened(3))
    began = time.monotonic()
    dispatcher.close()
    dispatcher.close()
    assert time.monotonic() - began < 10 * 0.4
    other.may_answer.set()
    said = [record.getMessage() for record in caplog.records if "Hanging" in record.getMessage()]
    assert said == ["gradwatch: Hanging never took 1 row and 1 finding in time."] * 2


def test_a_sink_that_hangs_at_its_end_is_named(hanging, caplog):
    dispatcher = SinkDispatcher([hanging], None)
    dispatcher.close()
    assert caplog.records[-1].getMessage() == "gradwatch: Hanging has not come to the end of its close in time."


def test_a_flush_waits_for_the_sink(hanging):
    dispatcher = SinkDispatcher([hanging], None)
    threading.Thread(target=lambda: hanging.is_asked.wait(LONG) and hanging.may_answer.set()).start()
    dispatcher.write_row(rows(1)[0])
    settle(dispatcher)
    dispatcher.flush()
    assert len(hanging.rows) == 1


def test_a_flush_waits_for_a_sink_that_is_behind(hanging):
    dispatcher = SinkDispatcher([hanging], None)
    dispatcher.write_row(rows(1)[0])  # it was not taken in time
    threading.Timer(0.05, hanging.may_answer.set).start()
    dispatcher.flush()
    assert len(hanging.rows) == 1


def test_a_flush_that_is_in_vain_is_said_and_the_next_one_does_not_wait(hanging, caplog):
    dispatcher = SinkDispatcher([hanging], None)
    dispatcher.write_row(rows(1)[0])
    began = time.monotonic()
    for _ in range(50):
        dispatcher.flush()
    assert 0.4 <= time.monotonic() - began < 25 * 0.4
    (said,) = [record.getMessage() for record in caplog.records if "safe" in record.getMessage()]
    assert said == (
        "gradwatch: Hanging has not come to the end of its write row in time: what it was given is not safe yet."
    )
    hanging.may_answer.set()
    settle(dispatcher)
    hanging.may_answer.clear()
    dispatcher.write_row(rows(1)[0])
    dispatcher.flush()  # it answered meanwhile, so it is waited for and named again
    assert caplog.text.count("is not safe yet") == 2


def test_a_sink_is_called_beside_the_loop_unless_it_shares_its_thread():
    class Sharing(Hanging):
        shares_thread = True

    apart, sharing = Hanging(), Sharing()
    for sink in (apart, sharing):
        sink.may_answer.set()
        dispatcher = SinkDispatcher([sink], None)
        dispatcher.write_row(rows(1)[0])
        dispatcher.close()
    assert threading.current_thread() not in apart.threads
    assert sharing.threads == {threading.current_thread()}
    assert not any(thread.is_alive() for thread in apart.threads)


def test_a_sink_prepares_itself_in_the_thread_of_the_loop():
    class Prepared(Hanging):
        def prepare(self):
            self.prepared_by = threading.current_thread()

    sink = Prepared()
    sink.may_answer.set()
    dispatcher = SinkDispatcher([sink], None)
    dispatcher.write_row(rows(1)[0])
    dispatcher.close()
    assert sink.prepared_by is threading.current_thread()
    assert sink.prepared_by not in sink.threads


def test_without_threads_a_sink_is_called_at_once(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    sink = Hanging()
    sink.may_answer.set()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    dispatcher = SinkDispatcher([sink], None)
    dispatcher.write_row(rows(1)[0])
    dispatcher.close()
    assert sink.threads == {threading.current_thread()}
    assert len(sink.rows) == 1
    assert sink.closed


def test_a_fault_is_said_and_tried_again_beside_the_loop(caplog):
    class Full(Hanging):
        is_full = True

        def write_row(self, row):
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write_row(row)

    sink = Full()
    sink.may_answer.set()
    dispatcher = SinkDispatcher([sink], None)
    dispatcher.write_row(rows(1)[0])
    settle(dispatcher)
    assert "Full failed to write row (OSError: [Errno 28] No space left on device)" in caplog.text
    sink.is_full = False
    dispatcher.close()
    assert len(sink.rows) == 1
    assert "Full works again; nothing was lost" in caplog.text


def test_a_file_system_that_hangs_stops_no_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sink_dispatcher, "PATIENCE", 0.2)
    monkeypatch.setattr(sink_dispatcher, "LAST_PATIENCE", 0.4)
    write, may_answer = LocalFileSystem._write, threading.Event()
    answers = iter([True] * 6)

    def hang(*args):
        if not next(answers, False):
            assert may_answer.wait(LONG)
        return write(*args)

    monkeypatch.setattr(LocalFileSystem, "_write", hang)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = gradwatch.watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=5)
    before = set(threading.enumerate())
    for step in range(200):
        optimizer.zero_grad()
        (model(torch.ones(8, 4)) * (torch.nan if step == 150 else 1)).square().mean().backward()
        optimizer.step()
    dispatcher = watcher._loop._dispatcher
    began = time.monotonic()
    outlets = list(dispatcher._outlets)
    watcher.close()
    assert time.monotonic() - began < 20 * 0.4
    assert "gradwatch: TensorBoard never took" in caplog.text
    may_answer.set()
    for outlet in outlets:
        outlet.wait(time.monotonic() + LONG)
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
    (run,) = read_runs(tmp_path)
    assert 150 in [finding.step for finding in run.findings]
    assert list(run.steps) == [0, *range(5, 200, 5)]


class Picky(Memory):
    """A sink that refuses some rows, a few times or always, and takes what was lost."""

    shares_thread = True

    def __init__(self, refusals):
        super().__init__()
        self.refusals, self.lost = dict(refusals), None

    def write_row(self, row):
        if self.refusals.get(row.report.step, 0) > 0:
            self.refusals[row.report.step] -= 1
            raise MemoryError
        super().write_row(row)

    def write_lost(self, lost):
        assert not self.closed
        self.lost = lost


def test_a_part_that_cannot_be_written_at_the_end_keeps_no_other_from_it_and_is_told():
    sink = Picky({0: 1_000})
    dispatcher = SinkDispatcher([sink], None)
    for row in rows(3):
        dispatcher.write_row(row)
    dispatcher.close()
    assert [row.report.step for row in sink.rows] == [1, 2]
    assert sink.lost == {"row": 1}
    assert sink.closed


@pytest.mark.parametrize("verb", ["flush", "write_lost"])
def test_a_sink_that_fails_for_ever_as_it_ends_is_closed_all_the_same(monkeypatch, verb):
    sink, calls = Picky({0: 1_000}), []

    def fail(*args):
        calls.append(verb)
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(sink, verb, fail)
    dispatcher = SinkDispatcher([sink], None)
    for row in rows(3):
        dispatcher.write_row(row)
    dispatcher.close()
    assert [row.report.step for row in sink.rows] == [1, 2]
    assert sink.closed
    assert len(calls) == 3


def test_a_fault_that_passes_at_the_end_loses_nothing():
    sink = Picky({2: 2})
    dispatcher = SinkDispatcher([sink], None)
    for row in rows(3):
        dispatcher.write_row(row)
    dispatcher.close()
    assert [row.report.step for row in sink.rows] == [0, 1, 2]
    assert sink.lost is None
    assert sink.closed


@pytest.mark.parametrize("error", [RuntimeError("can't allocate lock"), MemoryError(), OSError(errno.EAGAIN, "no")])
def test_whatever_the_system_lacks_for_a_thread_every_sink_gets_its_rows(monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    first, second = Hanging(), Hanging()
    for sink in (first, second):
        sink.may_answer.set()
    dispatcher = SinkDispatcher([first, second], None)
    monkeypatch.setattr(threading, "Thread", refuse)
    dispatcher.write_row(rows(1)[0])
    dispatcher.close()
    assert [len(sink.rows) for sink in (first, second)] == [1, 1]
