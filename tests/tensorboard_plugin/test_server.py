import json
import subprocess
import sys
import types
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.util.tensor_util import make_tensor_proto

from gradwatch.event_files import format
from gradwatch.tensorboard_plugin import Loader, leaps
from gradwatch.tensorboard_plugin.plugin import STATIC
from gradwatch.tensorboard_plugin.statistics import STATISTICS
from tests import tab_logs
from tests.reports import INF, NAN, findings, report, run_of
from tests.tab_logs import Answer, Tab, fetch, tensorboard_over, write_events, write_run

ALL = {"from": 0, "to": 10_000, "width": 1_000}
NORMS = {"statistic": "grad_norm", **ALL}


def cells(tab, run=".", statistic="grad_norm", **stretch):
    answer = tab.get("cells", run=run, statistic=statistic, **{**ALL, **stretch})
    assert answer.status == 200, answer.content
    return answer


def pytest_generate_tests(metafunc):
    """Let every test of a run within the process read it from its files, and from what TensorBoard has loaded."""
    if "tmp_path" in metafunc.fixturenames:
        metafunc.parametrize("reads_files", [True, False], ids=["files", "TensorBoard"], indirect=True)


@pytest.fixture(autouse=True)
def reads_files(request, monkeypatch):
    monkeypatch.setattr(Tab, "reads_files", getattr(request, "param", True))


def test_the_map_shows_every_logged_step_of_every_layer(tmp_path):
    write_run(tmp_path, run_of([[1.0, 2.0, NAN], [3.0, INF, NAN], [5.0, 6.0, NAN]]))
    answer = cells(Tab(tmp_path))
    assert answer.content["edges"] == [0, 1, 2, 3]
    np.testing.assert_array_equal(answer.values, [[1, 2, NAN], [3, INF, NAN], [5, 6, NAN]])


def test_a_spike_between_two_rows_shows_in_the_later_one(tmp_path):
    write_run(tmp_path, run_of([[1.0], [1.0], [900.0], [1.0], [1.0]]), every=4)
    assert cells(Tab(tmp_path)).values.tolist() == [[1.0], [900.0]]


def test_a_nan_gradient_is_infinite_and_an_unmeasured_one_is_nan(tmp_path):
    write_run(tmp_path, [report([NAN, NAN, 1.0], nonfinite=[2, 0, 0])])
    np.testing.assert_array_equal(cells(Tab(tmp_path)).values, [[INF, NAN, 1.0]])


def test_a_figure_of_a_nan_weight_is_infinite_and_an_unmeasured_one_is_nan(tmp_path):
    reports = run_of([[1.0, 1.0], [1.0, 1.0]])
    reports[1] = report([NAN, NAN], 1, nonfinite=[1, 1])
    for step, norms in zip(reports, ([2.0, NAN], [NAN, NAN]), strict=True):
        step.figures["weight_norm"] = np.array(norms)
    write_run(tmp_path, reports)
    np.testing.assert_array_equal(cells(Tab(tmp_path), statistic="weight_norm").values, [[2.0, NAN], [INF, NAN]])


def test_rms_and_ratio_are_of_each_layer_itself(tmp_path):
    write_run(tmp_path, run_of([[1.0, 0.0, 3.0], [2.0, 0.0, 3.0], [8.0, 0.0, NAN]]))
    tab = Tab(tmp_path)
    np.testing.assert_allclose(cells(tab, statistic="grad_rms").values[2], [4.0, 0.0, NAN])  # of 4 entries each
    np.testing.assert_allclose(cells(tab, statistic="grad_ratio").values, [[0.5, 0, 1], [1, 0, 1], [4, 0, NAN]])


def test_clipped_and_skipped_steps_are_counted_in_their_cell(tmp_path):
    reports = run_of([[4.0]] * 8)
    reports[2] = replace(reports[2], grad_norm_clipped_total=1.0)
    reports[3] = replace(reports[3], grad_norm_clipped_total=1.0)
    reports[5] = replace(reports[5], skipped=True)
    write_run(tmp_path, reports, every=2)
    content = cells(Tab(tmp_path)).content
    assert content["edges"] == [0, 1, 3, 5, 7]
    assert (content["clipped"], content["skipped"]) == ([0, 1, 1, 0], [0, 0, 0, 1])


