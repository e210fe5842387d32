"""What detectors remember goes into checkpoints and comes back as it was, or is refused in words."""

import copy
import inspect
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from gradwatch.detect import state
from gradwatch.detect.detectors import Detectors
from gradwatch.explain.run_course import RunCourse
from gradwatch.findings import StateError, Thresholds
from gradwatch.watcher import checkpoint
from tests.reports import NAN, diagnosis, random_walks, run_of, table


@dataclass
class Inner:
    VERSION: ClassVar[int] = 3

    name: Literal["a", "b"] = "a"


@dataclass
class Everything:
    VERSION: ClassVar[int] = 2

    array: NDArray[np.float64]
    count: int = 0
    share: float = 0.0
    flag: bool = False
    words: str = ""
    known: float | None = None
    moment: tuple[int, float] = (0, 0.0)
    several: tuple[str, ...] = ()
    losses: list[float] = field(default_factory=list)
    latest: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def filled():
    return Everything(
        np.array([1.0, NAN]), 2, 0.5, True, "w", 3.0, (4, 0.25), ("x", "y"), [1.0, 2.0], {"rms": np.ones(2)}, Inner("b")
    )


def fresh():
    return Everything(np.zeros(2))


def test_a_state_comes_back_from_a_checkpoint_as_it_was():
    found = state.read(fresh(), checkpoint.unpack(checkpoint.pack(state.plain(filled()))))
    np.testing.assert_equal(state.plain(found), state.plain(filled()))
    assert type(found.moment) is type(found.several) is tuple


def test_a_plain_state_shares_nothing_with_the_detector():
    original = filled()
    saved = state.plain(original)
    original.array[0] = 9.0
    original.losses.append(9.0)
    assert saved["array"][0] == 1.0
    assert saved["losses"] == [1.0, 2.0]
    state.read(fresh(), saved).array[0] = 7.0
    assert saved["array"][0] == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"version": 1}, "Everything: expected version 2, found version 1", id="another version"),
        pytest.param({"array": np.zeros(3)}, r"array: expected float64 of shape \(2,\), found .*\(3,\)", id="shape"),
        pytest.param({"array": [1.0, 2.0]}, "array: expected an array, found list", id="no array"),
        pytest.param({"count": 1.5}, "count: expected int, found float 1.5", id="no whole number"),
        pytest.param({"count": True}, "count: expected int, found bool True", id="a truth value"),
        pytest.param({"words": None}, "words: expected str, found NoneType None", id="missing"),
        pytest.param({"moment": [1]}, "moment: expected 2 values, found 1", id="too short"),
        pytest.param({"several": "xy"}, "several: expected a list, found str", id="no list"),
        pytest.param(
            {"latest": {"rms": np.array(1.0)}},
            r"latest\['rms'\]: expected an array of values, found a single one",
            id="0-d",
        ),
        pytest.param({"latest": [1]}, "latest: expected a dict, found list", id="no dict"),
        pytest.param({"inner": {"version": 3, "name": "c"}}, "name: expected one of 'a', 'b', found 'c'", id="inside"),
        pytest.param({"inner": 5}, "inner: expected a dict of its fields, found int", id="no state"),
        pytest.param({"more": 1}, "expected the fields .*, found .*more", id="unknown field"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(change, words):
    with pytest.raises(ValueError, match=f"{words}.*resume with the version that saved it"):
        state.read(fresh(), {**state.plain(filled()), **change})


def test_what_was_found_is_shown_in_a_line_however_much_it_is():
    nested = {str(i): {str(j): {str(k): np.arange(1e4) for k in range(9)} for j in range(9)} for i in range(9)}
    for change in ({"count": nested}, {"version": nested}, {"share": [nested]}):
        with pytest.raises(StateError) as refused:
            state.read(fresh(), {**state.plain(filled()), **change})
        assert len(str(refused.value)) < 700
        assert "\n" not in str(refused.value)


def test_a_missing_field_is_refused():
    saved = state.plain(filled())
    del saved["share"]
    with pytest.raises(ValueError, match=r"expected the fields .*share.*, found "):
        state.read(fresh(), saved)


def test_the_state_of_another_model_is_refused():
    watching = diagnosis(table(3))
    for step in run_of([[1.0, 1.0, 1.0]] * 3):
        watching.observe(step)
    with pytest.raises(ValueError, match=r"expected .* of shape \(2,\), found .* of shape \(3,\)"):
        diagnosis(table(2)).restore(watching.state())


def watched_until_sick():
    watching = diagnosis(table(2))
    for step in run_of([[1.0, 1.0]] * 40 + [[1e12, 1e12]] * 12):
        watching.observe(step)
    return watching.state()


@pytest.mark.parametrize("change", [{"columns": [0, 2]}, {"columns": [-1]}, {"columns": [10**30]}, {"column": 2}])
def test_an_open_incident_of_layers_that_there_are_not_is_refused(change):
    saved = watched_until_sick()
    (tracked,) = (each["tracker"] for each in saved["detectors"].values() if each["tracker"]["open"])
    diagnosis(table(2)).restore(saved)
    tracked["open"].update(change)
    with pytest.raises(StateError, match=r"TrackerState\.open\.columns: expected columns of 2 layers, found \("):
        diagnosis(table(2)).restore(saved)


@pytest.mark.parametrize(("name", "shape"), [("latest", (2,)), ("first", (2,)), ("ranges", (2, 2))])
@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 2)), np.array(["a", "b"]), np.zeros((2, 3))])
def test_figures_of_other_layers_are_refused(name, shape, wrong):
    saved = watched_until_sick()
    background = saved["background"]
    figures = background["sizes"]["ranges"] if name == "ranges" else background[name]
    figures["weight_norm"] = np.ones(shape)
    diagnosis(table(2)).restore(saved)
    figures["weight_norm"] = wrong
    with pytest.raises(StateError, match=rf"{name}\[weight_norm\]: expected numbers of shape .*, found "):
        diagnosis(table(2)).restore(saved)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 2)), np.array(["a", "b"])])
def test_shares_of_other_layers_are_refused(wrong):
    saved = watched_until_sick()
    assert saved["background"]["first_shares"].shape == (2,)
    saved["background"]["first_shares"] = wrong
    with pytest.raises(StateError, match=r"first_shares: expected numbers of shape \(2,\), found "):
        diagnosis(table(2)).restore(saved)


def test_a_diagnosis_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"with background, detectors, open, recurrences, found episodes"):
        diagnosis(table(2)).restore({"episodes": {}})


def test_every_state_has_typed_fields_and_a_version():
    kinds = [type(tracker.detector._state) for tracker in Detectors(table(2), Thresholds())._trackers]
    for kind in [*kinds, RunCourse]:
        assert isinstance(kind.VERSION, int)
        assert "Any" not in inspect.getsource(kind), kind


def test_a_restored_diagnosis_has_the_same_state():
    rows, losses = random_walks(seed=4, steps=60, count=3)
    watching = diagnosis(table(3))
    for step in run_of(rows, losses):
        watching.observe(step)
    saved = watching.state()
    resumed = diagnosis(table(3))
    resumed.restore(copy.deepcopy(saved))
    np.testing.assert_equal(resumed.state(), saved)
