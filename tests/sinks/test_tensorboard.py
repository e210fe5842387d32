import errno
import json
import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from gradwatch.event_files import format
from gradwatch.event_files.legible import legible_name
from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.run import Environment
from gradwatch.findings import Finding
from gradwatch.sinks import RowBuilder, tensorboard
from gradwatch.sinks.tags import LAYER_TAGS
from gradwatch.sinks.tensorboard import TensorBoard
from gradwatch.views.phrases import verdict
from tests.reports import INF, NAN, findings, report, run_of
from tests.sinks.test_memory import row_of

TEXT = "gradwatch/findings/text_summary"
PACKED = "gradwatch/grad_norm"


def read(directory):
    events = EventAccumulator(str(directory), size_guidance=dict.fromkeys(("scalars", "tensors", "histograms"), 0))
    return events.Reload()


def written(directory, reports, **options):
    """Every report as a row of its own, written, closed and read back."""
    sink, builder = TensorBoard(directory, **options), RowBuilder()
    for skipped, step in enumerate(reports):
        builder.add(step)
        sink.write_row(builder.build(step, skipped_steps=skipped))
    sink.close()
    return read(directory)


def series(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def scalar_tags(events):
    return set(events.Tags()["scalars"])


def texts(events):
    return [(event.step, make_ndarray(event.tensor_proto).item().decode()) for event in events.Tensors(TEXT)]


def with_figures(reports, count):
    for step in reports:
        for name in LAYER_TAGS[1:]:
            step.figures[name] = np.full(count, 0.5 + step.step)
    return reports


TOTALS = {"grad_norm_total", "grad_norm_clipped_total", "skipped_steps"}
DOTTED = ("blocks.0.fc1.weight", "head.bias")


def test_per_layer_scalars_are_named_after_statistic_and_parameter(tmp_path):
    reports = with_figures(run_of([[3.0, 4.0], [6.0, 8.0]], layers=DOTTED), 2)
    events = written(tmp_path, reports, layer_scalars=LAYER_TAGS[:3])
    assert scalar_tags(events) == TOTALS | {
        f"{statistic}/{name}" for statistic in ("grad_norm", "weight_norm", "update_ratio") for name in DOTTED
    }
    assert series(events, "grad_norm/blocks.0.fc1.weight") == [(0, 3.0), (1, 6.0)]
    assert series(events, "weight_norm/head.bias") == [(0, 0.5), (1, 1.5)]


def test_totals_and_skipped_steps_are_written_at_every_row(tmp_path):
    events = written(tmp_path, run_of([[3.0, 4.0], [6.0, 8.0]], grad_norm_clipped_total=1.0))
    assert series(events, "grad_norm_total") == [(0, 5.0), (1, 10.0)]
    assert series(events, "grad_norm_clipped_total") == [(0, 1.0), (1, 1.0)]
    assert series(events, "skipped_steps") == [(0, 0.0), (1, 1.0)]


@pytest.mark.parametrize(
    ("layer_scalars", "statistics"),
    [
        (True, LAYER_TAGS),
        (False, ()),
        (("grad_max", "weight_std"), ("grad_max", "weight_std")),
        ("grad_std", ("grad_std",)),
    ],
)
def test_layer_scalars_says_which_statistics_are_written(tmp_path, layer_scalars, statistics):
    events = written(tmp_path, with_figures(run_of([[1.0]]), 1), layer_scalars=layer_scalars)
    assert scalar_tags(events) == TOTALS | {f"{statistic}/w0" for statistic in statistics}


def test_an_unknown_statistic_is_refused_by_name_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"layer_scalars: 'gradnorm' is none of grad_norm, .*; True writes all"):
        TensorBoard(tmp_path / "run", layer_scalars=["grad_norm", "gradnorm"])
    assert not (tmp_path / "run").exists()


def test_figures_are_written_only_where_they_were_measured(tmp_path):
    assert scalar_tags(written(tmp_path, run_of([[1.0]]), layer_scalars=LAYER_TAGS[:3])) == TOTALS | {"grad_norm/w0"}


def test_scalars_of_layers_are_written_on_request_only(tmp_path):
    assert scalar_tags(written(tmp_path, with_figures(run_of([[1.0]]), 1))) == TOTALS


