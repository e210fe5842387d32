import os
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from gradwatch import Finding
from gradwatch.event_files.format import NORMS
from gradwatch.event_files.reader import NoRunError, read_runs
from gradwatch.event_files.records import records
from tests.reports import INF, NAN, report, run_of
from tests.written import FINDING, TABLE, event, forge, norms, train, write_rows


def read(directory):
    (run,) = read_runs(directory)
    return run


def finding_of(**values):
    told = {**FINDING, **values}
    told.pop("ended")
    return Finding.from_dict(told)


def reason_of(directory):
    with pytest.raises(NoRunError) as raised:
        read_runs(directory)
    return raised.value.reason


def test_a_real_run_is_read_back_as_its_watcher_saw_it(tmp_path):
    watcher = train(tmp_path, spoil=7)
    run, history = read(tmp_path), watcher.history
    assert run.name == str(tmp_path)
    assert run.layers == history.layers
    assert run.depth.tolist() == [0, 1, 2, 3]
    assert run.size.tolist() == [32, 8, 8, 1]
    assert run.steps.tolist() == history.steps.tolist()
    np.testing.assert_array_equal(run.packed["grad_norm"].values, history["grad_norm"])
    for name in ("grad_norm_total", "loss"):
        np.testing.assert_allclose(run.curves[name].values, history[name], rtol=1e-6)
    at = np.isin(history.steps, run.packed["update_ratio"].steps)
    np.testing.assert_array_equal(run.packed["update_ratio"].values, history["update_ratio"][at])
    assert [(f.kind, f.layer, f.step) for f in run.findings] == [(f.kind, f.layer, f.step) for f in watcher.findings]
    assert run.findings[0].message == watcher.findings[0].message
    assert run.problems == ()


def test_the_extremes_between_two_rows_are_kept(tmp_path):
    write_rows(tmp_path, [report([1.0, NAN]), report([2.0, 3.0], 1, nonfinite=[0, 1])])
    packed = read(tmp_path).packed
    assert set(packed) == set(NORMS)
    np.testing.assert_array_equal(packed["highest"].values, [[1, NAN], [2, INF]])
    np.testing.assert_array_equal(packed["grad_norm"].values, [[1, NAN], [2, NAN]])


def test_one_layer_alone_is_read(tmp_path):
    reports = run_of([[1.0], [2.0]])
    reports[1].figures["update_ratio"] = np.array([0.5])
    write_rows(tmp_path, reports)
    assert read(tmp_path).packed["update_ratio"].values.tolist() == [[0.5]]


def test_rows_of_two_optimizers_leave_out_each_others_layers(tmp_path):
    norms_of = [[1.0, NAN], [NAN, 2.0], [3.0, NAN], [NAN, 4.0]]
    write_rows(tmp_path, [replace(each, optimizer=each.step % 2) for each in run_of(norms_of)])
    run = read(tmp_path)
    np.testing.assert_array_equal(run.packed["grad_norm"].values, norms_of)
    assert run.curves["grad_norm_total"].steps.tolist() == [0, 2]
    assert run.curves["grad_norm_total/optimizer_1"].steps.tolist() == [1, 3]


def test_a_resumed_run_wins_from_its_first_step_on(tmp_path):
    old, new = finding_of(step=5, raised_step=5), finding_of(layer="b", step=4, raised_step=4)
    write_rows(tmp_path, run_of([[1.0]] * 8), [(finding_of(step=1, raised_step=1), False), (old, False)])
    os.rename(next(tmp_path.iterdir()), tmp_path / "events.out.tfevents.1.a")
    write_rows(tmp_path, run_of([[9.0]] * 10)[4:], [(replace(new, raised_step=9), False)])
    run = read(tmp_path)
    assert run.steps.tolist() == list(range(10))
    assert run.packed["grad_norm"].values[:, 0].tolist() == [1] * 4 + [9] * 6
    assert [(f.layer, f.step) for f in run.findings] == [("a", 1), ("b", 4)]


