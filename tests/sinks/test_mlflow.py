"""Rows and findings in real runs of MLflow, in its store of files."""

import math
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import Mlflow
from tests.reports import INF, NAN, findings, report
from tests.sinks.test_memory import row_of
from tests.sinks.test_used_again import use

(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield mlflow.MlflowClient()
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


def train(sink, sick_at=-1, after_step=lambda step: None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, sinks=[sink], log_every_n_steps=4, clip=0.1) as watcher:
        for step in range(20):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 8)).pow(2).mean()
            (loss * NAN if step == sick_at else loss).backward()
            optimizer.step()
            after_step(step)
    return watcher


def metric(client, run_id, name):
    return {each.step: each.value for each in client.get_metric_history(run_id, f"gradwatch/{name}")}


def table_of(tmp_path, name):
    (path,) = tmp_path.rglob(f"{name}.tsv")
    head, *lines = path.read_text().splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_totals_are_metrics_at_the_steps_of_gradwatch(client, tmp_path):
    with mlflow.start_run() as run:
        watcher = train(Mlflow())
    for name in ("loss", "learning_rate", "grad_norm_total", "grad_norm_clipped_total"):
        written = metric(client, run.info.run_id, name)
        assert list(written) == [0, 4, 8, 12, 16]
        np.testing.assert_allclose(list(written.values()), watcher.history[name][::4], rtol=1e-6)
    assert len(client.get_run(run.info.run_id).data.metrics) == 8  # never one for each layer
    assert [line["layer"] for line in table_of(tmp_path, "layers")] == list(watcher.history.layers)
    norms = [float(line["grad_norm"]) for line in table_of(tmp_path, "layers")]
    np.testing.assert_allclose(norms, watcher.history["grad_norm"][16], rtol=1e-6)
    assert not list(tmp_path.rglob("findings.tsv"))


def test_a_finding_is_a_tag_that_runs_are_found_by_and_a_line_of_a_file(client, tmp_path):
    with mlflow.start_run() as run:
        (finding,) = train(Mlflow(), sick_at=10).findings
    with mlflow.start_run():
        train(Mlflow())
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`gradwatch.nonfinite` LIKE '%nonfinite%'", output_format="list"
    )
    assert [each.info.run_id for each in found] == [run.info.run_id]
    assert found[0].data.tags["gradwatch.nonfinite"] == finding.message
    (line,) = table_of(tmp_path, "findings")
    assert (line["layer"], line["step"], line["last step"]) == (finding.layer, "10", str(finding.last_step))
    assert metric(client, run.info.run_id, "open_findings/nonfinite") == {12: 1.0, 16: 1.0}


def test_an_end_is_in_the_tag(client):
    with mlflow.start_run() as run:
        sink = Mlflow()
        sink.write_finding(SICK, ended=False)
        sink.write_finding(replace(SICK, last_step=8), ended=True)
        sink.write_row(row_of([report([1.0, 1.0], 9)]))
        sink.close()
    tags = client.get_run(run.info.run_id).data.tags
    assert tags["gradwatch.nonfinite"].endswith("(ended: last seen at step 8)")
    assert metric(client, run.info.run_id, "open_findings/nonfinite") == {9: 0.0}


def test_numbers_that_are_not_finite_are_written(client):
    with mlflow.start_run() as run:
        Mlflow().write_row(row_of([report([NAN], 2, loss=INF, nonfinite=[1], grad_norm_total=NAN)]))
    assert metric(client, run.info.run_id, "loss") == {2: INF}
    assert math.isnan(metric(client, run.info.run_id, "grad_norm_total")[2])


def test_a_run_is_given_by_its_id_and_stays_open(client):
    experiment = client.create_experiment("mine")
    run_id = client.create_run(experiment).info.run_id
    train(Mlflow(run_id))
    assert mlflow.active_run() is None
    assert list(metric(client, run_id, "loss")) == [0, 4, 8, 12, 16]
    assert client.get_run(run_id).info.status == "RUNNING"


def test_each_training_is_in_the_run_that_is_active_then(client):
    sink, told = Mlflow(), []
    for _ in range(2):
        with mlflow.start_run() as run:
            use(sink)
            sink.write_row(row_of([report([1.0, 2.0], 20)]))
            sink.close()
        text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/gradwatch/findings.tsv")
        told.append((text, client.get_run(run.info.run_id).data.tags["gradwatch.nonfinite"]))
        assert list(metric(client, run.info.run_id, "grad_norm_total")) == [0, 1, 2, 20]
        assert not metric(client, run.info.run_id, "open_findings/nonfinite")
    assert told[0] == told[1]


def test_the_file_of_findings_is_written_when_they_have_changed(client, monkeypatch):
    written, log_text = [], mlflow.MlflowClient.log_text

    def count(client, run_id, text, path):
        written.append(path)
        log_text(client, run_id, text, path)

    monkeypatch.setattr(mlflow.MlflowClient, "log_text", count)
    with mlflow.start_run():
        sink = Mlflow()
        for finding, times in ((SICK, 1), (replace(SICK, last_step=8), 2)):
            sink.write_finding(finding, ended=False)
            for _ in range(3):
                sink.flush()
            assert written == ["gradwatch/findings.tsv"] * times
        sink.close()


def test_without_a_run_one_line_says_what_to_call_and_nothing_is_lost(client, caplog):
    train(Mlflow(), after_step=lambda step: mlflow.start_run() if step == 11 else None)
    assert "call mlflow.start_run() before training, or give run_id=" in caplog.text
    assert list(metric(client, mlflow.active_run().info.run_id, "loss")) == [0, 4, 8, 12, 16]


def test_a_run_object_is_an_error(client):
    with mlflow.start_run() as run, pytest.raises(TypeError, match=r"expected run\.info\.run_id, a string"):
        Mlflow(run)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("is_given", [False, True])
def test_a_trainer_of_hugging_face_that_reports_here_brings_rows_and_findings_once(is_given, client, tmp_path):
    from gradwatch.huggingface import GradWatch
    from tests.test_huggingface import Regression, fit

    with mlflow.start_run() as run:
        sinks = [Mlflow(run.info.run_id)] if is_given else []
        fit(Regression(), tmp_path, GradWatch(sinks=sinks), spoil=[3], report_to="mlflow")
    logged = client.get_run(run.info.run_id).data
    assert "nonfinite in net.2.bias" in logged.tags["gradwatch.nonfinite"]
    assert "loss" in logged.metrics
    steps = [each.step for each in client.get_metric_history(run.info.run_id, "gradwatch/learning_rate")]
    assert steps == [0, 1, 2, 3, 4, 5]
