"""What findings say while they are open, and that log, files, report and watcher say the same."""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import gradwatch
from gradwatch import JsonLines, Memory, Thresholds
from gradwatch.cli import main
from gradwatch.event_files.reader import read_runs
from gradwatch.measure.report import LAYER_FIGURES
from tests.reports import INF, NAN, diagnosis, report, run_of, table

SICK, HEALTHY = 0.5, 2.0


def watched(rows, **options):
    """A watcher that has seen ``rows`` of gradient norms of weights of one entry; below 1 is sick."""
    names = [f"w{column}" for column in range(len(rows[0]))]
    watcher = gradwatch.watch_tensors(
        {name: torch.zeros(1, 1) for name in names}, thresholds=Thresholds(vanishing_norm=1.0, patience=2), **options
    )
    for row in rows:
        grads = {name: torch.full((1, 1), norm) for name, norm in zip(names, row, strict=True)}
        watcher.step(grads=grads, loss=1.0)
    return watcher


TO_THE_END = [[SICK, HEALTHY, HEALTHY]] * 10 + [[SICK, SICK, HEALTHY]] * 50


@pytest.mark.parametrize("log_every_n_steps", [1, 50])
def test_a_run_that_is_sick_to_its_end_says_so_everywhere(tmp_path, caplog, log_every_n_steps):
    caplog.set_level(logging.WARNING, "gradwatch")
    memory, opened = Memory(), []
    sinks = [memory, JsonLines(tmp_path / "run.jsonl")]
    options = {"log_dir": tmp_path / "run", "sinks": sinks, "on_finding": opened.append}
    with watched(TO_THE_END, log_every_n_steps=log_every_n_steps, **options) as watcher:
        (finding,) = watcher.findings
    assert (finding.last_step, finding.layers) == (59, ("w0", "w1"))
    assert memory.events[-1] == (finding, False)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    events = [line for line in lines if line["event"] != "row"]
    assert [events[0]["event"], events[-1]["event"]] == ["opened", "updated"]
    assert (events[-1]["last_step"], events[-1]["layers"]) == (59, ["w0", "w1"])
    (run,) = read_runs(tmp_path / "run")
    assert (run.findings, run.ended) == ((finding,), (False,))
    report = json.loads(CliRunner().invoke(main, ["report", str(tmp_path / "run"), "--json"]).stdout)
    assert report["findings"] == [json.loads(json.dumps(finding.as_dict()))]
    assert len(opened) == 1
    assert [record.getMessage() for record in caplog.records] == [f"gradwatch: {finding.message}"]


def test_a_flush_writes_what_has_changed_and_only_that(tmp_path):
    watcher = watched(TO_THE_END, sinks=[JsonLines(tmp_path / "run.jsonl")])

    def events():
        lines = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
        return [(line["event"], line["last_step"]) for line in lines if line["event"] != "row"]

    watcher.flush()
    told = events()
    assert told[-1] == ("updated", 59)
    watcher.flush()
    watcher.close()
    assert events() == told


def test_what_ended_is_not_written_again():
    memory = Memory()
    with watched([[SICK]] * 5 + [[HEALTHY]] * 20, sinks=[memory]) as watcher:
        watcher.flush()
    assert [ended for _, ended in memory.events].count(True) == 1
    assert memory.events[-1][1]
    assert memory.events[-1][0].last_step == 4


def test_only_large_changes_come_with_a_row():
    watching, told = diagnosis(table(1), Thresholds(vanishing_norm=1.0, patience=2)), []
    for step in run_of([[SICK]] * 1000):
        watching.observe(step)
        told += [update.finding.last_step for update in watching.changes(only_large=True)]
    assert len(told) < 12
    assert all(2 * before + 1 <= after <= 2 * before + 3 for before, after in itertools.pairwise(told))
    assert 2 * told[-1] > 900
    (update,) = watching.changes()
    assert (update.finding.last_step, update.ended, update.is_new) == (999, False, False)


def test_layers_that_join_come_with_the_next_row():
    watching = diagnosis(table(2), Thresholds(vanishing_norm=1.0, patience=2))
    for step in run_of([[SICK, HEALTHY]] * 20 + [[SICK, SICK]] * 2):
        watching.observe(step)
        joined = watching.changes(only_large=True)
    assert [update.finding.layers for update in joined] == [("w0", "w1")]


def test_an_open_finding_of_a_resumed_run_goes_on():
    run = run_of([[SICK, NAN]] * 30)
    whole, cut, resumed = (diagnosis(table(2), Thresholds(vanishing_norm=1.0)) for _ in range(3))
    for step in run:
        whole.observe(step)
    for step in run[:15]:
        cut.observe(step)
    resumed.restore(cut.state())
    for step in run[15:]:
        resumed.observe(step)
    assert resumed.open_findings() == whole.open_findings()
    assert [update.finding.last_step for update in resumed.changes()] == [29]


def test_a_cause_has_at_most_three_sentences():
    watching = diagnosis(table(4))
    rows = [[1e-9, 1e-6, 1e-3, 1.0]] * 12
    (update,) = [update for step in run_of(rows, [1.0] * 12, learning_rate=0.1) for update in watching.observe(step)]
    assert update.finding.cause.count(". ") <= 2
    assert update.finding.cause.endswith(".")


@pytest.mark.parametrize("seed", range(40))
def test_figures_of_any_size_raise_no_warning(seed, caplog):
    rng, extremes = np.random.default_rng(seed), np.array([0.0, 5e-324, 1e-30, 1.0, 1e30, 1e308, INF, NAN])
    reports = []
    for step in range(60):
        figures = {name: rng.choice(extremes, 3) for name in LAYER_FIGURES}
        losses, rates = rng.choice([*extremes, None], 1), rng.choice(extremes[:-1], 1)
        norms, is_sampled = rng.choice(extremes[:-1], 3), step % 3 == 0
        rest = {"sampled": is_sampled, "figures": figures if is_sampled else {}, "learning_rate": float(rates[0])}
        reports.append(report(norms, step, losses[0], **rest))
    watching = diagnosis(table(3))
    for each in reports:  # a warning is an error here, which a guard would log
        watching.observe(each)
    assert caplog.records == []


@pytest.mark.parametrize("method", ["_finding", "_event"])
def test_a_finding_of_which_a_fault_kept_the_words_is_told_at_the_next_step(monkeypatch, method):
    kept = diagnosis(table(2))
    sound, failing = [report([1.0, 1.0], step) for step in range(3)], report([NAN, 1.0], 3, nonfinite=[2, 0])
    for each in sound:
        assert kept.observe(each) == []
    with monkeypatch.context() as broken:
        broken.setattr(type(kept), method, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kept.observe(failing)
    (update,) = kept.observe(report([NAN, 1.0], 4, nonfinite=[2, 0]))
    assert (update.is_new, update.finding.kind, update.finding.step) == (True, "nonfinite", 3)
    assert kept.observe(report([NAN, 1.0], 5, nonfinite=[2, 0])) == []


def test_a_finding_whose_end_a_fault_has_kept_is_ended_at_the_next_step(monkeypatch):
    kept = diagnosis(table(2))
    kept.observe(report([NAN, 1.0], 0, nonfinite=[2, 0]))
    with monkeypatch.context() as broken:
        broken.setattr(type(kept), "_event", lambda *_: 1 / 0)
        for step in range(1, 40):
            try:
                assert kept.observe(report([1.0, 1.0], step)) == []
            except ZeroDivisionError:
                break
    (update,) = kept.observe(report([1.0, 1.0], step + 1))
    assert (update.ended, update.finding.step) == (True, 0)
    assert kept.open_findings() == []