def test_layers_of_one_optimizer_keep_their_figure_between_its_rows(tmp_path):
    reports = [
        report([1.0, NAN, 5.0], 0, update=0),
        report([NAN, 2.0, 6.0], 1, update=0, optimizer=1),
        report([3.0, NAN, NAN], 2, update=1),
        report([NAN, 4.0, 8.0], 3, update=1, optimizer=1),
    ]
    write_run(tmp_path, reports)
    np.testing.assert_array_equal(
        cells(Tab(tmp_path)).values, [[1, 2, 5], [3, 2, 6], [3, 4, NAN], [NAN, 4, 8]]
    )  # the third is of both: it shows what was written


def test_the_colour_scale_leaves_out_the_outermost(tmp_path):
    write_run(tmp_path, run_of([[1.0]] * 300 + [[1e30]] + [[10.0]] * 300))
    assert cells(Tab(tmp_path)).content["scale"] == pytest.approx([1.0, 10.0])


def test_a_clamped_scale_is_narrower_and_that_of_ratios_is_even_and_wide_enough_for_noise(tmp_path):
    write_run(tmp_path, run_of([[1.0]] * 90 + [[8.0]] * 9 + [[1e6]]))
    tab = Tab(tmp_path)
    norms, ratios = (cells(tab, statistic=name).content for name in ("grad_norm", "grad_ratio"))
    assert norms["clamp"] == pytest.approx([1.0, 8.0])
    assert norms["scale"][1] > 8
    assert ratios["clamp"] == pytest.approx([1 / 8, 8])
    assert ratios["scale"][0] == pytest.approx(1 / ratios["scale"][1])
    write_run(tmp_path / "calm", run_of([[1.0]] * 9))
    calm = cells(Tab(tmp_path / "calm"), statistic="grad_ratio").content
    assert (calm["scale"], calm["clamp"]) == (pytest.approx([0.1, 10]), pytest.approx([1 / 3, 3]))


def test_of_several_rows_a_ratio_is_the_one_furthest_from_the_level(tmp_path):
    write_run(tmp_path, run_of([[1.0, 1.0], [1.0, 1.0], [4.0, 4.0], [1.0, 0.125], [1.0, 1.0], [INF, 0.5]]))
    tab = Tab(tmp_path)
    np.testing.assert_allclose(cells(tab, statistic="grad_ratio", width=2).values, [[4, 4], [INF, 0.125]])
    assert cells(tab).content["levels"] == [1.0, 1.0]


def test_the_course_holds_the_extremes_of_the_whole_run_and_the_largest_leap_of_a_layer(tmp_path):
    norms = [[1.0, 1.0], [1.0, 0.5], [1.0, 64.0], [2.0, 0.0], [NAN, 1.0], [INF, 1.0]]
    reports = [
        replace(each, loss=10.0 - each.step, learning_rate=0.1 * (1 + each.step), grad_norm_total=1.0 + each.step)
        for each in run_of(norms)
    ]
    write_run(tmp_path, reports)
    answer = Tab(tmp_path).get("course", run=".", **{**ALL, "width": 3})
    course = dict(zip(answer.content["rows"], answer.values.tolist(), strict=True))
    assert answer.content["edges"] == [0, 2, 4, 6]
    assert (course["loss largest"], course["loss smallest"]) == ([10, 8, 6], [9, 7, 5])
    assert course["learning_rate largest"] == pytest.approx([0.2, 0.4, 0.6])
    assert course["total_norm largest"] == [2, 4, 6]
    assert course["leap largest"] == pytest.approx([2, 128, INF])  # zeros and gaps are no leaps


def test_leaps_equal_a_slow_look_at_each_pair_of_rows():
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0, 2, (1_200, 5))).astype(np.float32)
    norms[rng.random(norms.shape) < 0.1] = np.nan
    norms[rng.random(norms.shape) < 0.05] = 0
    norms[700, 2] = np.inf
    expected = []
    for row, (before, now) in enumerate(zip([norms[0], *norms], norms, strict=False)):
        pairs = [(float(a), float(b)) for a, b in zip(before, now, strict=True) if 0 < a < INF and 0 < b < INF]
        largest = max([max(a / b, b / a) for a, b in pairs] + [1.0])
        expected.append(INF if row == 700 else largest)
    np.testing.assert_allclose(leaps._leaps(norms), expected, rtol=1e-5)