@pytest.mark.parametrize(("earlier", "later"), [("1.host", "2.host"), ("1.host.7.9", "1.host.7.10"), ("9.a", "10.a")])
def test_findings_between_the_checkpoint_and_the_first_new_row_are_told_once(tmp_path, earlier, later):
    rows = [event(step, layers=TABLE, grad_norm=norms(1.0, 1.0)) for step in (0, 10, 20)]
    told = [event(13, finding={**FINDING, "step": step, "raised_step": 13}) for step in (11, 12)]
    forge(tmp_path, rows[0], rows[1], told[0], rows[2], name=f"events.out.tfevents.{earlier}")
    forge(tmp_path, told[1], rows[2], name=f"events.out.tfevents.{later}")
    run = read(tmp_path)
    assert run.steps.tolist() == [0, 10, 20]
    assert [finding.step for finding in run.findings] == [12]


def test_a_second_fit_with_the_same_writer_begins_anew(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        train(writer, steps=9, spoil=5)
        train(writer, steps=4)
    run = read(tmp_path)
    assert run.steps.tolist() == [0, 1, 2, 3]
    assert run.findings == ()


def test_an_end_replaces_its_opening(tmp_path):
    opened = finding_of()
    ended = replace(opened, last_step=9)
    other = replace(opened, step=6, raised_step=6)
    forge_all = [event(0, layers=TABLE, grad_norm=norms(1.0, 1.0))]
    forge_all += [event(4, finding=FINDING), event(6, finding={**other.as_dict(), "ended": False})]
    forge(tmp_path, *forge_all, event(9, finding={**ended.as_dict(), "ended": True}))
    run = read(tmp_path)
    assert run.findings == (ended, other)
    assert run.ended == (True, False)


def test_a_run_that_is_still_written_is_read_as_far_as_it_is(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        watcher = train(writer)
        writer.flush()
        assert read(tmp_path).steps.tolist() == watcher.history.steps.tolist()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"gradwatch/grad_norm")])  # within the last row
    run = read(tmp_path)
    assert run.steps.tolist() == list(range(11))
    assert run.problems == (f"{path.name}: ends within a record",)


