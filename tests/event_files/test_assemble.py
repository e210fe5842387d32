"""The arrays of a run: the same for report and tab, and the same whether built once or as it grows."""

from dataclasses import replace

import numpy as np

from gradwatch.event_files.assemble import RunAssembler
from gradwatch.event_files.event import decode_event
from gradwatch.event_files.format import NORMS, PACKED_FIGURES
from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.records import records
from gradwatch.sinks.tensorboard import TensorBoard
from tests.reports import INF, NAN, report, run_of
from tests.sinks.test_memory import row_of
from tests.tab_logs import Tab, write_run
from tests.written import TABLE, event, forge, norms, totals, train

ALL = {"from": 0, "to": 10_000, "width": 1_000}


def test_report_and_tab_read_the_same_figures(tmp_path):
    reports = run_of([[1.0, 2.0, NAN], [3.0, INF, NAN], [5.0, 6.0, 0.5]])
    for step in reports:
        step.figures.update({name: np.array([0.5, NAN, step.step]) for name in PACKED_FIGURES})
    write_run(tmp_path, reports)
    (run,) = read_runs(tmp_path)
    tab = Tab(tmp_path)
    np.testing.assert_array_equal(
        tab.get("cells", run=".", statistic="grad_norm", **ALL).values, run.packed["highest"].values
    )
    for layer in run.layers:
        curve = tab.get("curve", run=".", statistic="grad_norm", layer=layer, **ALL)
        column = run.layers.index(layer)
        np.testing.assert_array_equal(curve.values, [run.packed[name].values[:, column] for name in NORMS])
    for name in PACKED_FIGURES:
        cells = tab.get("cells", run=".", statistic=name, **ALL)
        np.testing.assert_array_equal(cells.values, run.packed[name].values)


def test_report_and_tab_agree_on_a_layer_that_came_later(tmp_path):
    first, second = run_of([[1.0, 2.0]] * 2, layers=("a", "b"))
    write_run(tmp_path, [first, replace(second, layers=("b", "c"))])
    (run,) = read_runs(tmp_path)
    assert run.layers == ("b", "c")
    np.testing.assert_array_equal(run.packed["highest"].values, [[2.0, NAN], [1.0, 2.0]])
    np.testing.assert_array_equal(
        Tab(tmp_path).get("cells", run=".", statistic="grad_norm", **ALL).values, run.packed["highest"].values
    )


def test_report_and_tab_agree_on_a_run_that_was_cut_and_went_on(tmp_path):
    for name, steps, norm in (("1", range(8), 1.0), ("2", range(4, 6), 9.0)):
        sink = TensorBoard(tmp_path)
        sink.continues = True
        for step in steps:
            sink.write_row(row_of([report([norm], step)]))
        sink.close()
        written = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        written.rename(tmp_path / f"events.out.tfevents.{name}.host")
    (run,) = read_runs(tmp_path)
    cells = Tab(tmp_path).get("cells", run=".", statistic="grad_norm", **ALL)
    assert run.packed["highest"].values[:, 0].tolist() == [1.0] * 4 + [9.0] * 2
    np.testing.assert_array_equal(cells.values, run.packed["highest"].values)


def test_a_run_that_grows_is_built_as_if_it_were_read_at_once(tmp_path):
    train(tmp_path, steps=12, spoil=7)
    found = [each for record in records(next(tmp_path.iterdir())) if (each := decode_event(record)) is not None]
    growing = RunAssembler()
    for each in found:
        growing.add(each)
        growing.build("run", 0.0, ())
    (whole,), built = read_runs(tmp_path), growing.build("run", 0.0, ())
    assert (built.layers, built.findings, built.ended) == (whole.layers, whole.findings, whole.ended)
    for name, series in whole.packed.items():
        np.testing.assert_array_equal(built.packed[name].values, series.values)
    for name, series in whole.curves.items():
        np.testing.assert_array_equal(built.curves[name].values, series.values)


def test_a_loss_that_is_not_finite_is_told_from_one_that_nobody_observed(tmp_path):
    reports = [report([1.0], step, loss) for step, loss in enumerate([0.5, None, NAN, INF, 0.25])]
    write_run(tmp_path, reports)
    (run,) = read_runs(tmp_path)
    assert run.curves["loss"].steps.tolist() == [0, 2, 3, 4]
    np.testing.assert_array_equal(run.curves["loss"].values, [0.5, NAN, NAN, 0.25])


def test_the_learning_rate_is_a_curve_of_each_optimizer(tmp_path):
    reports = [report([1.0], 0, learning_rate=0.5), report([1.0], 1, update=0, optimizer=1, learning_rate=0.125)]
    write_run(tmp_path, [*reports, report([1.0], 2, update=1)])
    (run,) = read_runs(tmp_path)
    assert run.curves["learning_rate"].values.tolist() == [0.5]
    assert run.curves["learning_rate/optimizer_1"].values.tolist() == [0.125]


def test_totals_of_a_damaged_file_name_no_million_optimizers(tmp_path):
    owners = [0.0, 1.0, 0.5, 1e30, NAN, INF, -1.0]
    rows = [event(step, layers=TABLE, grad_norm=norms(1, 2), totals=totals(optimizer=owner, skipped_steps=owner))
            for step, owner in enumerate(owners)]  # fmt: skip
    (run,) = read_runs(forge(tmp_path, *rows))
    assert set(run.curves) == {
        f"{name}{suffix}" for name in ("grad_norm_total", "grad_norm_clipped_total") for suffix in ("", "/optimizer_1")
    }
    assert run.skipped_steps == 1