def test_a_finding_names_the_one_that_may_have_led_to_it(tmp_path):
    (first,) = findings([report([1.0, NAN], 10, nonfinite=[0, 1])])
    told = [
        replace(first, kind="exploding", step=10, raised_step=10, last_step=12),
        replace(first, kind="vanishing", step=13, raised_step=20, last_step=20),
        replace(first, kind="vanishing", step=60, raised_step=60, last_step=60),
    ]
    write_run(tmp_path, run_of([[1.0, 2.0]] * 70), [(each, True) for each in told])
    answer = Tab(tmp_path).get("findings", run=".").content
    assert [each["follows"] for each in answer["findings"]] == [None, 0, None]
    assert (answer["rows"], answer["lastStep"]) == (70, 69)


def test_a_run_of_which_steps_were_not_measured_says_how_many(tmp_path):
    write_run(tmp_path, run_of([[1.0]]))
    assert "unmeasured" not in Tab(tmp_path).get("findings", run=".").content
    write_events(tmp_path, [(9, "gradwatch/coverage", {"steps": 10, "measured": 7})])
    found = Tab(tmp_path).get("findings", run=".").content
    assert (found["steps"], found["unmeasured"]) == (10, 3)
    write_events(tmp_path, [(11, "gradwatch/coverage", {"steps": 10, "measured": 70})])
    assert "unmeasured" not in Tab(tmp_path).get("findings", run=".").content  # no run has written that


def test_a_run_of_which_a_part_could_not_be_written_says_so(tmp_path):
    write_run(tmp_path, run_of([[1.0]]))
    assert "lost" not in Tab(tmp_path).get("findings", run=".").content
    write_events(tmp_path, [(9, "gradwatch/end", {"steps": 10, "lost": {"row": 2, "finding": 1, "more": 3}})])
    assert Tab(tmp_path).get("findings", run=".").content["lost"] == {"row": 2, "finding": 1}
    write_events(tmp_path, [(11, "gradwatch/end", {"steps": 12, "lost": {"row": -1}})])
    assert "lost" not in Tab(tmp_path).get("findings", run=".").content  # no run has written that


def test_a_run_without_a_positive_value_has_no_scale(tmp_path):
    write_run(tmp_path, run_of([[0.0], [NAN]]))
    assert cells(Tab(tmp_path)).content["scale"] is None


def test_a_layer_that_came_later_is_nan_before(tmp_path):
    first, second = run_of([[1.0, 2.0]] * 2, layers=("a", "b"))
    second = replace(second, layers=("b", "c"))
    write_run(tmp_path, [first, second])
    tab = Tab(tmp_path)
    assert tab.get("overview", run=".").content["layers"] == ["b", "c"]
    np.testing.assert_array_equal(cells(tab).values, [[2.0, NAN], [1.0, 2.0]])


def test_a_curve_has_the_extremes_and_the_band(tmp_path):
    band = np.array([[0.01, 0.02], [50.0, 60.0]])
    write_run(tmp_path, run_of([[1.0, 2.0], [9.0, 2.0], [0.5, 2.0]]), every=2, band=band)
    answer = Tab(tmp_path).get("curve", run=".", layer="w0", **NORMS)
    assert (answer.content["rows"], answer.content["steps"]) == ([*format.NORMS, *format.BAND], [0, 2])
    np.testing.assert_allclose(answer.values, [[1, 0.5], [1, 9], [1, 0.5], [0.01, 0.01], [50, 50]])
    pooled = Tab(tmp_path).get("curve", run=".", layer="w0", **{**NORMS, "width": 1})
    np.testing.assert_allclose(pooled.values.ravel(), [1, 9, 0.5, 0.01, 50])


def test_a_profile_is_of_the_row_that_stands_for_the_step(tmp_path):
    write_run(tmp_path, run_of([[1.0, 2.0], [9.0, 2.0], [0.5, 2.0]]), every=2)
    answer = Tab(tmp_path).get("profile", run=".", statistic="grad_norm", step=1)
    assert (answer.content["step"], answer.content["since"]) == (2, 1)
    np.testing.assert_allclose(answer.values, [[0.5, 2], [9, 2], [0.5, 2]])


