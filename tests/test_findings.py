import copy
import dataclasses
import math
import pickle

import pytest

from gradwatch import KINDS, Finding, NonFiniteError, Thresholds

NAMES = [field.name for field in dataclasses.fields(Thresholds)]
COUNTS = ["patience", "warmup_steps"]


def finding(**changes):
    plain = {"kind": "vanishing", "severity": "warning", "layer": "a", "layers": ("a",), "step": 1, "raised_step": 2}
    figures = {"last_step": 3, "value": 1e-9, "threshold": 1e-7, "measured": "a: too little", "cause": "sigmoid"}
    return Finding(**{**plain, **figures, **changes})


def test_findings_are_equal_by_value_and_have_no_remedies_of_themselves():
    assert finding() == finding()
    assert len({finding(), finding(), finding(layer="b")}) == 2
    assert finding().remedies == ()


def test_a_finding_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding().last_step = 4
    assert dataclasses.replace(finding(), last_step=4) == finding(last_step=4)


def test_kinds_are_unique():
    assert len(set(KINDS)) == len(KINDS)
    assert {"vanishing", "exploding", "nonfinite"} < set(KINDS)


def test_a_nonfinite_error_says_where_and_when():
    error = NonFiniteError("head.weight", 7, "head.weight: NaN at step 7")
    assert isinstance(error, RuntimeError)
    assert (error.layer, error.step, str(error)) == ("head.weight", 7, "head.weight: NaN at step 7")


@pytest.mark.parametrize(
    "through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_a_nonfinite_error_survives_a_process_boundary(through):
    error = through(NonFiniteError("a", 7, "words"))
    assert (error.layer, error.step, str(error)) == ("a", 7, "words")


def test_thresholds_are_scale_free_by_default():
    assert all(value is None for value in dataclasses.astuple(Thresholds()))


@pytest.mark.parametrize("name", NAMES)
def test_a_sensible_threshold_holds_literally(name):
    assert getattr(Thresholds(**{name: 20}), name) == 20


@pytest.mark.parametrize(
    "edge", [{"warmup_steps": 0}, {"patience": 1}, {"exploding_growth": 1.001}, {"vanishing_norm": 1e-300}]
)
def test_thresholds_at_the_edge_are_accepted(edge):
    ((name, value),) = edge.items()
    assert getattr(Thresholds(**edge), name) == value


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, True, "1e-7", [1]])
@pytest.mark.parametrize("name", NAMES)
def test_a_threshold_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^Thresholds\({name}=.*\): expected a .*(above|or more).*, or None"):
        Thresholds(**{name: value})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "warmup_steps"])
def test_a_threshold_of_0_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Thresholds(**{name: 0})


def test_a_growth_of_1_is_no_growth():
    with pytest.raises(ValueError, match="above 1"):
        Thresholds(exploding_growth=1)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers(name):
    with pytest.raises(ValueError, match=f"{name}=2.0.*a whole number"):
        Thresholds(**{name: 2.0})
