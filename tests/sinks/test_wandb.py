"""Rows and findings in real offline runs of Weights & Biases, read back from what they have written."""

import json
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import wandb
from torch import nn

import gradwatch
from gradwatch import Wandb
from tests.reports import NAN, findings, report, run_of
from tests.sinks.test_memory import row_of
from tests.sinks.test_used_again import use

pytestmark = pytest.mark.slow
(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begin a run in ``tmp_path``."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield lambda: wandb.init(dir=str(tmp_path), project="test")
    wandb.teardown()


def records_of(directory):
    """Finish the run, and yield what it has written: a log of LevelDB, each of whose records is a protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.finish()
    wandb.teardown()  # waits until all is written
    (path,) = directory.rglob("*.wandb")
    content, at, record = path.read_bytes(), 7, b""  # after the name and version of the format
    while at + 7 <= len(content):
        if (left := 32_768 - at % 32_768) < 7:  # no record begins at the end of a block
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(record)
            record = b""


def history_of(directory):
    """Return the rows of W&B's history, by its own steps."""
    rows = {}
    for record in records_of(directory):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows[items["_step"]] = items
    return rows


def train(sink, after_step=lambda step: None, sick_at=-1, log_every_n_steps=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, sinks=[sink], log_every_n_steps=log_every_n_steps, clip=0.1) as watcher:
        for step in range(20):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 8)).pow(2).mean()
            (loss * NAN if step == sick_at else loss).backward()
            optimizer.step()
            after_step(step)
    return watcher


def ours(rows):
    """Return the rows of gradwatch's, by its own steps."""
    return {row["gradwatch/step"]: row for row in rows.values() if "gradwatch/loss" in row}


def mine(rows):
    return {step: row["mine"] for step, row in rows.items() if "mine" in row}


def test_a_loop_that_logs_nothing_itself_gets_every_row(begin, tmp_path):
    begin()
    watcher = train(Wandb())
    rows = ours(history_of(tmp_path))
    assert list(rows) == list(range(0, 20, 2))
    for name in ("loss", "learning_rate", "grad_norm_total", "grad_norm_clipped_total"):
        written = [row[f"gradwatch/{name}"] for row in rows.values()]
        np.testing.assert_allclose(written, watcher.history[name][::2], rtol=1e-6)
    assert sum(row["gradwatch/clipped_steps"] for row in rows.values()) > 10
    assert not [key for key in rows[0] if "weight" in key or "bias" in key]  # never a key for each layer


def test_calls_without_a_step_come_between_the_rows(begin, tmp_path):
    run = begin()
    train(Wandb(run), lambda step: run.log({"mine": step}))
    rows = history_of(tmp_path)
    assert list(mine(rows).values()) == list(range(20))
    assert list(ours(rows)) == list(range(0, 20, 2))


