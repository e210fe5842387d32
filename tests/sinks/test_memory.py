import math
import sys

import numpy as np
import pytest

from gradwatch.measure.report import LAYER_FIGURES
from gradwatch.sinks import RowBuilder
from gradwatch.sinks.memory import History, Memory
from tests.reports import INF, NAN, findings, report, run_of


def row_of(reports, skipped_steps=0):
    builder = RowBuilder()
    for step in reports:
        builder.add(step)
    return builder.build(reports[-1], skipped_steps)


def history_of(reports, length):
    history = History(reports[0].layers, length)
    for step in reports:
        history.append(step)
    return history


def test_no_spike_is_lost_between_two_rows():
    row = row_of(run_of([[1.0, 2.0], [50.0, 2.0], [1.0, 0.01], [1.0, 2.0]]))
    assert row.report.step == 3
    assert row.highest.tolist() == [50.0, 2.0]
    assert row.lowest.tolist() == [1.0, 0.01]
    assert row.highest_total == pytest.approx(math.hypot(50, 2))
    assert row.lowest_total == pytest.approx(math.hypot(1, 0.01))


def test_every_row_starts_anew():
    builder = RowBuilder()
    first, second = run_of([[50.0], [1.0]])
    builder.add(first)
    builder.build(first, 0)
    builder.add(second)
    row = builder.build(second, 7)
    assert (row.highest.tolist(), row.lowest.tolist(), row.highest_total, row.skipped_steps) == ([1.0], [1.0], 1.0, 7)


def test_a_step_that_was_not_finite_is_the_highest_and_never_the_lowest():
    row = row_of([report([1.0, 1.0], 0), report([NAN, 1.0], 1, nonfinite=[2, 0]), report([3.0, 1.0], 2)])
    assert row.highest.tolist() == [INF, 1.0]
    assert row.lowest.tolist() == [1.0, 1.0]
    assert (row.highest_total, row.lowest_total) == (INF, pytest.approx(math.sqrt(2)))


@pytest.mark.parametrize("sick", [report([INF]), report([NAN], nonfinite=[1])], ids=["overflow", "not finite"])
def test_the_lowest_is_nan_where_no_norm_was_finite(sick):
    row = row_of([sick])
    assert np.isnan([*row.lowest, row.lowest_total]).all()
    assert [*row.highest, row.highest_total] == [INF, INF]


def test_a_layer_that_was_never_measured_has_neither():
    row = row_of(run_of([[1.0, NAN], [2.0, NAN]]))
    np.testing.assert_array_equal(row.highest, [2.0, NAN])
    np.testing.assert_array_equal(row.lowest, [1.0, NAN])


def test_figures_sampled_since_the_last_row_are_the_latest():
    reports = run_of([[1.0]] * 3)
    reports[0].figures["weight_norm"] = np.array([5.0])
    reports[1].figures["weight_norm"] = np.array([6.0])
    assert row_of(reports).figures == {"weight_norm": np.array([6.0])}


