import copy
import dataclasses
import math
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch import KINDS, Advice, Finding, NonFiniteError, Thresholds

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


NUMBERS = st.one_of(st.floats(0, 1e300), st.sampled_from([0.0, 1.0, 5e-324, math.inf, 1e6, 16.0]))
ANY_FINDING = st.builds(
    finding,
    kind=st.sampled_from(KINDS),
    layer=st.one_of(st.just(""), st.text(max_size=300), st.text("abc.0_", min_size=1, max_size=300)),
    step=st.integers(0, 10**12),
    value=NUMBERS,
    threshold=st.floats(0, 1e300),
    figure=st.one_of(st.just(""), st.text(max_size=300)),
)


@settings(deadline=None, derandomize=True)
@given(ANY_FINDING)
def test_a_message_is_one_line_that_fits_a_log(found):
    line = f"gradwatch: {found.message}"
    assert len(line) <= 160
    assert line.isprintable()
    assert found.message.startswith(f"{found.kind} in ")
    assert f" since step {found.step}: " in found.message
    assert found.message.endswith(". More: print(finding)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "vanishing in a since step 1: gradient norm 1e-09, normal above 1e-07. More: print(finding)"),
        (
            {"kind": "stalled", "figure": "no optimizer holds it"},
            "stalled in a since step 1: no optimizer holds it. More: print(finding)",
        ),
        (
            {"kind": "exploding", "value": math.inf},
            "exploding in a since step 1: its gradient norm overflows. More: print(finding)",
        ),
        (
            {"kind": "nonfinite", "value": 1.0, "threshold": 0.0},
            "nonfinite in a since step 1: at least 1 gradient entry is NaN or Inf. More: print(finding)",
        ),
        (
            {"kind": "nonfinite", "value": 1200.0, "threshold": 0.0},
            "nonfinite in a since step 1: 1,200 gradient entries are NaN or Inf. More: print(finding)",
        ),
        (
            {"kind": "nonfinite", "layer": "", "layers": ("",), "value": 1.0},
            "nonfinite in the whole run since step 1: the loss is NaN or Inf. More: print(finding)",
        ),
        (
            {"kind": "dead", "value": 1.0, "threshold": 0.8},
            "dead in a since step 1: 100% of its units are dead, normal below 80%. More: print(finding)",
        ),
    ],
)
def test_a_message_names_kind_place_step_and_figure(changes, message):
    assert finding(**changes).message == message


def test_a_message_shortens_a_long_name_in_its_middle():
    message = finding(layer="encoder." + "layers." * 40 + "weight").message
    assert re.match(r"vanishing in encoder\.(layers\.)+…(layers\.)+weight since step 1:", message)  # whole modules


def test_a_module_that_is_too_long_alone_loses_characters():
    message = finding(layer="x" * 300).message
    assert re.match(r"vanishing in x+…x+ since step 1:", message)


def test_a_long_figure_is_cut_between_words():
    figure = "the loss is 1.5e-09 and " * 10
    (shown,) = re.findall(r"since step 1: (.*) …\. More", finding(figure=figure).message)
    assert figure.startswith(f"{shown} ")


def test_a_message_does_not_count_layers_since_others_may_join():
    assert finding(layers=("a", "b")).message == finding(layers=("a", "b", "c")).message


REMEDIES = tuple(Advice(name, f"try {name}") for name in ("one", "two", "three", "four", "five"))


def test_a_finding_prints_what_why_and_what_to_do():
    found = finding(layers=("a", "b"), measured="The norm is small.", cause="A sigmoid.", remedies=REMEDIES)
    assert str(found) == (
        "What: vanishing (warning) in a and 1 other layer, steps 1 to 3\n"
        "  The norm is small.\n"
        "\n"
        "Why:\n"
        "  A sigmoid.\n"
        "\n"
        "What to do:\n"
        "  - try one (one)\n"
        "  - try two (two)\n"
        "  - try three (three)\n"
        "  Or, further down the list: four, five"
    )


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"layers": ("a", "b", "c")}, "in a and 2 other layers, steps 1 to 3\n"),
        ({"last_step": 1}, "in a, step 1\n"),
        ({"layer": "", "layers": ("",), "ranks": (3,)}, "in the whole run, steps 1 to 3, rank 3\n"),
        ({"ranks": (0, 2)}, "in a, steps 1 to 3, ranks 0, 2\n"),
    ],
)
def test_a_finding_prints_where_and_when(changes, place):
    assert place in str(finding(**changes))


@settings(deadline=None, derandomize=True)
@given(ANY_FINDING)
def test_a_finding_comes_back_from_plain_values(found):
    assert Finding.from_dict(found.as_dict()) == found


def test_plain_values_hold_every_field_and_the_message():
    values = finding(remedies=REMEDIES, ranks=(1,)).as_dict()
    assert set(values) == {*(field.name for field in dataclasses.fields(Finding)), "message"}
    assert values["remedies"][0] == {"name": "one", "text": "try one"}


def test_an_advice_is_its_text():
    assert str(REMEDIES[0]) == f"{REMEDIES[0]}" == "try one"


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