@pytest.mark.parametrize("every", [1, 5])
def test_steps_that_the_loop_gives_stay_as_they_are(begin, tmp_path, every):
    run = begin()

    def log(step):
        if step % every == every - 1:
            run.log({"mine": step}, step=step // every)

    train(Wandb(), log, log_every_n_steps=1, sick_at=12)
    run.log({"mine": 20}, step=20 // every)
    rows = history_of(tmp_path)
    assert mine(rows) == {step // every: step for step in range(20) if step % every == every - 1} | {20 // every: 20}
    assert set(rows) == set(mine(rows))
    assert len(ours(rows)) == 20 // every - 1  # none before the first call; at one step of W&B's the last row counts


def test_steps_that_the_loop_gives_after_the_last_row_stay_as_they_are(begin, tmp_path):
    run = begin()
    train(Wandb(), lambda step: run.log({"mine": step}, step=0) if step == 19 else None)
    run.log({"mine": 20}, step=1)
    rows = history_of(tmp_path)
    assert mine(rows) == {0: 19, 1: 20}
    assert list(ours(rows)) == [18]


def test_a_finding_is_an_alert_a_count_and_a_line_of_a_table(begin, tmp_path):
    begin()
    watcher = train(Wandb(), sick_at=12)
    (finding,) = watcher.findings
    records = list(records_of(tmp_path))
    (alert,) = [record.alert for record in records if record.WhichOneof("record_type") == "alert"]
    assert alert.title == f"nonfinite since step 12 in {finding.layer}"
    assert alert.level == "ERROR"
    assert alert.text.startswith("What: nonfinite (error)")
    assert "Why:" in alert.text
    tables = sorted(tmp_path.rglob("*.table.json"), key=lambda path: path.stat().st_mtime_ns)
    *_, found = [json.loads(path.read_text()) for path in tables if "findings" in path.name]
    assert found["columns"][:4] == ["kind", "severity", "layer", "step"]
    (cells,) = found["data"]
    assert (cells[:4], cells[-1]) == (["nonfinite", "error", finding.layer, "12"], finding.message)
    *_, layers = [json.loads(path.read_text()) for path in tables if "layers" in path.name]
    assert [line[0] for line in layers["data"]] == list(watcher.history.layers)
    assert layers["columns"][:2] == ["layer", "grad_norm_highest"]  # no norm was finite


def test_open_findings_are_counted_and_layers_are_one_histogram(begin, tmp_path):
    begin()
    train(Wandb(), sick_at=12)
    rows = ours(history_of(tmp_path))
    assert ["gradwatch/open_findings/nonfinite" in row for row in rows.values()] == [False] * 6 + [True] * 4
    assert sum(rows[0]["gradwatch/log10_grad_norm/values"]) == 4
    assert "gradwatch/log10_grad_norm/values" not in rows[12]  # no norm was finite


def test_metrics_are_drawn_along_their_own_steps(begin, tmp_path):
    begin()
    train(Wandb())
    metrics = [record.metric for record in records_of(tmp_path) if record.WhichOneof("record_type") == "metric"]
    assert [(each.name or each.glob_name, each.step_metric) for each in metrics[:2]] == [
        ("gradwatch/step", ""),
        ("gradwatch/*", "gradwatch/step"),
    ]


def test_a_second_optimizer_has_names_of_its_own(begin, tmp_path):
    sink = Wandb(begin())
    for optimizer in (0, 1):
        sink.write_row(row_of([report([3.0, 4.0], optimizer, optimizer=optimizer)]))
    sink.close()
    rows = history_of(tmp_path)
    assert rows[0]["gradwatch/grad_norm_total"] == rows[1]["gradwatch/grad_norm_total/optimizer_1"] == 5.0


def test_titles_of_alerts_are_short_and_differ(begin, tmp_path):
    sink = Wandb(begin())
    for step in (3, 4):
        sink.write_finding(replace(SICK, layer="block." * 20, step=step), ended=False)
    sink.write_finding(replace(SICK, layer="block." * 20, step=4, last_step=9), ended=True)
    titles = [record.alert.title for record in records_of(tmp_path) if record.WhichOneof("record_type") == "alert"]
    assert len(set(titles)) == len(titles) == 2
    assert max(map(len, titles)) < 64


def test_without_a_run_one_line_says_what_to_call_and_nothing_is_lost(begin, tmp_path, caplog):
    late = []
    train(Wandb(), lambda step: late or late.append(begin()) if step == 11 else None)
    assert "call wandb.init() before the first update, or give Wandb(run)" in caplog.text
    assert list(ours(history_of(tmp_path))) == list(range(0, 20, 2))


def test_each_training_is_in_the_run_that_is_active_then(begin, tmp_path):
    sink, told = Wandb(), []
    for _ in range(2):
        run = begin()
        use(sink)
        told.append((run.summary["gradwatch/step"], run.step))
        run.finish()
    assert told[0] == told[1]
    wandb.teardown()
    tables = [json.loads(path.read_text())["data"] for path in tmp_path.rglob("findings_*.table.json")]
    assert max(map(len, tables)) == 12


def test_a_run_that_was_given_takes_a_second_training(begin, tmp_path):
    sink = Wandb(begin())
    for optimizer in (0, 1):
        sink.write_row(row_of([report([3.0, 4.0], optimizer, optimizer=optimizer)]))
        sink.close()
    rows = history_of(tmp_path)
    assert rows[0]["gradwatch/grad_norm_total"] == rows[1]["gradwatch/grad_norm_total/optimizer_1"] == 5.0


def test_an_alert_is_for_a_finding_that_opens_and_comes_once_it_can(begin, tmp_path, monkeypatch):
    sink = Wandb(run := begin())
    sink.write_finding(replace(SICK, last_step=9), ended=False)  # a resumed run goes on with it
    other = replace(SICK, layer="w1")
    with monkeypatch.context() as patch:
        patch.setattr(run, "alert", _refuse)
        with pytest.raises(OSError, match="down"):
            sink.write_finding(other, ended=False)
    for cause in ("", "Known better."):
        sink.write_finding(replace(other, cause=cause), ended=False)
    titles = [record.alert.title for record in records_of(tmp_path) if record.WhichOneof("record_type") == "alert"]
    assert titles == ["nonfinite since step 3 in w1"]


def _refuse(**arguments):
    raise OSError("down")


def test_a_run_that_is_over_costs_one_warning(begin, caplog):
    begin()
    watcher = train(Wandb(), lambda step: wandb.finish() if step == 9 else None)
    assert len(watcher.history) == 20
    assert len([record for record in caplog.records if "Wandb failed" in record.getMessage()]) == 1


def test_disabled_runs_take_everything(monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.init()
    train(Wandb(), sick_at=12)
    wandb.finish()
    assert not [record for record in caplog.records if "Wandb" in record.getMessage()]
    assert caplog.records[-1].levelno == logging.ERROR  # the finding


def test_what_is_no_run_is_an_error():
    with pytest.raises(TypeError, match=r"Wandb\(run=…\): expected what wandb\.init\(\) returns, got str"):
        Wandb("my-run")


@pytest.mark.parametrize("sink", [Wandb, gradwatch.Mlflow])
def test_without_the_package_an_error_says_what_to_install(sink, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {sink.__name__.lower()}"):
        sink()


@pytest.mark.parametrize("sink", [Wandb, gradwatch.Mlflow])
def test_a_folder_of_that_name_is_not_the_package(sink, monkeypatch, tmp_path):
    name = sink.__name__.lower()
    (tmp_path / name).mkdir()
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match=f"pip install {name}"):
        sink()


LEFT_OPEN = """
import sys, torch, wandb
from torch import nn
import gradwatch
wandb.init(dir=sys.argv[1], project="test")
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watcher = gradwatch.watch(model, optimizer, sinks=[gradwatch.Wandb()], log_every_n_steps=2)
for _ in range(10):
    optimizer.zero_grad()
    model(torch.randn(4, 4)).pow(2).mean().backward()
    optimizer.step()
"""


@pytest.mark.process
def test_a_script_that_closes_nothing_loses_nothing(begin, tmp_path):
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, tmp_path], capture_output=True, text=True, check=True)
    assert "gradwatch" not in done.stderr
    assert list(ours(history_of(tmp_path))) == list(range(0, 10, 2))


def test_a_row_without_gradients_has_no_histogram(begin, tmp_path):
    sink = Wandb(begin())
    sink.write_row(row_of(run_of([[0.0, NAN]])))
    sink.close()
    assert not [key for key in history_of(tmp_path)[0] if "log10" in key]


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_a_trainer_of_hugging_face_that_reports_here_brings_rows_and_findings(begin, tmp_path):
    from gradwatch.huggingface import GradWatch
    from tests.test_huggingface import Regression, by_hand, fit

    begin()
    fit(Regression(), tmp_path, GradWatch(), spoil=[3], report_to="wandb")
    rows = history_of(tmp_path)
    totals = {
        row["gradwatch/step"]: row.get("gradwatch/grad_norm_total") for row in rows.values() if "gradwatch/step" in row
    }
    assert list(totals) == [0, 1, 2, 3, 4, 5]
    expected = np.linalg.norm(by_hand(Regression)[0], axis=1)
    assert [totals[step] for step in (0, 1, 2)] == pytest.approx(expected[:3], rel=1e-4)
    names = {key for row in rows.values() for key in row}
    assert "train/loss" in names
    assert any(name.startswith("gradwatch/findings") for name in names)
