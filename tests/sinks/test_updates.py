"""A finding that goes on comes to the sinks again: the files have its latest state, people are told once."""

import csv
import json
import logging
from dataclasses import replace

import pytest

from gradwatch.event_files.reader import read_runs
from gradwatch.sinks import is_update
from gradwatch.sinks.appended_file import AppendedFile
from gradwatch.sinks.csv import Csv
from gradwatch.sinks.jsonl import JsonLines
from gradwatch.sinks.log import Log
from gradwatch.sinks.loggers import Loggers
from gradwatch.sinks.tensorboard import TensorBoard
from tests.reports import NAN, findings, report, run_of
from tests.sinks.test_memory import row_of
from tests.sinks.test_tensorboard import read, texts
from tests.tab_logs import Tab

(OPENED,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])
GROWN = replace(OPENED, last_step=8, layers=("w0", "w1"))


@pytest.mark.parametrize(
    ("finding", "ended", "expected"), [(OPENED, False, False), (GROWN, False, True), (GROWN, True, False)]
)
def test_an_update_is_told_from_an_opening_and_an_end(finding, ended, expected):
    assert is_update(finding, ended) is expected


def test_report_and_tab_have_the_latest_state_of_an_open_finding(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write_row(row_of(run_of([[1.0, 2.0]])))
    for finding in (OPENED, GROWN, replace(GROWN, last_step=9)):
        sink.write_finding(finding, ended=False)
    sink.close()
    (run,) = read_runs(tmp_path)
    (told,) = Tab(tmp_path).get("findings", run=".").content["findings"]
    assert (run.findings[0].last_step, run.findings[0].layers, run.ended) == (9, ("w0", "w1"), (False,))
    assert (told["last_step"], told["layers"], told["ended"]) == (9, ["w0", "w1"], False)
    assert len(texts(read(tmp_path))) == 1


def test_an_update_in_a_later_file_drops_no_rows_of_the_run_before_it_was_cut(tmp_path):
    for name, rows, finding in (("1", range(8), OPENED), ("2", range(6, 10), GROWN)):
        sink = TensorBoard(tmp_path)
        sink.continues = True
        for step in rows:
            sink.write_row(row_of([report([1.0, 2.0], step)]))
        sink.write_finding(finding, ended=False)
        sink.close()
        written = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        written.rename(tmp_path / f"events.out.tfevents.{name}.host")
    (run,) = read_runs(tmp_path)
    assert run.steps.tolist() == list(range(10))
    assert [(finding.step, finding.last_step) for finding in run.findings] == [(3, 8)]


def test_lines_say_what_is_new_what_goes_on_and_what_ends(tmp_path):
    sink = JsonLines(tmp_path / "run.jsonl")
    for finding, ended in ((OPENED, False), (GROWN, False), (GROWN, True)):
        sink.write_finding(finding, ended)
    sink.close()
    told = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [(each["event"], each["last_step"]) for each in told] == [("opened", 3), ("updated", 8), ("ended", 8)]


@pytest.mark.parametrize("kind", [Csv, JsonLines])
def test_both_files_of_lines_call_alike_what_failed_before_goes_on_and_is_known_better(kind, tmp_path, monkeypatch):
    sink, other = kind(tmp_path / "run"), replace(OPENED, layer="w1")
    with monkeypatch.context() as patch:
        patch.setattr(AppendedFile, "write", _no_space)
        with pytest.raises(OSError, match="No space"):
            sink.write_finding(OPENED, ended=False)
    told = [(OPENED, False), (replace(OPENED, cause="Known better."), False), (GROWN, False), (GROWN, True)]
    for finding, ended in [*told, (replace(other, last_step=9), False), (other, True)]:  # a resumed run goes on with it
        sink.write_finding(finding, ended)
    sink.close()
    if kind is Csv:
        with (tmp_path / "run.findings").open(newline="") as file:
            lines = list(csv.DictReader(file))
    else:
        lines = [json.loads(line) for line in (tmp_path / "run").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["opened", "updated", "updated", "ended", "updated", "ended"]


def _no_space(file, lines):
    raise OSError(28, "No space left on device")


def test_the_log_says_nothing_of_a_finding_that_goes_on(caplog):
    log = Log()
    with caplog.at_level(logging.WARNING, logger="gradwatch"):
        log.write_finding(OPENED, ended=False)
        log.write_finding(GROWN, ended=False)
    assert len(caplog.messages) == 1


class TensorBoardLogger:
    """As much of Lightning's as the sink calls, by the name that it knows it by."""

    def __init__(self):
        self.metrics, self.texts, self.experiment = [], [], self

    def log_metrics(self, metrics, step=None):
        self.metrics.append((metrics, step))

    def add_text(self, tag, text, step):
        self.texts.append((text, step))

    def save(self):
        pass


def test_loggers_get_the_latest_state_as_text_when_they_are_flushed():
    logger = TensorBoardLogger()
    sink = Loggers([logger], totals=False)
    for finding in (OPENED, GROWN):
        sink.write_finding(finding, ended=False)
    assert len(logger.metrics) == len(logger.texts) == 1
    sink.flush()
    sink.flush()
    assert len(logger.metrics) == 1
    (_, first), (text, last) = logger.texts
    assert (first, last) == (3, 8)
    assert "  3  8  no  " in text
