import copy
import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import Csv
from gradwatch.sinks import appended_file
from tests.reports import INF, NAN, findings, report, run_of
from tests.sinks.test_memory import row_of

(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "run.csv"


def write(path, *rows):
    sink = Csv(path)
    for row in rows:
        sink.write_row(row)
    sink.close()


def lines_of(path, which=""):
    with path.with_name(f"run{which}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_is_a_line_of_totals_and_a_line_for_each_layer(path):
    rate = {"learning_rate": 0.1, "grad_norm_clipped_total": 1.0, "optimizer": 1}
    write(path, row_of(run_of([[3.0, 8.0], [3.0, 4.0]], [0.5, 0.25], **rate), skipped_steps=2))
    assert lines_of(path) == [
        {
            "step": "1",
            "optimizer": "1",
            "loss": "0.25",
            "learning_rate": "0.1",
            "grad_norm_total": "5.0",
            "grad_norm_clipped_total": "1.0",
            "grad_norm_total_highest": str(float(np.hypot(3, 8))),
            "grad_norm_total_lowest": "5.0",
            "clipped_steps": "2",
            "skipped_steps": "2",
        }
    ]
    layers = lines_of(path, ".layers")
    assert [(each["step"], each["optimizer"], each["layer"], each["grad_norm"]) for each in layers] == [
        ("1", "1", "w0", "3.0"),
        ("1", "1", "w1", "4.0"),
    ]
    assert [each["grad_norm_highest"] for each in layers] == ["3.0", "8.0"]
    assert lines_of(path, ".findings") == []


def test_pandas_reads_numbers_that_are_not_finite_and_cells_that_are_empty(path):
    sick = report([NAN, INF, 2.0, NAN], loss=NAN, nonfinite=[1, 0, 0, 0])
    write(path, row_of([sick]), row_of([report([1.0, 1.0, 1.0, NAN], 1, loss=-INF, grad_norm_total=INF)]))
    frame = pd.read_csv(path)
    assert np.isnan(frame["loss"][0])
    assert (frame["loss"][1], frame["grad_norm_total"][1]) == (-INF, INF)
    assert frame["learning_rate"].isna().all()
    layers = pd.read_csv(path.with_name("run.layers.csv"))
    norms = layers.pivot(index="step", columns="layer", values="grad_norm")
    assert norms.columns.tolist() == ["w0", "w1", "w2"]  # w3 never had a gradient
    np.testing.assert_array_equal(norms, [[NAN, INF, 2.0], [1.0, 1.0, 1.0]])
    assert layers["nonfinite"].tolist() == [1, 0, 0, 0, 0, 0]
    assert [each["loss"] for each in lines_of(path)] == ["nan", "-inf"]


def test_findings_are_lines_as_they_open_go_on_and_end(path):
    sink = Csv(path)
    sink.write_finding(SICK, ended=False)
    sink.write_finding(replace(SICK, cause='known, "better"\nnow'), ended=False)
    sink.write_finding(replace(SICK, last_step=9), ended=True)
    sink.close()
    frame = pd.read_csv(path.with_name("run.findings.csv"))
    assert frame["event"].tolist() == ["opened", "updated", "ended"]
    assert frame["last_step"].tolist() == [3, 3, 9]
    assert frame["cause"][1] == 'known, "better"\nnow'
    assert (frame["message"] == SICK.message).all()


def test_a_second_run_is_added_and_the_names_of_columns_come_once(path):
    for _ in range(2):
        write(path, row_of(run_of([[1.0]])))
    assert len(lines_of(path)) == len(lines_of(path, ".layers")) == 2


@pytest.mark.parametrize("at_once", [7, 65_536])
@pytest.mark.parametrize("left", ["7,0,0.5,0.1,1.0,1.0,1.", "7", ""])
def test_a_line_that_a_killed_process_has_torn_is_taken_away(path, left, at_once, monkeypatch):
    monkeypatch.setattr(appended_file, "_READ_AT_ONCE", at_once)
    write(path, *(row_of([report([1.0], step)]) for step in range(5)))
    with path.open("a") as file:
        file.write(left)
    write(path, row_of([report([1.0], 7)]))
    assert [int(each["step"]) for each in lines_of(path)] == [*range(5), 7]


def test_a_file_of_something_else_is_left_alone(path):
    path.parent.mkdir()
    path.write_text("name,age\nAda,36\n")
    with pytest.raises(ValueError, match=r"run\.csv holds something else than rows of gradwatch"):
        Csv(path)
    assert path.read_text() == "name,age\nAda,36\n"


def test_a_directory_in_the_files_place_is_an_error(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        Csv(tmp_path)


def test_sinks_that_were_made_on_every_rank_write_the_names_of_columns_once(path):
    first, second = Csv(path), Csv(path)
    first.write_row(row_of(run_of([[1.0]])))
    second.close()
    first.close()
    assert path.read_text().count("grad_norm_total,") == 1


def test_what_is_written_after_a_full_disk_comes_once(path, monkeypatch):
    sink, row = Csv(path), row_of(run_of([[1.0]]))
    with monkeypatch.context() as patch:
        patch.setattr(sink._totals._file, "write", _no_space)
        with pytest.raises(OSError, match="No space"):
            sink.write_row(row)
    sink.write_row(row)
    sink.close()
    assert len(lines_of(path)) == len(lines_of(path, ".layers")) == 1


def _no_space(lines):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sink: pickle.loads(pickle.dumps(sink))])
def test_a_copy_goes_on_in_the_same_files(path, copied):
    sink = Csv(path)
    sink.write_row(row_of(run_of([[1.0]])))
    other = copied(sink)
    other.write_row(row_of(run_of([[1.0]] * 2)))
    for each in (sink, other):
        each.close()
    assert [each["step"] for each in lines_of(path)] == ["0", "1"]


def test_the_figures_are_those_of_history(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, sinks=[Csv(path)], log_every_n_steps=4, clip=0.1) as watcher:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).pow(2).mean().backward()
            optimizer.step()
    frame, history = pd.read_csv(path).set_index("step"), watcher.history
    assert frame.index.tolist() == [0, 4, 8, 12, 16]
    for name in ("loss", "learning_rate", "grad_norm_total", "grad_norm_clipped_total"):
        np.testing.assert_allclose(frame[name], history[name][frame.index], rtol=1e-6)
    layers = pd.read_csv(path.with_name("run.layers.csv")).pivot(index="step", columns="layer", values="grad_norm")
    np.testing.assert_allclose(layers[list(history.layers)], history["grad_norm"][frame.index], rtol=1e-6)
    clipped = history["grad_norm_clipped_total"] < history["grad_norm_total"]
    assert frame["clipped_steps"].sum() == clipped[:17].sum() > 0


