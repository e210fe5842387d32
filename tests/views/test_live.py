import io
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.run import TimeSeries
from gradwatch.findings import KINDS, Finding
from gradwatch.views.live import LiveScreen, live_screen
from gradwatch.views.phrases import verdict
from gradwatch.views.sparkline import sparkline
from gradwatch.views.time_columns import largest_in_columns
from gradwatch.views.worst_layers import usual_norms, worst_layers
from tests.reports import INF, NAN, run_of
from tests.written import write_rows

FINDING = Finding(
    "exploding", "error", "w1", ("w1",), 3, 3, 3, 9.0, 2.0, "the norm of w1 grew. " * 9, "a cause.", ()
)  # fmt: skip


def read(directory):
    (run,) = read_runs(directory)
    return run


def run_with(directory, rows, losses=None, findings=()):
    write_rows(directory, run_of(rows, losses))
    return replace(read(directory), findings=tuple(findings), ended=(False,) * len(findings))


def lines_of(run, width, height, **rest):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(live_screen(run, LiveScreen(width, height, run.written_at + 1, "the footer", **rest)))
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("size", [(80, 24), (40, 16), (200, 60)])
@pytest.mark.parametrize("layers", [1, 300])
@pytest.mark.parametrize("findings", [0, 1, 30])
def test_a_screen_fits_the_terminal(tmp_path, size, layers, findings):
    rng = np.random.default_rng(0)
    found = [replace(FINDING, layer="w0", layers=("w0",), step=step, raised_step=step) for step in range(findings)]
    run = run_with(tmp_path, 10 ** rng.normal(size=(90, layers)), rng.random(90), found)
    lines = lines_of(run, *size, output=["a line of the script" * 20] * 9, others=3)
    assert len(lines) <= size[1]
    assert max(map(cell_len, lines)) <= size[0]
    assert lines[-1] == "the footer"
    text = "\n".join(lines)
    assert ("w0" in text) or layers == 300
    assert ("exploding in w0 since step 29" in text) == (findings == 30)


def test_sick_layers_come_first_and_then_those_furthest_from_their_usual_norm(tmp_path):
    rows = [[1.0, 1.0, 1.0, 1.0]] * 20 + [[1.0, 1.5, 0.001, 30.0]]
    run = run_with(tmp_path, rows, findings=[FINDING])
    assert [(each.name, each.severity) for each in worst_layers(run, 3)] == [
        ("w1", "error"), ("w2", None), ("w3", None),
    ]  # fmt: skip
    assert [each.ratio for each in worst_layers(run, 3)] == pytest.approx([1.5, 0.001, 30.0])
    assert worst_layers(replace(run, ended=(True,)), 1)[0].severity is None


def test_a_layer_that_is_not_finite_is_worse_than_any_other(tmp_path):
    reports = [replace(each, nonfinite=np.array([0, int(each.step == 8)])) for each in run_of([[1.0, 1.0]] * 9)]
    write_rows(tmp_path, [*reports[:8], replace(reports[8], grad_norm=np.array([500.0, NAN]))])
    worst = worst_layers(read(tmp_path), 2)
    assert [each.name for each in worst] == ["w1", "w0"]
    assert "NaN or Inf" in "\n".join(lines_of(read(tmp_path), 80, 24))


def test_usual_norms_agree_with_a_slow_loop(tmp_path):
    rng = np.random.default_rng(0)
    rows = 10 ** rng.normal(size=(40, 7))
    rows[rng.random(rows.shape) < 0.2] = NAN
    rows[rng.random(rows.shape) < 0.2] = 0.0
    rows[:, 3] = NAN
    run = run_with(tmp_path, rows)
    slow = []
    for column in run.packed["grad_norm"].values.astype(float).T:
        known = sorted(value for value in column.tolist() if 0 < value < INF)
        middle = len(known) // 2
        slow.append((known[middle] + known[-middle - 1]) / 2 if known else NAN)
    np.testing.assert_allclose(usual_norms(run), slow)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 7, 50, 1000])
def test_columns_of_equal_spans_agree_with_a_slow_loop(seed, most):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 30, size=40))
    values = rng.normal(size=40)
    values[rng.random(40) < 0.2] = NAN
    columns = largest_in_columns(steps, values, most)
    span = steps[-1] - steps[0] + 1
    count = min(most, span)
    assert len(columns) == count
    for place in range(count):
        begin, end = steps[0] + place * span / count, steps[0] + (place + 1) * span / count
        within = [value for step, value in zip(steps, values, strict=True) if begin <= step < end]
        within = within or [values[next(i for i, step in enumerate(steps) if step >= begin)]]
        known = [value for value in within if not np.isnan(value)]
        assert columns[place] == max(known) if known else np.isnan(columns[place])


def test_a_sparkline_has_a_column_for_equal_spans_of_steps():
    series = TimeSeries(np.array([0, 1, 2, 3, 100]), np.array([1.0, 1.0, 1.0, 1.0, 1000.0], dtype=np.float32))
    assert sparkline(series, 5).plain == "▁████"  # the last row says what happened since the one before
    assert sparkline(TimeSeries(series.steps, series.values * NAN), 5).plain == "✗✗✗✗✗"
    assert sparkline(TimeSeries(series.steps[:0], series.values[:0]), 5).plain == ""


def test_lines_that_are_too_long_end_after_a_whole_word(tmp_path):
    run = run_with(tmp_path, [[1.0, 2.0]] * 3, findings=[replace(FINDING, kind=kind) for kind in KINDS])
    lines = [line for line in lines_of(run, 80, 24) if line.endswith("…")]
    assert len(lines) > 1
    whole = set(f"{FINDING.measured} {verdict(run).words} ERROR".split())
    assert all(word in whole for line in lines for word in line.removesuffix("…").split())


def test_what_never_changes_is_called_constant(tmp_path):
    text = "\n".join(lines_of(run_with(tmp_path, [[1.0], [2.0]], losses=[0.5, 0.5]), 80, 24))
    assert "0.5 (constant)" in text
    assert "2 (1 … 2)" in text
