"""Which remedies and pairs are tried, and in which order."""

import pytest

from gradwatch.findings import KINDS, Advice, Finding
from gradwatch.prescription import fitting
from gradwatch.remedies import (
    LIBRARY,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_candidates_each_once(kind):
    found = fitting.candidates(kind)
    assert len(set(found)) == len(found)
    assert {len(candidate) for candidate in found} == {1, 2}
    assert set(found) <= set(fitting.everything())


def found(kind, *names):
    advice = tuple(Advice(name, "try this") for name in names)
    return Finding(kind, "error", "w", ("w",), 0, 0, 0, 1.0, 1.0, "", "", advice)


def test_what_findings_of_the_kind_advise_is_tried_first_then_the_rest_of_the_library():
    findings = [
        found("dead", "elu", "he"),
        found("vanishing", "residual", "lower-learning-rate"),
        found("vanishing", "residual", "he"),
    ]
    order = [candidate[0] for candidate in fitting.candidates("vanishing", findings) if len(candidate) == 1]
    names = list(dict.fromkeys(treatment.remedy for treatment in order))
    rest = [name for name, remedy in LIBRARY.items() if "vanishing" in remedy.kinds]
    first = ["residual", "lower-learning-rate", "he"]
    assert names == [*first, *(name for name in rest if name not in first)]
    assert set(fitting.candidates("vanishing", findings)) == set(fitting.candidates("vanishing"))


def test_extreme_rates_come_last_among_singles_and_pairs_by_the_sum_of_their_places():
    tried = fitting.candidates("dead", [found("dead", "higher-learning-rate", "lower-learning-rate", "he")])
    singles = [candidate[0] for candidate in tried if len(candidate) == 1]
    pairs = [{treatment.remedy for treatment in candidate} for candidate in tried if len(candidate) == 2]
    assert tried[: len(singles)] == [(single,) for single in singles]
    assert [single.strength for single in singles[-3:]] == ["-100", "-0.001", "-0.0001"]
    assert pairs[0] == {"higher-learning-rate", "he"}
    assert pairs[1] == pairs[2] == {"lower-learning-rate", "he"}


def test_a_critics_constraint_is_tried_late_where_nothing_advises_it():
    names = [candidate[0].remedy for candidate in fitting.candidates("exploding") if len(candidate) == 1]
    assert names.index("lower-learning-rate") < names.index("batch-norm") < names.index("spectral-norm")


@pytest.mark.parametrize("output", ["linear-output", "softmax-over-classes"])
def test_an_output_that_cannot_learn_is_mended_together_with_what_it_hides(output):
    tried = fitting.candidates("stalled", [found("stalled", output)])
    pairs = [{treatment.remedy for treatment in candidate} for candidate in tried if len(candidate) == 2]
    for other in ("scaled-inputs", "lower-learning-rate", "higher-learning-rate", "batch-norm"):
        assert {output, other} in pairs