def test_histograms_of_all_steps_share_an_axis(tmp_path):
    sample = np.linspace(-1, 1, 1000, dtype=np.float32)
    write_run(tmp_path, [report([1.0], step, entries={"grad": [sample * (step + 1)]}) for step in range(3)])
    tab = Tab(tmp_path)
    answer = tab.get("entries", run=".", layer="w0", kind="grad")
    assert answer.content["steps"] == [0, 1, 2]
    np.testing.assert_allclose(answer.content["axis"], [-3, 3], rtol=0.02)
    np.testing.assert_allclose(answer.values.sum(axis=1), 1, atol=0.02)
    assert (answer.values[0] > 0).sum() < (answer.values[2] > 0).sum()
    assert tab.get("entries", run=".", layer="w0", kind="weight").content["steps"] == []


(FINDING,) = findings([report([1.0, NAN], 7, loss=0.5, nonfinite=[0, 2])])


def test_a_finding_is_told_once_as_it_last_stood(tmp_path):
    write_run(tmp_path, run_of([[1.0, 2.0]]), [(FINDING, False), (replace(FINDING, last_step=9, value=INF), True)])
    content = Tab(tmp_path).get("findings", run=".").content
    read = replace(FINDING, last_step=9, value=NAN)  # JSON knows no Inf
    expected = json.loads(json.dumps({**read.as_dict(), "value": None, "ended": True}))
    extent = {"rows": 1, "lastStep": 0, "loss": None, "isLossFinite": True}
    assert content == {"findings": [{**expected, "follows": None}], "problems": [], **extent}


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    newer = SummaryMetadata.FromString(tab_logs.METADATA.SerializeToString())
    newer.plugin_data.content = b'{"version": 2}'
    monkeypatch.setattr(tab_logs, "METADATA", newer)
    write_events(tmp_path, [(0, "gradwatch/layers", TABLE)])
    answer = Tab(tmp_path).get("overview", run=".")
    assert answer.status == 422
    assert "gradwatch/layers: written in version 2 of the format, this reads 1. Run: " in answer.content["error"]


def test_more_of_a_run_is_seen_after_a_reload(tmp_path):
    write_run(tmp_path, run_of([[1.0]]))
    tab = Tab(tmp_path)
    assert len(cells(tab).values) == 1
    write_events(tmp_path, [(5, "gradwatch/grad_norm", np.float32([[2], [2], [2]]))])
    tab.reload()
    assert cells(tab).values.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("question", "arguments"),
    [
        ("overview", {}),
        ("overview", {"run": "../../etc"}),
        ("cells", {"run": ".", **NORMS, "statistic": "loss"}),
        ("cells", {"run": ".", **NORMS, "from": "-1"}),
        ("cells", {"run": ".", **NORMS, "to": "1e9"}),
        ("cells", {"run": ".", **NORMS, "width": "5000"}),
        ("cells", {"run": ".", **NORMS, "to": "9" * 40}),
        ("curve", {"run": ".", **NORMS, "layer": "nothing"}),
        ("entries", {"run": ".", "layer": "w0", "kind": "../grad"}),
        ("profile", {"run": ".", "statistic": "grad_norm", "step": "٣"}),
    ],
)
def test_what_is_not_there_is_refused_by_name(tmp_path, question, arguments):
    write_run(tmp_path, run_of([[1.0]]))
    answer = Tab(tmp_path).get(question, **arguments)
    assert answer.status == 400
    assert answer.content["error"].split(":")[0] in {"run", *arguments}


def test_a_statistic_that_was_not_logged_says_so(tmp_path):
    write_run(tmp_path, run_of([[1.0]]))
    answer = Tab(tmp_path).get("cells", run=".", **{**NORMS, "statistic": "dead_share"})
    assert (answer.status, answer.content) == (422, {"error": "gradwatch/dead_share is not in this run's files."})


def shaped(*sizes, content=b"", values=(), dtype=1):
    tensor = TensorProto(dtype=dtype, tensor_content=content, float_val=values)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


