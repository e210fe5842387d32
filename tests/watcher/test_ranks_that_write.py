"""Of several ranks the first writes and speaks; every rank keeps what it has found."""

import logging
import re

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.event_files.reader import read_runs
from gradwatch.hooks.logger import logger
from gradwatch.ranks.process import elastic_run, is_first_rank, is_restarted
from gradwatch.sinks.jsonl import JsonLines


def sick_run(on_finding=None, log_dir=None, sinks=(), steps=6, spoilt=3):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradwatch.watch(model, optimizer, log_dir=log_dir, sinks=sinks, on_finding=on_finding) as watcher:
        for step in range(steps):
            loss = (model(torch.ones(8, 4)) * (torch.nan if step == spoilt else 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watcher


def test_a_rank_that_is_not_the_first_writes_and_says_nothing_and_keeps_its_findings(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("RANK", "1")
    memory, told = gradwatch.Memory(), []
    lines = JsonLines(tmp_path / "lines.jsonl")
    watcher = sick_run(told.append, tmp_path / "files", [lines, memory])
    assert [finding.kind for finding in watcher.findings] == ["nonfinite"]
    assert [finding.kind for finding in told] == ["nonfinite"]  # what it does must be done on every rank
    assert memory.rows
    assert [finding.kind for finding, _ in memory.events][:1] == ["nonfinite"]
    assert not (tmp_path / "files").exists()
    assert (tmp_path / "lines.jsonl").read_text() == ""
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_the_first_rank_of_several_writes_one_run(monkeypatch, tmp_path, caplog):
    for rank in ("1", "0", "1"):
        monkeypatch.setenv("RANK", rank)
        sick_run(log_dir=tmp_path / "files")
    assert [run.name for run in read_runs(tmp_path / "files")] == [str(tmp_path / "files")]
    assert sum("nonfinite in" in message for message in caplog.messages) == 1


def test_a_traceback_is_a_debug_line_on_other_ranks(monkeypatch, caplog):
    monkeypatch.setenv("RANK", "3")
    with caplog.at_level(logging.DEBUG, logger="gradwatch"):
        logger.error("a fault")
    assert caplog.record_tuples == [("gradwatch", logging.DEBUG, "a fault")]


@pytest.mark.parametrize(
    ("variables", "first", "restarted"),
    [
        ({}, True, False),
        ({"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}, True, False),
        ({"RANK": "12", "TORCHELASTIC_RESTART_COUNT": "2"}, False, True),
    ],
)
def test_what_a_launcher_says_of_a_process(monkeypatch, variables, first, restarted):
    for variable in ("RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert (is_first_rank(), is_restarted()) == (first, restarted)


def test_runs_of_torchrun_are_told_apart_by_letters_that_do_not_name_them(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert elastic_run() == ""
    told = []
    for name in ("ada/first run", "ada/second run", "ada/first run"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        told.append(elastic_run())
    assert told[0] == told[2] != told[1]
    assert all(re.fullmatch("[0-9a-f]{12}", each) for each in told)


def test_a_run_that_torchrun_starts_again_goes_on_in_its_own_files(monkeypatch, tmp_path):
    sick_run(log_dir=tmp_path, steps=3)  # an earlier run
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    for count, steps in (("0", 5), ("1", 8), ("2", 4)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        sick_run(log_dir=tmp_path, steps=steps)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # it had died before it wrote anything
    sick_run(log_dir=tmp_path, steps=2)
    counts = {run.name: len(list((tmp_path / run.name).glob("*tfevents*"))) for run in read_runs(tmp_path)}
    assert counts == {str(tmp_path): 1, str(tmp_path / "run_2"): 3, str(tmp_path / "run_3"): 1}
