"""Findings in Lightning's real loggers: CSV, Weights & Biases offline, MLflow's file store, a second TensorBoard."""

import csv
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradwatch.lightning import GradWatch
from gradwatch.sinks.loggers import Loggers
from tests.reports import NAN, findings, report
from tests.test_lightning import NAMESPACES, fit, module_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
OPEN = "gradwatch/open_findings/nonfinite"


@pytest.fixture(params=NAMESPACES)
def pl(request):
    return importlib.import_module(request.param)


def loggers_of(pl):
    return importlib.import_module(f"{pl.__name__}.loggers")


def rows_of(logger):
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]


def test_a_csv_logger_counts_open_findings(pl, tmp_path):
    logger = loggers_of(pl).CSVLogger(tmp_path)
    fit(pl, module_of(pl, spoil=5), GradWatch(), tmp_path, logger=logger)
    assert column(rows_of(logger), OPEN) == [(5, 1.0)]


def test_the_count_falls_at_the_first_healthy_step(pl, tmp_path):
    logger = loggers_of(pl).CSVLogger(tmp_path)
    sink = Loggers([logger], totals=False)
    (first,) = findings([report([1.0, NAN], 7, nonfinite=[0, 2])])
    second = replace(first, layer="w0", step=9, raised_step=9, last_step=9)
    for finding, ended in ((first, False), (second, False), (replace(first, last_step=11), True), (second, True)):
        sink.write_finding(finding, ended)
    assert column(rows_of(logger), OPEN) == [(7, 1.0), (9, 2.0), (12, 1.0), (10, 0.0)]


def test_a_healthy_fit_logs_no_findings(pl, tmp_path):
    logger = loggers_of(pl).CSVLogger(tmp_path)
    fit(pl, module_of(pl), GradWatch(log_every_n_steps=1), tmp_path, logger=logger, log_every_n_steps=1)
    rows = rows_of(logger)
    assert len(column(rows, "grad_norm_total")) == 8
    assert not any("gradwatch" in name for name in rows[0])


def test_beside_a_tensorboard_logger_the_others_get_totals_and_findings(pl, tmp_path):
    kinds = loggers_of(pl)
    tensorboard, other = kinds.TensorBoardLogger(tmp_path, name="tb"), kinds.CSVLogger(tmp_path)
    callback = GradWatch(log_every_n_steps=2)
    fit(pl, module_of(pl, spoil=5), callback, tmp_path, logger=[tensorboard, other])
    rows = rows_of(other)
    totals = column(rows, "grad_norm_total")
    assert [step for step, _ in totals] == [0, 2, 4, 6]
    np.testing.assert_allclose(
        [value for _, value in totals], callback.watcher.history["grad_norm_total"][::2], rtol=1e-6
    )
    assert [step for step, _ in column(rows, "grad_norm_clipped_total")] == [0, 2, 4, 6]
    assert column(rows, OPEN)[0] == (5, 1.0)
    events = EventAccumulator(tensorboard.log_dir, size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("grad_norm_total")] == [0, 2, 4, 6]  # once each
    assert OPEN not in events.Tags()["scalars"]


def test_a_tensorboard_logger_beside_files_of_ones_own_gets_the_findings_as_text(pl, tmp_path):
    logger = loggers_of(pl).TensorBoardLogger(tmp_path, name="tb")
    callback = GradWatch(log_dir=tmp_path / "own")
    fit(pl, module_of(pl, spoil=5), callback, tmp_path, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert (events.Scalars(OPEN)[0].step, events.Scalars(OPEN)[0].value) == (5, 1.0)
    text = events.Tensors("gradwatch/findings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert callback.findings[0].message in text
    assert all(line.startswith("    ") for line in text.splitlines())


@pytest.mark.slow
def test_wandb_offline_gets_the_count_and_a_table(pl, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = loggers_of(pl).WandbLogger(save_dir=str(tmp_path), offline=True, project="test")
    callback = GradWatch()
    fit(pl, module_of(pl, spoil=5), callback, tmp_path, logger=logger)
    assert logger.experiment.summary[OPEN] == 1.0
    logger.experiment.finish()
    opened, closed = sorted((json.loads(path.read_text()) for path in tmp_path.rglob("*.table.json")), key=str)
    (finding,) = callback.findings
    for table, last_step in ((opened, "5"), (closed, "7")):  # as it opened, and as it was when the run was over
        assert table["columns"][0] == "kind"
        assert table["data"][0][:5] == ["nonfinite", "error", finding.layer, "5", last_step]
        assert table["data"][0][-1] == finding.message
    assert finding.last_step == 7


def test_mlflow_gets_the_count_and_a_file(pl, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = loggers_of(pl).MLFlowLogger(tracking_uri=(tmp_path / "mlruns").as_uri())
    callback = GradWatch()
    fit(pl, module_of(pl, spoil=5), callback, tmp_path, logger=logger)
    metric = logger.experiment.get_metric_history(logger.run_id, OPEN)[0]
    assert (metric.step, metric.value) == (5, 1.0)
    (written,) = tmp_path.rglob("findings.tsv")
    head, line = written.read_text().splitlines()
    assert head.startswith("kind\tseverity\tlayer")
    assert line.endswith(callback.findings[0].message)
    assert f"\t5\t{callback.findings[0].last_step}\tno\t" in line


def test_a_logger_that_fails_does_not_stop_the_fit(pl, tmp_path, caplog):
    class Broken(loggers_of(pl).CSVLogger):
        def log_metrics(self, metrics, step=None):
            if OPEN in metrics:
                raise OSError("the disk is full")
            super().log_metrics(metrics, step)

    callback = GradWatch()
    trainer = fit(pl, module_of(pl, spoil=5), callback, tmp_path, logger=Broken(tmp_path))
    assert trainer.global_step == 8
    assert "Loggers failed to write finding (OSError: the disk is full)" in caplog.text