TABLE = {"layers": ["a", "b"], "depth": [0, 1], "size": [4, 4]}
HOSTILE = {
    "a shape of 32 GiB with one value": ("grad_norm", shaped(3, 2**33, values=[1.0])),
    "a shape that overflows": ("grad_norm", shaped(3, 2**62, 2**62, values=[1.0])),
    "a negative shape": ("grad_norm", shaped(3, -1)),
    "too few bytes": ("grad_norm", shaped(3, 2, content=b"\0" * 20)),
    "bytes that are no floats": ("grad_norm", shaped(3, 2, content=b"\0" * 23)),
    "another type": ("grad_norm", make_tensor_proto(np.ones((3, 2), dtype=np.int64))),
    "another width": ("grad_norm", np.ones((3, 5), dtype=np.float32)),
    "a text": ("grad_norm", b"hello"),
    "no JSON": ("layers", b"{"),
    "a list": ("layers", [1]),
    "deep JSON": ("layers", b"[" * 100_000),
    "no layers": ("layers", {**TABLE, "layers": []}),
    "layers that are numbers": ("layers", {**TABLE, "layers": [1, 2]}),
    "a name of a megabyte": ("layers", {**TABLE, "layers": ["a", "b" * 1_000_000]}),
    "a name twice": ("layers", {**TABLE, "layers": ["a", "a"]}),
    "too few depths": ("layers", {**TABLE, "depth": [0]}),
    "a depth that is no number": ("layers", {**TABLE, "depth": [0, "1"]}),
    "a size beyond counting": ("layers", {**TABLE, "size": [4, 10**30]}),
    "a table of floats": ("layers", np.ones(3, dtype=np.float32)),
    "totals of another width": ("totals", np.ones(3, dtype=np.float32)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_event_is_an_error_that_says_what_was_found(tmp_path, name):
    tag, content = HOSTILE[name]
    events = {
        "layers": TABLE,
        "grad_norm": np.ones((3, 2), dtype=np.float32),
        "totals": np.zeros(len(format.TOTALS), dtype=np.float32),
        tag: content,
    }
    write_events(tmp_path, [(0, f"gradwatch/{each}", value) for each, value in events.items()])
    tab = Tab(tmp_path)
    answers = [tab.get("overview", run="."), tab.get("cells", run=".", **NORMS)]
    assert {answer.status for answer in answers} <= {200, 422}
    refusals = [answer.content["error"] for answer in answers if answer.status == 422]
    assert refusals
    assert all(error.startswith(f"gradwatch/{tag}") for error in refusals)


@pytest.mark.parametrize(("step", "code"), [(-5, 422), (2**60, 422), (2**40, 200)])
def test_steps_that_no_run_has_are_refused(tmp_path, step, code):
    write_events(
        tmp_path,
        [(0, "gradwatch/layers", TABLE), (step, "gradwatch/totals", np.zeros(len(format.TOTALS), dtype=np.float32))],
    )
    assert Tab(tmp_path).get("overview", run=".").status == code


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": True}, {"value": "high"}, {"layers": "all"}, {"severity": "bad"}, {"measured": "m" * 2**20},
     {"remedies": [1]}, {"ended": None}, {"kind": None}, {"last_step": 1e9}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_malformed_finding_is_left_out_and_said(tmp_path, change):
    good = {**json.loads(json.dumps(FINDING.as_dict())), "value": 1.0, "ended": False}
    events = [(0, "gradwatch/layers", TABLE), (1, "gradwatch/finding", good), (2, "gradwatch/finding", good | change)]
    write_events(tmp_path, events)
    content = Tab(tmp_path).get("findings", run=".").content
    assert [finding["step"] for finding in content["findings"]] == [7]
    (problem,) = content["problems"]
    assert problem.startswith(f"gradwatch/finding at step 2: expected {next(iter(change))} to be")


TENSORS = st.builds(
    shaped,
    st.integers(-3, 9) | st.integers(0, 2**62),
    st.integers(-3, 9) | st.integers(0, 2**62),
    content=st.binary(max_size=80),
    values=st.lists(st.floats(width=32), max_size=9),
    dtype=st.integers(0, 25),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*TABLE, "kind", "step"]), inner),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(-2, 5),
            st.sampled_from(["layers", "grad_norm", "totals", "band", "weight_norm", "finding"]),
            TENSORS | JSON.map(json.dumps) | st.just(TABLE) | st.just(np.ones((3, 2), dtype=np.float32)),
        ),
        max_size=8,
    )
)
def test_whatever_a_file_holds_the_answer_is_a_picture_or_an_error(tmp_path_factory, events):
    directory = tmp_path_factory.mktemp("fuzz")
    write_events(directory, [(0, "gradwatch/layers", TABLE), *((s, f"gradwatch/{tag}", c) for s, tag, c in events)])
    tab = Tab(directory)
    asked = [("overview", {}), ("findings", {}), ("profile", {"statistic": "grad_norm", "step": 1})]
    asked += [(question, {**ALL, "statistic": s, "layer": "a"}) for question in ("cells", "curve") for s in STATISTICS]
    for question, arguments in asked:
        assert tab.get(question, run=".", **arguments).status in (200, 400, 422)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Runs that are whole, cut short, resumed, hostile, and none of ours."""
    logs = tmp_path_factory.mktemp("mixed")
    entries = {"grad": [np.linspace(-1, 1, 50), None], "weight": [None, np.ones(3)]}
    reports = [report([1.0 + step, NAN], step, entries=entries) for step in range(80)]
    write_run(logs / "whole", reports, [(FINDING, False)], band=np.ones((2, 2)))
    write_run(logs / "cut", reports)
    (path,) = (logs / "cut").iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for part, steps in enumerate((reports, reports[40:60])):
        write_run(logs / "resumed" / str(part), steps)
        (path,) = (logs / "resumed" / str(part)).iterdir()
        path.rename(logs / "resumed" / f"events.out.tfevents.{part}.host")
        path.parent.rmdir()
    bomb = HOSTILE["a shape of 32 GiB with one value"][1]
    write_events(logs / "hostile", [(0, "gradwatch/layers", TABLE), (0, "gradwatch/grad_norm", bomb)])
    write_events(logs / "other", [(0, "loss", np.ones(2, dtype=np.float32))])
    return logs


@pytest.fixture(scope="module", params=["true", "false"], ids=lambda fast: f"load_fast={fast}")
def served(request, mixed):
    with tensorboard_over(mixed, f"--load_fast={request.param}", "--path_prefix=/some/where") as address:
        yield address


@pytest.mark.process
@pytest.mark.parametrize(
    "question",
    [
        *(f"overview?run={run}" for run in ("whole", "cut", "hostile", "other")),
        *(
            f"cells?run={run}&statistic=grad_norm&from=0&to=999&width=50"
            for run in ("whole", "cut", "resumed", "hostile")
        ),
        "findings?run=whole",
        "course?run=whole&from=0&to=999&width=7",
        "curve?run=whole&statistic=grad_rms&layer=w0&from=3&to=99&width=9",
        "entries?run=whole&layer=w0&kind=grad",
    ],
)
def test_a_running_tensorboard_answers_alike_with_either_loader(served, mixed, question):
    tab = Tab(mixed)
    runs = [json.loads(fetch(served, "plugin/gradwatch/runs")[1]), tab.get("runs").content]
    assert [[each["run"] for each in listed] for listed in runs] == [["cut", "hostile", "resumed", "whole"]] * 2
    assert all(0 <= each["age"] < 3600 for listed in runs for each in listed)
    status, body = fetch(served, f"plugin/gradwatch/{question}")
    name, _, query = question.partition("?")
    expected = tab.get(name, **dict(pair.split("=") for pair in query.split("&") if pair))
    assert (status, Answer(status, body).content) == (expected.status, expected.content)
    np.testing.assert_array_equal(Answer(status, body).values, expected.values)


def test_runs_come_and_go_with_their_files(tmp_path):
    tab = Tab(tmp_path)
    assert tab.get("runs").content == []
    write_run(tmp_path / "a" / "b", run_of([[1.0]]))
    write_run(tmp_path / "c", run_of([[2.0]]))
    tab.plugin._events.look_again() if Tab.reads_files else tab.__init__(tmp_path)
    assert [each["run"] for each in tab.get("runs").content] == ["a/b", "c"]


def test_the_tab_is_active_as_soon_as_a_file_holds_something_of_ours(tmp_path):
    write_events(tmp_path / "other", [(0, "loss", np.ones(2, dtype=np.float32))])
    assert not Tab(tmp_path).plugin.is_active()
    write_run(tmp_path / "ours", run_of([[1.0]]))
    assert Tab(tmp_path).plugin.is_active() == Tab.reads_files  # else TensorBoard finds the tags itself


def test_a_file_that_vanishes_or_is_damaged_between_two_looks_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(Tab, "reads_files", True)
    write_run(tmp_path, run_of([[1.0], [2.0]]))
    (first,) = tmp_path.iterdir()
    tab = Tab(tmp_path)
    assert tab.get("cells", run=".", **NORMS).status == 200
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    tab.reload()
    assert tab.get("findings", run=".").status == 200
    first.unlink()
    tab.reload()
    assert tab.get("cells", run=".", **NORMS).status == 400  # and says that the run is not there any more
    write_run(tmp_path / "another", run_of([[3.0]]))
    tab.reload()
    assert [each["run"] for each in tab.get("runs").content] == ["another"]


@pytest.mark.process
def test_only_the_files_of_the_front_end_are_served(served):
    assert fetch(served, "plugin/gradwatch/static/index.js")[0] == 200
    for path in ("../plugin.py", "..%2fplugin.py", "%2e%2e/plugin.py", "", "index.html/../../plugin.py"):
        assert fetch(served, f"plugin/gradwatch/static/{path}")[0] == 404


@pytest.mark.process
def test_every_static_file_is_served_with_its_type(served):
    types_of = {".js": "text/javascript", ".css": "text/css"}
    for path in STATIC.rglob("*"):
        if path.is_file():
            url = f"{served}/data/plugin/gradwatch/static/{path.relative_to(STATIC).as_posix()}"
            with urllib.request.urlopen(url, timeout=20) as response:
                assert response.headers["Content-Type"].split(";")[0] == types_of.get(path.suffix, "text/plain")


@pytest.mark.process
def test_the_tab_needs_neither_torch_nor_the_watcher():
    code = (
        "import sys; sys.modules['torch'] = None; import gradwatch.tensorboard_plugin.plugin; "
        "print(*sorted(name for name in sys.modules if name.startswith('gradwatch.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    others = [name for name in done.stdout.split() if not name.startswith("gradwatch.tensorboard_plugin")]
    assert others == [
        "gradwatch.event_files",
        "gradwatch.event_files.assemble",
        "gradwatch.event_files.consequences",
        "gradwatch.event_files.decode",
        "gradwatch.event_files.event",
        "gradwatch.event_files.format",
        "gradwatch.event_files.growing_file",
        "gradwatch.event_files.legible",
        "gradwatch.event_files.reader",
        "gradwatch.event_files.records",
        "gradwatch.event_files.run",
        "gradwatch.findings",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        "gradwatch.event_files.decode",
        "gradwatch.event_files.assemble",
        "gradwatch.tensorboard_plugin.plugin",
        "werkzeug",
    ],
)
def test_tensorboard_starts_without_the_tab_where_something_is_broken(monkeypatch, caplog, broken):
    for name in [
        name for name in sys.modules if name.startswith(("gradwatch.tensorboard_plugin.", "gradwatch.event_files."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, broken, None)
    assert Loader().load(types.SimpleNamespace()) is None
    assert "TensorBoard starts without the GradWatch tab: ModuleNotFoundError" in caplog.text


def test_an_older_tensorboard_starts_without_the_tab_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr("tensorboard.version.VERSION", "2.15.2")
    assert Loader().load(types.SimpleNamespace()) is None
    assert "expected TensorBoard 2.16 or newer, found 2.15.2. Run: pip install -U tensorboard" in caplog.text


@pytest.mark.parametrize(
    ("logdir", "asked", "kept"),
    [
        ("runs", None, 1),  # the tab reads the files itself
        ("runs", {"scalars": 5}, 1),
        ("runs", {"gradwatch": 100}, 100),
        ("gs://bucket/runs", None, 0),
        ("", {"scalars": 5}, 0),  # --logdir_spec
        ("", {"gradwatch": 100}, 100),
    ],
)
def test_tensorboard_keeps_every_step_where_the_tab_needs_it_to_unless_the_user_asked_for_fewer(logdir, asked, kept):
    flags = types.SimpleNamespace(samples_per_plugin=asked, logdir=logdir)
    Loader().fix_flags(flags)
    assert flags.samples_per_plugin == {**(asked or {}), "gradwatch": kept}