def test_runs_in_subdirectories_are_read_by_name_and_foreign_ones_left_out(tmp_path):
    for name in ("b", "a", "a/deeper"):
        train(tmp_path / name, steps=2)
    with SummaryWriter(str(tmp_path / "foreign")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    names = [run.name.removeprefix(f"{tmp_path}/") for run in read_runs(tmp_path)]
    assert names == ["a", "a/deeper", "b"]


def test_the_table_that_changes_keeps_its_rows(tmp_path):
    later = {**TABLE, "depth": [1, 0]}
    rows = (event(0, layers=TABLE, grad_norm=norms(1.0, 2.0)), event(1, layers=later, grad_norm=norms(3.0, 4.0)))
    run = read(forge(tmp_path, *rows))
    assert run.order.tolist() == [1, 0]
    assert run.packed["grad_norm"].values.tolist() == [[1, 2], [3, 4]]


def test_rows_of_another_model_are_left_out_and_said(tmp_path):
    other = {"layers": ["c"], "depth": [0], "size": [1]}
    run = read(
        forge(tmp_path, event(0, layers=other, grad_norm=norms(1.0)), event(1, layers=TABLE, grad_norm=norms(1.0, 2.0)))
    )
    assert (run.layers, run.steps.tolist()) == (("a", "b"), [1])
    assert run.problems == ("rows of another model, from before it was resumed, left out: 1",)


def test_a_missing_directory_and_a_file_are_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    assert reason_of(tmp_path / "nothing") == reason_of(tmp_path / "file") == "missing"


def test_a_directory_without_event_files_or_with_empty_ones_is_empty(tmp_path):
    assert reason_of(tmp_path) == "empty"
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    assert reason_of(tmp_path) == "empty"


def test_tensorboard_files_of_others_are_foreign(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("grad_norm_total", 1.0, 0)
        writer.add_text("text", "words")
    assert reason_of(tmp_path) == "foreign"


def test_what_is_no_event_file_by_content_is_corrupt(tmp_path):
    (tmp_path / "events.out.tfevents.1.host").write_bytes(random.Random(0).randbytes(10_000))
    assert reason_of(tmp_path) == "corrupt"


def test_a_file_spoilt_in_its_midst_gives_the_rest_and_says_so(tmp_path):
    train(tmp_path, steps=30)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :: 10_000] = bytes(len(content[len(content) // 2 :: 10_000]))
    path.write_bytes(content)
    run = read(tmp_path)
    assert 20 <= len(run.steps) < 30
    assert any("damaged" in problem for problem in run.problems)


def tensor(shape, content=b"", dtype=1, **rest):
    dimensions = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(dtype=dtype, tensor_shape=TensorShapeProto(dim=dimensions), tensor_content=content, **rest)


HOSTILE_TENSORS = {
    "a shape of exabytes": tensor([3, 1 << 60], b"1234"),
    "a shape of exabytes, one value": tensor([3, 1 << 40], float_val=[1.0]),
    "a negative shape": tensor([3, -1], b"12345678"),
    "two negative sides": tensor([-3, -2], b"1" * 24),
    "a hundred sides": tensor([1] * 100, b"1234"),
    "three sides": tensor([3, 1, 2], b"1" * 24),
    "no sides": tensor([], b"1234"),
    "float64": tensor([3, 2], b"1" * 48, dtype=2),
    "strings": make_tensor_proto(["a", "b"]),
    "an unknown type": tensor([3, 2], b"1" * 24, dtype=99),
    "too few bytes": tensor([3, 2], b"1" * 23),
    "another width": tensor([3, 5], b"1" * 60),
    "two rows": tensor([2, 2], b"1" * 16),
    "nothing": TensorProto(),
}


@pytest.mark.parametrize("hostile", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_a_hostile_tensor_is_left_out_and_said(tmp_path, hostile):
    bad = Event(step=1, summary=Summary(value=[Summary.Value(tag="gradwatch/grad_norm", tensor=hostile)]))
    good = [event(step, layers=TABLE, grad_norm=norms(1.0, 2.0)) for step in (0, 2)]
    run = read(forge(tmp_path, good[0], bad.SerializeToString(), good[1]))
    assert run.steps.tolist() == [0, 2]
    assert len(run.problems) == 1


HOSTILE_JSON = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "not UTF-8": b"\xff\xfe\xfd",
    "a number of ten thousand digits": '{"layers": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
@pytest.mark.parametrize("tag", ["finding", "layers"])
def test_hostile_json_is_left_out_and_said(tmp_path, tag, text):
    good = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0))
    run = read(forge(tmp_path, good, event(1, **{tag: text, "grad_norm": norms(1.0, 2.0)})))
    assert (run.steps.tolist(), run.findings, len(run.problems)) == ([0], (), 1)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"kind": "unheard"},
        {"kind": ["exploding"]},
        {"severity": "fatal"},
        {"layer": None},
        {"layers": "ab"},
        {"layers": [1]},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"last_step": 2**63},
        {"raised_step": None},
        {"value": "high"},
        {"value": True},
        {"remedies": None},
        {"ended": "no"},
    ],
    ids=str,
)
def test_a_finding_of_wrong_types_is_left_out_and_said(tmp_path, spoilt):
    good = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0))
    run = read(forge(tmp_path, good, event(4, finding={**FINDING, **spoilt})))
    assert (run.findings, len(run.problems)) == ((), 1)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"layers": ["a"]},
        {"layers": [1, 2]},
        {"depth": [0, "1"]},
        {"depth": [0, -1]},
        {"size": None},
        {"size": [1, 2**64]},
    ],
    ids=str,
)
def test_a_table_of_wrong_types_is_left_out_and_said(tmp_path, spoilt):
    good = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0))
    run = read(forge(tmp_path, good, event(1, layers={**TABLE, **spoilt}, grad_norm=norms(1.0, 2.0))))
    assert (run.steps.tolist(), len(run.problems)) == ([0], 1)


def test_names_lose_what_a_terminal_would_obey(tmp_path):
    names = ["\x1b[31mred\x07", "right\u202eleft"]
    run = read(forge(tmp_path, event(0, layers={**TABLE, "layers": names}, grad_norm=norms(1.0, 2.0))))
    assert run.layers == (r"\x1b[31mred\x07", r"right\u202eleft")


