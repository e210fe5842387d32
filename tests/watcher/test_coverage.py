"""What was not measured is never called healthy: it is counted, said at the end, and kept in files and checkpoints."""

import json
import logging

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.cli.report import command as report_command
from gradwatch.detect.unbounded import Unbounded
from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.run import Coverage
from gradwatch.findings import UnjudgedSteps
from gradwatch.measure import statistics
from gradwatch.sinks.jsonl import JsonLines
from gradwatch.views.phrases import verdict
from tests.tab_logs import Tab


def parts(**options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, gradwatch.watch(model, optimizer, **options)


def train(model, optimizer, steps):
    for _ in range(steps):
        loss = (model(torch.randn(8, 3)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fail(*args, **kwargs):
    raise RuntimeError("cannot be measured")


def coverage_of(watcher):
    return watcher._loop.coverage()


def test_a_run_that_was_measured_whole_says_nothing_of_it(tmp_path, caplog):
    model, optimizer, watcher = parts(log_dir=tmp_path)
    train(model, optimizer, 12)
    watcher.close()
    assert coverage_of(watcher) == Coverage(12, 12)
    assert repr(watcher) == "Watcher(2 layers, 12 steps, 0 findings)"
    assert caplog.messages == []
    (run,) = read_runs(tmp_path)
    assert (run.coverage, verdict(run).word) == (None, "healthy")


def test_steps_that_were_not_measured_are_counted_and_told_at_the_end(monkeypatch, tmp_path, caplog):
    model, optimizer, watcher = parts(log_dir=tmp_path / "files", sinks=[JsonLines(tmp_path / "lines")])
    train(model, optimizer, 5)
    with monkeypatch.context() as broken, caplog.at_level(logging.CRITICAL, logger="gradwatch"):
        broken.setattr(statistics, "measure", fail)
        train(model, optimizer, 15)
    assert repr(watcher) == "Watcher(2 layers, 20 steps, 0 findings, 15 steps not measured)"
    watcher.close()
    assert any("15 of 20 steps were not measured" in message for message in caplog.messages)
    (run,) = read_runs(tmp_path / "files")
    assert (run.coverage, verdict(run).word) == (Coverage(20, 5), "unknown")
    assert verdict(run).words == "No findings in what is known: 20 steps, 15 of them not measured."
    (line,) = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines() if '"coverage"' in line]
    assert line == {"event": "coverage", "steps": 20, "measured": 5}


def test_a_run_of_which_nothing_was_measured_is_no_healthy_one(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(statistics, "measure", fail)
    model, optimizer, watcher = parts(log_dir=tmp_path)
    train(model, optimizer, 20)
    assert "20 steps not measured" in watcher._repr_html_() or "20 steps, none measured" in watcher._repr_html_()
    watcher.close()
    assert any("none of the 20 steps was measured" in message for message in caplog.messages)
    (run,) = read_runs(tmp_path)
    assert verdict(run).words == "No findings in what is known: 20 steps, none measured."


def test_a_step_that_was_measured_and_not_judged_is_not_known_either(monkeypatch):
    model, optimizer, watcher = parts()
    train(model, optimizer, 3)
    track = watcher._loop.steps.tracks.of(optimizer)
    monkeypatch.setattr(track.diagnosis._detectors, "observe", fail)
    train(model, optimizer, 4)
    assert coverage_of(watcher) == Coverage(7, 3)


@pytest.mark.parametrize(("fail_on", "status"), [([], 0), (["--fail-on", "nonfinite"], 7)])
def test_a_report_that_is_to_be_free_of_findings_fails_where_nobody_looked(monkeypatch, tmp_path, fail_on, status):
    from click.testing import CliRunner

    model, optimizer, watcher = parts(log_dir=tmp_path)
    train(model, optimizer, 2)
    with monkeypatch.context() as broken:
        broken.setattr(statistics, "measure", fail)
        train(model, optimizer, 2)
    watcher.close()
    done = CliRunner().invoke(report_command, [str(tmp_path), "--json", *fail_on])
    assert done.exit_code == status
    assert json.loads(done.output)["unmeasured_steps"] == 2


def resumed_from(watcher):
    """Model, optimizer and watcher of another process, which goes on from the state of this one."""
    state = watcher.state_dict()
    watcher.close()
    model, optimizer, resumed = parts()
    resumed.load_state_dict(state)
    return model, optimizer, resumed


def test_a_resumed_run_remembers_what_was_not_measured(monkeypatch):
    model, optimizer, watcher = parts()
    with monkeypatch.context() as broken:
        broken.setattr(statistics, "measure", fail)
        train(model, optimizer, 2)
    train(model, optimizer, 3)
    model, optimizer, resumed = resumed_from(watcher)
    train(model, optimizer, 1)
    assert coverage_of(resumed) == Coverage(6, 4)


def test_a_rule_that_fails_is_named_as_not_looked_for_everywhere_and_the_run_is_unknown(monkeypatch, tmp_path, caplog):
    from click.testing import CliRunner

    monkeypatch.setattr(Unbounded, "examine", fail)
    model, optimizer, watcher = parts(log_dir=tmp_path / "files", sinks=[JsonLines(tmp_path / "lines")])
    train(model, optimizer, 20)
    words = "not looked for, of 20 steps: exploding by the rule Unbounded at 20"
    assert repr(watcher) == f"Watcher(2 layers, 20 steps, 0 findings, {words})"
    assert words in watcher._repr_html_()
    watcher.close()
    assert any(f"gradwatch: {words}, because of the fault" in message for message in caplog.messages)
    unjudged = (UnjudgedSteps("exploding", "Unbounded", 20),)
    (run,) = read_runs(tmp_path / "files")
    assert (run.coverage, verdict(run).word) == (Coverage(20, 20, unjudged), "unknown")
    assert verdict(run).words == f"No findings in what is known: {words}."
    *_, line = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines() if '"coverage"' in line]
    entry = {"kind": "exploding", "rule": "Unbounded", "steps": 20}
    assert line == {"event": "coverage", "steps": 20, "measured": 20, "unjudged": [entry]}
    done = CliRunner().invoke(report_command, [str(tmp_path / "files"), "--json", "--fail-on", "any"])
    assert (done.exit_code, json.loads(done.output)["not_looked_for"]) == (7, [entry])
    assert Tab(tmp_path / "files").get("findings", run=".").content["unjudged"] == words


def test_a_resumed_run_remembers_which_rules_have_failed_and_tries_them_again(monkeypatch):
    model, optimizer, watcher = parts()
    with monkeypatch.context() as broken:
        broken.setattr(Unbounded, "examine", fail)
        train(model, optimizer, 4)
    model, optimizer, resumed = resumed_from(watcher)
    train(model, optimizer, 3)
    assert coverage_of(resumed) == Coverage(7, 7, (UnjudgedSteps("exploding", "Unbounded", 4),))


def test_rules_of_several_optimizers_are_counted_together(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in model]
    watcher = gradwatch.watch(model, optimizers)
    monkeypatch.setattr(Unbounded, "examine", fail)
    for _ in range(5):
        (model(torch.randn(8, 3)) - 1).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert coverage_of(watcher) == Coverage(10, 10, (UnjudgedSteps("exploding", "Unbounded", 10),))