ENDLESS = """
import sys
from gradwatch import Csv
from gradwatch.sinks import appended_file
from tests.reports import report
from tests.sinks.test_memory import row_of
sink, step = Csv(sys.argv[1]), 0
while True:
    sink.write_row(row_of([report([1.25] * 200, step, loss=0.5)]))
    step += 1
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_killed_process_leaves_whole_lines(path):
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, path], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not path.exists() or path.stat().st_size < 10_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    write(path, row_of([report([1.25] * 200, 5, loss=0.5)]))
    frame = pd.read_csv(path)
    assert frame["step"].tolist() == [*range(len(frame) - 1), 5]
    assert (frame["loss"] == 0.5).all()
    layers = pd.read_csv(path.with_name("run.layers.csv"))
    assert (layers["grad_norm"] == 1.25).all()
    assert not layers["layer"].isna().any()


def test_files_that_somebody_deletes_are_made_anew(path):
    sink = Csv(path)
    for step in range(3):
        sink.write_row(row_of([replace(report([1.0, 1.0]), step=step)]))
        if step == 0:
            for each in path.parent.iterdir():
                each.unlink()
            path.parent.rmdir()
    sink.write_finding(SICK, False)
    sink.close()
    assert [line["step"] for line in lines_of(path)] == ["1", "2"]
    assert [line["kind"] for line in lines_of(path, ".findings")] == ["nonfinite"]


def test_findings_and_what_was_flushed_are_put_on_the_disk_if_asked_for(path, synced):
    sink = Csv(path, fsync=True)
    sink.flush()
    assert synced == {}  # nothing was written yet
    files = [path, path.with_name("run.layers.csv"), path.with_name("run.findings.csv")]
    for step, act in enumerate((lambda: sink.write_finding(SICK, ended=False), sink.flush, sink.close)):
        sink.write_row(row_of([replace(report([1.0, 1.0]), step=step)]))
        assert synced == {}
        act()
        assert [synced.take(each) for each in files] == [each.stat().st_size for each in files]
        assert synced.take(path.parent) is not None


def test_nothing_waits_for_the_disk_unless_asked_for(path, synced):
    sink = Csv(path)
    sink.write_finding(SICK, ended=False)
    sink.write_row(row_of(run_of([[1.0]])))
    sink.flush()
    sink.close()
    assert synced == {}