@pytest.mark.parametrize(("steps", "length"), [(0, 4), (1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (11, 4), (7, 1)])
def test_history_keeps_the_last_steps_in_order(steps, length):
    reports = run_of([[float(step), -float(step)] for step in range(steps)], range(steps))
    history = History(("w0", "w1"), length)
    for step in reports:
        history.append(step)
    kept = list(range(max(0, steps - length), steps))
    assert len(history) == len(kept)
    assert history.steps.tolist() == kept
    assert history["loss"].tolist() == kept
    assert history["grad_norm"].tolist() == [[step, -step] for step in kept]


def test_history_tells_unmeasured_from_not_finite():
    history = history_of([report([1.0, NAN, NAN], nonfinite=[0, 0, 3])], 4)
    np.testing.assert_array_equal(history["grad_norm"], [[1.0, NAN, NAN]])
    assert history["nonfinite"].tolist() == [[0, 0, 3]]


def test_history_is_of_the_promised_types_and_shapes():
    history = history_of(run_of([[1.0, 2.0]] * 3), 8)
    for name in ("grad_norm", *LAYER_FIGURES):
        assert (history[name].dtype, history[name].shape) == (np.float32, (3, 2)), name
    assert (history["nonfinite"].dtype, history["nonfinite"].shape) == (np.int64, (3, 2))
    for name in ("grad_norm_total", "grad_norm_clipped_total", "loss", "skipped", "optimizer"):
        assert history[name].shape == (3,), name
    assert (history.steps.dtype, history["skipped"].dtype) == (np.int64, np.bool_)
    assert np.isnan(history["loss"]).all()
    assert repr(history) == "History(3 steps, 2 layers)"


@pytest.mark.parametrize("first_measured", [0, 2, 5])
def test_a_figure_is_nan_at_steps_where_it_was_not_measured(first_measured):
    reports = run_of([[1.0]] * 7)
    for step in reports[first_measured::2]:
        step.figures["update_ratio"] = np.array([float(step.step)])
    figure = history_of(reports, 4)["update_ratio"][:, 0]
    expected = [step if step >= first_measured and (step - first_measured) % 2 == 0 else NAN for step in (3, 4, 5, 6)]
    np.testing.assert_array_equal(figure, expected)


def test_a_norm_beyond_float32_is_infinite_there_without_a_warning():
    history = history_of([report([1e300])], 4)
    assert history["grad_norm"].tolist() == [[INF]]
    assert history["grad_norm_total"].tolist() == [1e300]


@pytest.mark.parametrize("steps", [2, 4, 9])
def test_every_array_of_history_is_a_copy(steps):
    history = history_of(run_of([[1.0]] * steps), 4)
    history["grad_norm"][:] = 7
    history["weight_norm"][:] = 7
    assert (history["grad_norm"] == 1).all()
    assert np.isnan(history["weight_norm"]).all()


def test_an_unknown_name_is_answered_with_those_that_are_known():
    with pytest.raises(KeyError, match=r"history\['gradnorm'\]: expected one of grad_norm, nonfinite, .*loss"):
        History(("w0",), 4)["gradnorm"]


def test_memory_keeps_what_it_is_given():
    memory, row = Memory(), row_of(run_of([[1.0]]))
    (finding,) = findings([report([NAN], nonfinite=[1])])
    memory.write_row(row)
    memory.write_finding(finding, ended=False)
    memory.flush()
    assert not memory.closed
    memory.close()
    assert (memory.rows, memory.events, memory.closed) == ([row], [(finding, False)], True)


def test_history_names_its_figures_and_near_misses():
    history = history_of(run_of([[1.0, 2.0]]), 4)
    assert {"grad_norm", "nonfinite", "grad_norm_total", "loss", "learning_rate", *LAYER_FIGURES} <= set(history.keys())
    assert all(len(history[name]) == 1 for name in history.keys())  # noqa: SIM118 (no mapping)
    with pytest.raises(KeyError, match="Did you mean grad_norm"):
        history["grad_nrom"]
    with pytest.raises(KeyError, match=r"expected one of grad_norm, nonfinite, .*learning_rates\.'?\"?$"):
        history["?"]
    with pytest.raises(KeyError, match=r"history.layer\('w'\).*Did you mean w"):
        history.layer("w")


def test_history_gives_the_figures_of_one_layer():
    history = history_of(run_of([[1.0, 2.0], [3.0, 4.0]]), 4)
    assert history.layer("w1")["grad_norm"].tolist() == [2.0, 4.0]
    assert set(history.layer("w1")) == {"grad_norm", "nonfinite", *LAYER_FIGURES}


def test_history_keeps_the_rate_of_each_group():
    reports = [report([1.0], 0, learning_rates=(0.5, 0.1)), report([1.0], 1), report([1.0], 2, learning_rates=(0.2,))]
    expected = [[0.5, 0.1], [NAN, NAN], [0.2, NAN]]
    np.testing.assert_array_equal(history_of(reports, 4)["learning_rates"], expected)
    np.testing.assert_array_equal(history_of(reports, 2)["learning_rates"], [[NAN], [0.2]])
    assert History(("w0",), 2)["learning_rates"].shape == (0, 0)


def test_history_keeps_the_learning_rate():
    history = history_of([report([1.0], 0, learning_rate=0.5), report([1.0], 1)], 4)
    np.testing.assert_array_equal(history["learning_rate"], [0.5, NAN])


def test_history_becomes_a_data_frame():
    frame = history_of(run_of([[1.0, 2.0], [3.0, 4.0]], [0.5, 0.25]), 4).to_pandas()
    assert frame.index.names == ["step", "layer"]
    assert frame.loc[(1, "w0"), "grad_norm"] == 3.0
    assert frame.loc[(1, "w0"), "loss"] == 0.25
    assert len(frame) == 4


def test_without_pandas_history_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        history_of(run_of([[1.0]]), 4).to_pandas()