def test_names_that_differ_in_what_is_not_shown_stay_apart(tmp_path):
    names = ["\0", "\x07", "n" * 3000, "n" * 3001]
    table = {"layers": names, "depth": [0, 1, 2, 3], "size": [4] * 4}
    finding = {**FINDING, "layer": names[3], "layers": names[1:]}
    run = read(forge(tmp_path, event(0, layers=table, grad_norm=norms(1.0, 2.0, 3.0, 4.0)), event(4, finding=finding)))
    assert len(set(run.layers)) == 4
    assert run.findings[0].layer == run.layers[3]
    assert run.findings[0].layers == run.layers[1:]
    assert run.sick.tolist() == [False, True, True, True]
    assert max(map(len, run.layers)) < 2100


def test_names_that_somebody_has_made_alike_are_refused(tmp_path):
    forge(tmp_path, event(0, layers={**TABLE, "layers": ["\x07", r"\x07"]}, grad_norm=norms(1.0, 2.0)))
    with pytest.raises(NoRunError, match="a name is there twice"):
        read_runs(tmp_path)


def test_a_newer_format_is_named(tmp_path):
    value = Summary.Value(tag="gradwatch/grad_norm", tensor=make_tensor_proto(norms(1.0, 2.0)))
    value.metadata.plugin_data.plugin_name = "gradwatch"
    value.metadata.plugin_data.content = b'{"version": 2}'
    newer = Event(summary=Summary(value=[value])).SerializeToString()
    with pytest.raises(NoRunError, match="version 2 of the format, this reads 1"):
        read_runs(forge(tmp_path, newer))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Contents of the records of a real run."""
    directory = tmp_path_factory.mktemp("sound")
    train(directory, steps=6, spoil=3)
    return list(records(next(directory.iterdir())))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_spoilt_beneath_sound_checksums_never_raise(sound, tmp_path, data):
    contents = list(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        which = data.draw(st.integers(0, len(contents) - 1))
        at = data.draw(st.integers(0, len(contents[which]) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        contents[which] = contents[which][:at] + patch + contents[which][at + len(patch) :]
    forge(tmp_path, *contents)
    try:
        run = read(tmp_path)
    except NoRunError:
        return
    assert run.packed["grad_norm"].values.shape == (len(run.steps), len(run.layers))
    assert all(isinstance(finding.step, int) for finding in run.findings)
    assert (np.diff(run.steps) > 0).all()


def test_a_signalling_nan_of_a_damaged_file_is_read_as_an_ordinary_one(sound, tmp_path):
    signalling, quiet = struct.pack("<I", 0x7FA00000), struct.pack("<f", 1.5)
    with np.errstate(all="raise"):
        write_rows(tmp_path, run_of([[1.5, 1.0], [1.5, 1.0]]))
        (path,) = tmp_path.iterdir()
        contents = [record.replace(quiet, signalling) for record in records(path)]
        path.unlink()
        forge(tmp_path, *contents)
        norms = read(tmp_path).packed["grad_norm"].values.astype(np.float64)
    assert np.isnan(norms[:, 0]).all()
    assert norms[:, 1].tolist() == [1.0, 1.0]


def test_random_bytes_anywhere_in_the_file_never_raise(sound, tmp_path):
    forge(tmp_path, *sound)
    (path,) = tmp_path.iterdir()
    whole, chance, reasons = path.read_bytes(), random.Random(0), set()
    for _ in range(200):
        spoilt = bytearray(whole)
        for _ in range(chance.randint(1, 10)):
            struct.pack_into("<Q", spoilt, chance.randrange(len(spoilt) - 8), chance.getrandbits(64))
        path.write_bytes(spoilt)
        try:
            assert len(read(tmp_path).steps) <= 6
        except NoRunError as error:
            reasons.add(error.reason)
    assert reasons <= {"corrupt"}


def test_a_finding_of_a_file_that_knows_no_actions_has_none(tmp_path):
    forge(tmp_path, event(0, layers=TABLE, grad_norm=norms(1.0, 1.0)), event(1, finding=FINDING))
    assert "actions" not in FINDING
    assert [finding.actions for finding in read(tmp_path).findings] == [()]
