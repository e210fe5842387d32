"""A sink that was closed may be used for another run: it writes that as a new one would."""

import logging
import os
from dataclasses import replace

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import gradwatch
from gradwatch import Csv, JsonLines, Memory
from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.run import Coverage
from gradwatch.sinks.log import Log
from gradwatch.sinks.loggers import Loggers
from gradwatch.sinks.tensorboard import TensorBoard
from tests.reports import NAN, findings, report
from tests.sinks.test_memory import row_of
from tests.sinks.test_updates import TensorBoardLogger

(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])


def use(sink):
    """Write a run of three rows and twelve findings, which is more than people are told of."""
    for step in range(3):
        sink.write_row(row_of([report([1.0, 2.0], step)]))
    for step in range(3, 15):
        sink.write_finding(replace(SICK, step=step, raised_step=step, last_step=step), ended=False)
    sink.write_finding(replace(SICK, last_step=9), ended=True)
    if hasattr(sink, "write_coverage"):
        sink.write_coverage(Coverage(20, 18))
    sink.flush()
    sink.close()


def _files(directory):
    return {path.name: path.read_text() for path in directory.iterdir()}


def _runs(directory):
    return [
        (os.path.relpath(run.name, directory), run.steps.tolist(), run.layers, run.findings, run.ended, run.coverage)
        for run in read_runs(directory)
    ]


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (lambda directory: Csv(directory / "run.csv"), _files),
        (lambda directory: JsonLines(directory / "run.jsonl"), _files),
        (TensorBoard, _runs),
    ],
    ids=["csv", "jsonl", "tensorboard"],
)
def test_a_second_run_is_in_files_as_that_of_a_new_sink_is(kind, read, tmp_path):
    again, new = tmp_path / "again", tmp_path / "new"
    sink = kind(again)
    use(sink)
    first = read(again)
    use(sink)
    use(kind(new))
    use(kind(new))
    assert read(again) == read(new) != first
    if kind is TensorBoard:
        assert [name for name, *_ in _runs(again)] == [".", "run_2"]


def test_a_run_that_goes_on_is_continued_where_the_sink_wrote_it(tmp_path):
    use(TensorBoard(tmp_path))
    sink = TensorBoard(tmp_path)
    use(sink)
    sink.continues = True
    sink.write_row(row_of([report([1.0, 2.0], 15)]))
    sink.close()
    assert [(name, steps) for name, steps, *_ in _runs(tmp_path)] == [(".", [0, 1, 2]), ("run_2", [0, 1, 2, 15])]


def test_a_writer_of_the_users_takes_a_second_run_too(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        sink = TensorBoard(writer)
        use(sink)
        sink.write_finding(replace(SICK, step=20, raised_step=20, last_step=20), ended=False)
        sink.close()
    (run,) = read_runs(tmp_path)
    assert [finding.step for finding in run.findings] == [*range(3, 15), 20]


def test_a_second_run_is_on_the_log_as_the_first_was(caplog):
    log, told = Log(), []
    with caplog.at_level(logging.WARNING, logger="gradwatch"):
        for _ in range(2):
            caplog.clear()
            use(log)
            told.append(caplog.messages)
    assert told[0] == told[1]
    assert len(told[0]) == 11


def test_a_second_run_is_in_loggers_as_the_first_was():
    logger, told = TensorBoardLogger(), []
    sink = Loggers([logger], totals=True)
    for _ in range(2):
        logger.metrics, logger.texts = [], []
        use(sink)
        told.append((logger.metrics, logger.texts))
    assert told[0] == told[1]


def test_memory_keeps_both_runs():
    sink = Memory()
    for _ in range(2):
        use(sink)
    assert (len(sink.rows), len(sink.events)) == (6, 26)


def test_two_runs_of_a_loop_are_in_the_same_files(tmp_path, caplog):
    sinks = [Csv(tmp_path / "run.csv"), JsonLines(tmp_path / "run.jsonl")]
    for _ in range(2):
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradwatch.watch(model, optimizer, sinks=sinks, log_every_n_steps=1):
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(4, 4)).pow(2).mean().backward()
                optimizer.step()
    files = _files(tmp_path)
    assert len(files["run.csv"].splitlines()) == 7
    assert len(files["run.jsonl"].splitlines()) == 6
    assert not [message for message in caplog.messages if "never took" in message]


def test_a_directory_that_was_removed_between_two_runs_is_made_again(tmp_path):
    sink = Csv(tmp_path / "made" / "run.csv")
    use(sink)
    written = _files(tmp_path / "made")
    for path in (tmp_path / "made").iterdir():
        path.unlink()
    (tmp_path / "made").rmdir()
    use(sink)
    assert _files(tmp_path / "made") == written
