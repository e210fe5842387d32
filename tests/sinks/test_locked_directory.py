"""Runs that start together in one directory are two runs."""

import os
import threading

import pytest

from gradwatch.event_files.reader import read_runs
from gradwatch.sinks import locked_directory
from gradwatch.sinks.locked_directory import locked
from gradwatch.sinks.tensorboard import TensorBoard
from tests.reports import report
from tests.sinks.test_memory import row_of

LONG = 60.0  # seconds, on a machine however busy


def test_one_at_a_time_is_within(tmp_path):
    order, is_waiting = [], threading.Event()

    def enter():
        is_waiting.set()
        with locked(tmp_path / "runs"):
            order.append("second")

    other = threading.Thread(target=enter)
    with locked(tmp_path / "runs"):
        other.start()
        assert is_waiting.wait(LONG)
        order.append("first")
    other.join(LONG)
    assert order == ["first", "second"]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_within_keeps_nobody_out(tmp_path):
    reader, writer = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent ends or says so
            os._exit(0)
    entered = threading.Event()

    def enter():
        with locked(tmp_path):
            entered.set()

    other = threading.Thread(target=enter, daemon=True)
    other.start()
    is_free = entered.wait(LONG)
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)
    assert is_free


def test_runs_that_start_together_in_one_directory_are_told_apart(tmp_path):
    for number in range(20):
        directory, barrier = tmp_path / str(number), threading.Barrier(3)

        def write(directory=directory, barrier=barrier):
            sink = TensorBoard(directory)
            barrier.wait(LONG)
            sink.write_row(row_of([report([1.0, 1.0])]))
            sink.close()

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        runs = read_runs(directory)
        assert sorted(os.path.basename(run.name) for run in runs) == sorted([str(number), "run_2", "run_3"])
        assert [len(run.steps) for run in runs] == [1, 1, 1]


def test_a_process_that_keeps_the_lock_stops_nobody_else_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(locked_directory, "PATIENCE", 0.05)
    with locked(tmp_path), locked(tmp_path):  # another open file of one directory waits, as another process does
        assert tmp_path.is_dir()
