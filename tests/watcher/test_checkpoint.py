import io

import numpy as np
import pytest
import torch

from gradwatch import Advice, Finding, watch
from gradwatch.watcher.checkpoint import pack, unpack

FINDING = Finding(
    kind="exploding",
    severity="error",
    layer="head.weight",
    layers=("body.weight", "head.weight"),
    step=3,
    raised_step=5,
    last_step=9,
    value=float("inf"),
    threshold=1e3,
    measured="head.weight: too much",
    cause="the learning rate",
    remedies=(Advice("clip-norm", "clip=1.0"),),
)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(pack(value), file)
    file.seek(0)
    return unpack(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3),
        np.array([np.nan, np.inf, -0.0], dtype=np.float32),
        np.array([[True], [False]]),
        np.array(2.5),
        np.empty((0, 4)),
        np.arange(6.0).reshape(2, 3)[:, ::-2],
    ],
    ids=["int64", "nan", "bool", "0-dim", "empty", "non-contiguous"],
)
def test_arrays_come_back_from_a_file_as_they_were(array):
    found = through_a_file({"deep": [{"array": array}]})["deep"][0]["array"]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "words", [], {}, {"a": [1, {"b": None}]}, float("inf")])
def test_plain_values_come_back_as_they_were(value):
    assert through_a_file(value) == value


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.5), np.int64(7), np.bool_(True)])
def test_numpy_numbers_come_back_as_pythons(number):
    found = through_a_file([number])[0]
    assert found == number
    assert type(found) in (float, int, bool)


def test_tuples_come_back_as_lists():
    assert through_a_file({"pair": (1, (2, 3))}) == {"pair": [1, [2, 3]]}


def test_tensors_stay_tensors():
    found = through_a_file({"mean": torch.tensor(2.0, dtype=torch.float64)})["mean"]
    assert isinstance(found, torch.Tensor)
    assert (found.item(), found.dtype) == (2, torch.float64)


def test_what_was_packed_does_not_follow_its_array():
    array = np.zeros(2)
    packed = pack([array])
    array += 1
    assert unpack(packed)[0].tolist() == [0, 0]


def test_what_was_unpacked_does_not_write_to_the_checkpoint():
    packed = pack([np.zeros(2)])
    unpack(packed)[0][:] = 1
    assert unpack(packed)[0].tolist() == [0, 0]


def test_a_finding_comes_back_from_a_file_as_it_was():
    found = Finding.from_dict(through_a_file(Finding.as_dict(FINDING)))
    assert found == FINDING
    assert hash(found) == hash(FINDING)


def saved_state(**changed):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer, clip="auto") as watcher:
        for _ in range(3):
            model(torch.ones(4, 2)).square().mean().backward()
            optimizer.step()
        return {**watcher.state_dict(), **changed}, model, optimizer


HOSTILE = {
    "no number": {"step": "3"},
    "a negative count": {"skipped_steps": -1},
    "a huge count": {"measured_steps": 2**80},
    "a rule without a name": {"unjudged": [{"kind": "dead", "rule": "", "steps": 3}]},
    "a rule of another kind": {"unjudged": [{"kind": "tired", "rule": "Dead", "steps": 3}]},
    "not a number": {"step": float("nan")},
    "a version that is an array": {"version": torch.ones(3)},
    "names as long as books": {"layers": ["n" * 100_000]},
    "names that are none": {"layers": [1, 2]},
    "a finding without fields": {"ended": [{}]},
    "a finding of texts": {"ended": [{**FINDING.as_dict(), "step": "9" * 5000}]},
    "no findings": {"ended": 7},
    "no optimizer": {"optimizers": [None]},
    "an optimizer of nothing": {"optimizers": [{"updates": 1, "diagnosis": {"a": torch.ones(3)}, "clip": {}}]},
    "an optimizer without a count": {"optimizers": [{"updates": 1.5, "diagnosis": {}, "clip": {}}]},
    "a policy of arrays": {"optimizers": [{"updates": 1, "diagnosis": {}, "clip": {"version": np.ones(3)}}]},
    "a tensor without entries": {"ended": [{"numpy array": torch.ones(2, device="meta")}]},
    "deep": {"optimizers": [[[[[[[[]]]]]]]]},
}


@pytest.mark.parametrize("changed", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_state_is_refused_in_one_short_sentence_or_two_and_the_run_goes_on(changed):
    damaged, model, optimizer = saved_state(**changed)
    with watch(model, optimizer, clip="auto") as watcher:
        fresh = watcher.state_dict()
        with pytest.raises(ValueError, match=r"esume with|go on without") as raised:
            watcher.load_state_dict(damaged)
        assert len(str(raised.value)) < 700
        assert str(watcher.state_dict()) == str(fresh)
        optimizer.zero_grad()
        (model(torch.ones(4, 2)).square().mean() * torch.nan).backward()
        optimizer.step()
    assert [finding.kind for finding in watcher.findings] == ["nonfinite"]