def test_a_nan_gradient_is_written_as_nan_and_an_unmeasured_layer_is_not(tmp_path):
    events = written(tmp_path, [report([NAN, NAN, 1.0], nonfinite=[2, 0, 0])], layer_scalars="grad_norm")
    assert {tag for tag in scalar_tags(events) if tag.startswith("grad_norm/")} == {"grad_norm/w0", "grad_norm/w2"}
    assert np.isnan(events.Scalars("grad_norm/w0")[0].value)
    assert np.isnan(events.Scalars("grad_norm_total")[0].value)


@pytest.mark.parametrize("norm", [INF, 1e300])
def test_a_norm_beyond_float32_is_written_as_infinite(tmp_path, norm):
    events = written(tmp_path, [report([norm])], layer_scalars="grad_norm")
    assert series(events, "grad_norm/w0") == [(0, INF)]
    assert make_ndarray(events.Tensors(PACKED)[0].tensor_proto).tolist()[:2] == [[INF], [INF]]


def test_a_row_packs_norm_highest_and_lowest_of_every_layer(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write_row(row_of([report([1.0, NAN, 2.0], 0), report([9.0, NAN, 1.0], 1), report([3.0, NAN, 2.0], 2)]))
    sink.close()
    (event,) = read(tmp_path).Tensors(PACKED)
    norms = make_ndarray(event.tensor_proto)
    assert (event.step, norms.dtype, norms.shape) == (2, np.float32, (3, 3))
    np.testing.assert_array_equal(norms, [[3.0, NAN, 2.0], [9.0, NAN, 2.0], [1.0, NAN, 1.0]])


def strings(events, tag):
    return [(event.step, json.loads(make_ndarray(event.tensor_proto).item())) for event in events.Tensors(tag)]


def test_the_first_event_of_a_tag_alone_carries_the_metadata(tmp_path):
    written(tmp_path, run_of([[1.0, 2.0]] * 3))
    events = read(tmp_path)
    assert set(events.PluginTagToContent("gradwatch").values()) == {b'{"version": 1}'}
    assert [len(event.tensor_proto.tensor_content) for event in events.Tensors(PACKED)] == [3 * 2 * 4] * 3
    tags = ("layers", "grad_norm", "totals", "end")
    assert b"".join(path.read_bytes() for path in tmp_path.iterdir()).count(b'{"version"') == len(tags)


def test_the_table_of_layers_is_written_whenever_it_changed(tmp_path):
    reports = run_of([[1.0, 2.0]] * 3, layers=DOTTED)
    reports[1:] = [replace(step, depth=np.array([1, 0])) for step in reports[1:]]
    events = written(tmp_path, reports)
    shape = {"layers": list(DOTTED), "size": [4, 4]}
    assert strings(events, "gradwatch/layers") == [(0, {"depth": [0, 1], **shape}), (1, {"depth": [1, 0], **shape})]


def test_a_row_packs_each_figure_that_was_measured(tmp_path):
    reports = run_of([[1.0, 2.0]] * 2)
    reports[1].figures.update(
        update_ratio=np.array([1e-3, NAN]),
        grad_max=np.array([1.0, 1.0]),
        saturated_share=np.array([0.5, NAN]),
        saturated_output_share=np.array([NAN, 0.25]),
    )
    events = written(tmp_path, reports)
    tags = {tag.removeprefix("gradwatch/") for tag in events.PluginTagToContent("gradwatch")}
    assert tags == {"layers", "grad_norm", "totals", "update_ratio", "saturated_share", "end"}
    (event,) = events.Tensors("gradwatch/update_ratio")
    np.testing.assert_array_equal(make_ndarray(event.tensor_proto), np.float32([1e-3, NAN]))
    (event,) = events.Tensors("gradwatch/saturated_share")
    assert (event.step, make_ndarray(event.tensor_proto).tolist()) == (1, [0.5, 0.25])


def test_a_row_says_what_happened_to_the_whole_run_since_the_last(tmp_path):
    builder, sink = RowBuilder(), TensorBoard(tmp_path)
    steps = [
        report([3.0], 0, grad_norm_clipped_total=1.0),
        report([4.0], 1, skipped=True),
        report([2.0], 2, loss=0.5, learning_rate=0.25),
    ]
    for step in steps:
        builder.add(step)
    sink.write_row(builder.build(steps[-1], 1, band=np.array([[0.1], [9.0]])))
    builder.add(steps[1])
    sink.write_row(builder.build(replace(steps[1], step=3, optimizer=1), 2))
    sink.close()
    first, second = (make_ndarray(event.tensor_proto) for event in read(tmp_path).Tensors("gradwatch/totals"))
    named = dict(zip(format.TOTALS, first.tolist(), strict=True))
    assert named == {
        "grad_norm_total": 2.0,
        "highest_total": 4.0,
        "lowest_total": 2.0,
        "grad_norm_clipped_total": 2.0,
        "clipped_steps": 1.0,
        "skipped_steps": 1.0,
        "loss": 0.5,
        "optimizer": 0.0,
        "learning_rate": 0.25,
    }
    np.testing.assert_array_equal(second, [4, 4, 4, 4, 0, 1, NAN, 1, NAN])
    (event,) = read(tmp_path).Tensors("gradwatch/band")
    np.testing.assert_array_equal(make_ndarray(event.tensor_proto), np.float32([[0.1], [9.0]]))


def test_the_rates_of_several_groups_are_scalars_too(tmp_path):
    events = written(tmp_path, [report([1.0], 0, learning_rate=0.5, learning_rates=(0.5, 0.25))])
    assert series(events, "learning_rate/group_0") == [(0, 0.5)]
    assert series(events, "learning_rate/group_1") == [(0, 0.25)]


def test_of_a_group_for_each_layer_the_largest_rate_alone_is_a_scalar(tmp_path):
    rates = tuple(0.5 / (group + 1) for group in range(30))
    events = written(tmp_path, [report([1.0], 0, learning_rate=0.5, learning_rates=rates)])
    assert series(events, "learning_rate") == [(0, 0.5)]
    assert not [tag for tag in events.Tags()["scalars"] if "group" in tag]


def test_loss_and_learning_rate_are_scalars_of_their_own(tmp_path):
    reports = [report([1.0], 0, loss=0.5, learning_rate=0.25), report([1.0], 1)]
    events = written(tmp_path / "own", reports)
    assert series(events, "loss") == [(0, 0.5)]
    assert series(events, "learning_rate") == [(0, 0.25)]
    reports = [report([1.0], 2, update=0, optimizer=1, loss=0.5, learning_rate=0.125)]
    assert {"loss/optimizer_1", "learning_rate/optimizer_1"} <= scalar_tags(written(tmp_path / "second", reports))


def test_in_a_writer_of_somebody_elses_the_loss_has_a_name_apart(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        TensorBoard(writer).write_row(row_of([report([1.0], 0, loss=0.5, learning_rate=0.25)]))
    assert scalar_tags(read(tmp_path)) == TOTALS | {"gradwatch/loss", "gradwatch/learning_rate"}


def test_histograms_hold_every_finite_entry_they_were_given(tmp_path):
    entries = {
        "grad": [np.array([-1.0, 0.0, NAN, 3.0, INF], dtype=np.float32), None],
        "weight": [np.array([2.0], dtype=np.float32), np.array([NAN], dtype=np.float32)],
    }
    events = written(tmp_path, [report([1.0, NAN], entries=entries)])
    assert set(events.Tags()["histograms"]) == {"grad/w0", "weight/w0"}
    (event,) = events.Histograms("grad/w0")
    histogram = event.histogram_value
    assert (histogram.min, histogram.max, histogram.num, histogram.sum, histogram.sum_squares) == (-1, 3, 3, 2, 10)
    assert sum(histogram.bucket) == 3
    assert events.Histograms("weight/w0")[0].histogram_value.num == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "entries",
    [
        [0.0, 0.0],
        [1.0, 1.0000001],
        [1e-45, 3e-45],
        [-3e38, 3e38],
        [1e15, 1e15],
        [3e38, 3e38],
        [1e30, 1.0000001e30],
        [1e30, 1.0],
    ],
)
def test_a_histogram_of_any_finite_entries_can_be_written(tmp_path, entries, dtype):
    sample = np.array(entries, dtype=dtype)
    events = written(tmp_path, [report([1.0], entries={"grad": [sample]})])
    assert sum(events.Histograms("grad/w0")[0].histogram_value.bucket) == 2


def test_a_histogram_of_the_largest_float64_entries_can_be_written(tmp_path):
    events = written(tmp_path, [report([1.0], entries={"grad": [np.array([-1.7e308, 1.7e308, 1.0])]})])
    assert sum(events.Histograms("grad/w0")[0].histogram_value.bucket) == 3


def test_a_relative_directory_stays_where_it_was_when_the_program_moves(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sink = TensorBoard("runs/mine")
    sink.write_row(row_of([report([1.0])]))
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.write_finding(FINDING, ended=False)
    sink.close()
    assert not list((tmp_path / "elsewhere").iterdir())
    (run,) = read_runs(tmp_path / "runs" / "mine")
    assert [finding.kind for finding in run.findings] == [FINDING.kind]


@pytest.mark.parametrize("name", ["n" * 30_000, "a\nb", "\x00"])
def test_rows_and_findings_of_any_name_can_be_read(tmp_path, name):
    sink = TensorBoard(tmp_path, layer_scalars=True)
    sink.write_row(row_of([replace(report([1.0]), layers=(name,))]))
    sink.write_finding(replace(FINDING, layer=name, layers=(name,)), ended=False)
    sink.close()
    (run,) = read_runs(tmp_path)
    assert run.layers == (legible_name(name),)
    assert [finding.layer for finding in run.findings] == [legible_name(name)]
    assert not run.problems


(FINDING,) = findings([report([1.0, NAN], 7, loss=0.5, nonfinite=[0, 2])])


def test_a_finding_is_one_short_card_of_text_at_the_step_it_was_raised(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write_finding(FINDING, ended=False)
    sink.write_finding(FINDING, ended=True)
    sink.close()
    ((step, card),) = texts(read(tmp_path))
    assert step == 7
    assert card.split("\n\n") == [
        "**nonfinite** (error) in `w1` since step 7",
        FINDING.measured,
        f"Why: {FINDING.cause}",
        f"Try first: {FINDING.remedies[0]} (`{FINDING.remedies[0].name}`)",
    ]


def test_charts_of_layers_have_at_most_eight_lines_each_and_none_is_left_out(tmp_path):
    names = tuple(f"blocks.{number}.w+" for number in range(19))
    sink = TensorBoard(tmp_path, layer_scalars=["grad_norm"])
    sink.write_row(row_of(run_of([[1.0] * 19], layers=names)))
    sink.close()
    events = read(tmp_path)
    (layout,) = events.Tensors("custom_scalars__config__")
    shown = []
    for chart in Layout.FromString(make_ndarray(layout.tensor_proto).item()).category[0].chart:
        lines = [tag for tag in scalar_tags(events) if any(re.match(each, tag) for each in chart.multiline.tag)]
        assert len(lines) <= 8
        shown += lines
    assert sorted(tag for tag in shown if "blocks" in tag) == sorted(f"grad_norm/{name}" for name in names)


def test_a_finding_is_json_too(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write_finding(replace(FINDING, value=INF), ended=False)
    sink.write_finding(FINDING, ended=True)
    sink.close()
    (opened_at, opened), (ended_at, ended) = strings(read(tmp_path), "gradwatch/finding")
    assert (opened_at, opened.pop("ended"), opened["value"]) == (7, False, None)
    assert (ended_at, ended.pop("ended")) == (8, True)
    assert Finding.from_dict(ended) == FINDING
    assert Finding.from_dict({**opened, "value": FINDING.value}) == FINDING


def test_a_finding_without_a_layer_is_of_the_whole_run(tmp_path):
    (finding,) = findings([report([1.0], loss=NAN)])
    sink = TensorBoard(tmp_path)
    sink.write_finding(finding, ended=False)
    sink.close()
    assert "in the whole run since step 0" in texts(read(tmp_path))[0][1]


def test_a_finding_is_on_disk_before_the_sink_is_closed(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write_finding(FINDING, ended=False)
    assert len(texts(read(tmp_path))) == len(strings(read(tmp_path), "gradwatch/finding")) == 1
    sink.close()


def test_rows_are_on_disk_after_flush(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.write_row(row_of(run_of([[1.0]])))
    sink.flush()
    assert series(read(tmp_path), "grad_norm_total") == [(0, 1.0)]
    sink.close()


def test_findings_and_what_was_flushed_are_put_on_the_disk_if_asked_for(tmp_path, synced):
    sink = TensorBoard(tmp_path, fsync=True)
    for act in (lambda: sink.write_finding(FINDING, ended=False), sink.flush, sink.close):
        sink.write_row(row_of(run_of([[1.0]])))
        assert synced == {}
        act()
        (file,) = tmp_path.glob("*tfevents*")
        assert synced.take(file) == file.stat().st_size
        assert synced.take(tmp_path) is not None


def test_nothing_waits_for_the_disk_unless_asked_for(tmp_path, synced):
    sink = TensorBoard(tmp_path)
    sink.write_finding(FINDING, ended=False)
    sink.flush()
    sink.close()
    assert synced == {}


def test_a_writer_that_is_handed_over_shares_its_file_and_is_not_closed(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 0)
        sink = TensorBoard(writer, layer_scalars="grad_norm")
        sink.write_row(row_of(run_of([[1.0]])))
        sink.close()
        assert {"loss", "grad_norm/w0"} <= scalar_tags(read(tmp_path))
        writer.add_scalar("loss", 0.5, 1)
    assert len(list(tmp_path.iterdir())) == 1
    assert series(read(tmp_path), "loss") == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize(("told", "verdict"), [([FINDING, FINDING], "nonfinite"), ([], "nothing found")])
def test_a_directory_of_its_own_gets_a_layout_and_a_verdict(tmp_path, told, verdict):
    sink = TensorBoard(tmp_path, layer_scalars=LAYER_TAGS[:3])
    sink.write_row(row_of(run_of([[1.0]])))
    for finding in told:
        sink.write_finding(finding, ended=False)
    sink.close()
    events = read(tmp_path)
    started = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert started.session_start_info.hparams["gradwatch"].string_value == verdict
    (layout,) = events.Tensors("custom_scalars__config__")
    charts = Layout.FromString(make_ndarray(layout.tensor_proto).item()).category[0].chart
    shown = {
        tag
        for chart in charts
        for pattern in chart.multiline.tag
        for tag in scalar_tags(events)
        if re.match(pattern, tag)
    }
    assert shown == {"grad_norm_total", "grad_norm_clipped_total", "grad_norm/w0"}


def test_a_writer_that_is_handed_over_gets_neither(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        sink = TensorBoard(writer)
        sink.write_row(row_of(run_of([[1.0]])))
        sink.close()
    for plugin in ("hparams", "custom_scalars"):
        with pytest.raises(KeyError):
            read(tmp_path).PluginTagToContent(plugin)


def test_a_thousand_rows_of_300_layers_take_at_most_14_megabytes(tmp_path):
    steps = run_of([[1.0] * 300] * 20)
    sink, builder = TensorBoard(tmp_path, layer_scalars=False), RowBuilder()
    for step in steps:
        step.figures.update(dict.fromkeys(format.PACKED_FIGURES, np.ones(300)))
        builder.add(step)
        sink.write_row(builder.build(step, 0, band=np.ones((2, 300))))
    sink.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / len(steps) <= 14_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread ends so
def test_a_flush_does_not_overtake_the_fault_of_the_thread_that_writes(tmp_path, monkeypatch):
    """Its thread says that it has written before it says that it could not."""
    returned = threading.Event()

    def tell_late(thread, fault):
        if fault is not None:
            assert returned.wait(60)
        thread.__dict__["exception"] = fault

    flush, write = SummaryWriter.flush, LocalFileSystem._write
    is_full = False

    def flush_and_say(writer):
        flush(writer)
        returned.set()

    def write_or_not(*args):
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    late = property(lambda thread: thread.__dict__["exception"], tell_late)
    monkeypatch.setattr(_AsyncWriterThread, "exception", late, raising=False)
    monkeypatch.setattr(SummaryWriter, "flush", flush_and_say)
    monkeypatch.setattr(LocalFileSystem, "_write", write_or_not)
    sink = TensorBoard(tmp_path)
    sink.write_row(row_of([report([1.0, 1.0], 0)]))
    sink.flush()
    returned.clear()
    is_full = True
    sink.write_row(row_of([report([1.0, 1.0], 1)]))
    with pytest.raises(OSError, match="No space left"):
        sink.flush()
    is_full = False
    sink.close()
    assert [step for step, _ in series(read(tmp_path), "grad_norm_total")] == [0, 1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_comes_after_the_directory_was_deleted_can_be_read(tmp_path):
    sink, directory = TensorBoard(tmp_path / "run"), tmp_path / "run"
    sink.write_row(row_of([report([1.0, 1.0], 0)]))
    sink.flush()
    shutil.rmtree(directory)
    sink.write_row(row_of([report([1.0, 1.0], 1)]))
    with pytest.raises(OSError, match="No such file"):
        sink.flush()
    for step in (2, 3):
        sink.write_row(row_of([report([1.0, 1.0], step)]))
    sink.close()
    (run,) = read_runs(directory)
    assert run.steps.tolist()[-2:] == [2, 3]
    assert (run.layers, run.closed_after) == (("w0", "w1"), 4)
    assert run.lost == {"row": 1}


ENVIRONMENT = Environment({"python": "3.11"}, "CPU", "", "train.py")


def delete_files(directory):
    for path in directory.glob("*tfevents*"):
        path.unlink()


@pytest.mark.parametrize("is_closed", [True, False])
def test_what_comes_after_the_event_file_alone_was_deleted_can_be_read(tmp_path, caplog, is_closed):
    sink = TensorBoard(tmp_path)
    sink.write_environment(ENVIRONMENT)
    sink.write_row(row_of([report([1.0, 1.0], 0)]))
    sink.write_finding(FINDING, ended=False)
    delete_files(tmp_path)
    for step in (1, 2):
        sink.write_row(row_of([report([1.0, 1.0], step)]))
    sink.flush()
    sink.write_row(row_of([report([1.0, 1.0, 1.0], 3)]))
    sink.close() if is_closed else sink.flush()
    assert len(list(tmp_path.iterdir())) == 1  # without a file that says nothing of its tags
    (run,) = read_runs(tmp_path)
    assert (run.steps.tolist(), run.layers, run.problems) == ([1, 2, 3], ("w0", "w1", "w2"), ())
    assert run.environment == ENVIRONMENT
    assert run.lost == ({"row": 1, "finding": 1} if is_closed else {})
    assert verdict(run).word == "unknown"
    assert read(tmp_path).SummaryMetadata("gradwatch/grad_norm").plugin_data.plugin_name == "gradwatch"
    assert sum("was deleted while the run was writing to it" in message for message in caplog.messages) == 1
    sink.close()


def test_an_event_file_may_be_deleted_again_and_again(tmp_path):
    sink = TensorBoard(tmp_path)
    for step in range(6):
        sink.write_row(row_of([report([1.0, 1.0], step)]))
        sink.flush()
        if step in (1, 2, 4):
            delete_files(tmp_path)
    sink.close()
    (run,) = read_runs(tmp_path)
    assert (run.steps.tolist(), run.lost) == ([5], {"row": 5})


def test_what_comes_after_the_file_of_a_writer_of_the_users_was_deleted_can_be_read(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        sink = TensorBoard(writer)
        for step in range(5):
            sink.write_row(row_of([report([1.0, 1.0], step)]))
            sink.flush()
            if step == 1:
                delete_files(tmp_path)
        sink.close()
    (run,) = read_runs(tmp_path)
    assert (run.steps.tolist(), run.lost) == ([2, 3, 4], {"row": 2})


def test_whether_the_file_is_there_is_asked_at_a_flush_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tensorboard, "_head_of", lambda path: asked.append(path) or b"")
    sink = TensorBoard(tmp_path)
    sink.write_row(row_of([report([1.0, 1.0], 0)]))
    asked.clear()
    for step in range(1, 20):
        sink.write_row(row_of([report([1.0, 1.0], step)]))
    assert asked == []
    sink.flush()
    assert len(asked) == 1
    sink.close()
