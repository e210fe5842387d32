"""The benchmark of cures: programs in the form that ``prescribe`` takes, and what is said of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cures import forms, measure, search, table
from benchmarks.cures.collection import OWN, of_others
from benchmarks.cures.forms import Form, form_of, programs
from benchmarks.detection.bare import start
from benchmarks.detection.program import PROGRAMS
from benchmarks.external.execute import Places
from gradwatch.prescription import treatments
from gradwatch.prescription.fitting import everything
from gradwatch.prescription.trial import TrialRun


def first_loss(form):
    inputs, targets = form.batches[0]
    model = form.make_model()
    output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return form.loss_fn(output, targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep_sigmoid", "attention_at_a_thousandth", "functional_sigmoid_far_below"])
def test_a_form_trains_what_the_program_trains(name):
    form = form_of(PROGRAMS[name], 3)
    assert isinstance(form, Form)
    torch.manual_seed(0)
    loss = first_loss(form)
    assert loss.ndim == 0
    assert loss.requires_grad
    ours = form.make_optimizer(form.make_model().parameters())
    theirs = start(PROGRAMS[name], 3).optimizers[0]
    assert (type(ours), ours.defaults) == (type(theirs), theirs.defaults)


def test_drawn_beforehand_or_inside_the_model():
    assert form_of(PROGRAMS["deep_sigmoid"], 0).batches[0][0].shape == (64, 64)
    inside = form_of(PROGRAMS["functional_sigmoid_far_below"], 0)
    assert inside.batches[7] == (7, 0)
    assert isinstance(inside.make_model(), forms.Inside)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rate_jumps_late", "the loop itself is at fault"),
        ("policy_that_never_explores", "a loop of its own"),
        ("line_without_zero_grad", "the loop itself is at fault"),
        ("ascends", "no lower end"),
        ("root_of_zero", "counts its own calls"),
        ("decay_leaves_the_biases", "several parameter groups"),
    ],
)
def test_what_is_left_out_has_a_reason(name, reason):
    assert reason in form_of(PROGRAMS[name], 0)
    assert reason in search.searched(PROGRAMS[name])["excluded"]


def test_the_programs_are_the_sick_ones_in_an_order_of_their_own():
    names = [program.name for program in programs()]
    assert len(names) == len(set(names)) > 100
    assert names != sorted(names)
    assert set(forms.EXCLUDED) < set(names)


def test_what_is_committed_fits_the_programs_of_today():
    searched, measured = OWN.read_searched(), OWN.read_measured()
    assert {each["program"] for each in searched} <= set(PROGRAMS)
    assert {each["program"] for each in measured} <= {program.name for program in OWN.curable("all")}
    assert all(PROGRAMS[each["program"]].is_measured == each["is_measured"] for each in searched + measured)
    assert table.tables().count("| measured | `") == len([each for each in measured if each["is_measured"]])
    assert table.tables().count("| other | `") == len([each for each in measured if not each["is_measured"]])


def test_what_is_committed_of_programs_of_others_fits_those_that_count():
    nowhere = Places(Path("nowhere"), Path("nowhere"), Path("nowhere"))
    others = of_others(nowhere)
    searched, measured = others.read_searched(), others.read_measured()
    assert {each["program"] for each in searched} <= {program.name for program in others.programs()}
    assert {each["program"] for each in measured} <= {program.name for program in others.curable("all")}
    assert table.tables().count("| external | `") == len(measured)


def test_a_cure_is_found_and_told_apart_from_none():
    program = PROGRAMS["line_through_eight_points"]
    form = form_of(program, 5)
    found = search.untreated(form, 5)
    kind = search.sickness(found)
    order = search.ordered(kind, found.findings)
    lower = next(each for each in order if each[0].strength == "-0.1" and len(each) == 1)
    assert search.cures(program, lower, 5, kind, form)
    higher = next(each for each in order if each[0].strength == "-100" and len(each) == 1)
    assert not search.cures(program, higher, 5, kind, form)


def test_the_search_tries_everything_once_what_the_findings_advise_first():
    form = form_of(PROGRAMS["line_through_eight_points"], 5)
    found = search.untreated(form, 5)
    order = search.ordered(search.sickness(found), found.findings)
    assert len(order) == len(set(order))
    assert set(order) == set(everything())
    advised = [advice.name for each in found.findings if each.kind == "nonfinite" for advice in each.remedies]
    assert order[0][0].remedy == advised[0]


def result(program, cured, random=0.5, seconds=10.0):
    draws = [None if each is None else random for each in cured]
    row = {"program": program, "kind": "dead", "is_measured": True, "first": "he", "seconds": seconds}
    return {**row, "cured": cured, "random": draws, "always": cured}


def test_seeds_on_which_nothing_was_sick_are_in_no_share():
    half = [result("a", [1.0, None, 1.0]), result("b", [1.0, 0.0, 1.0]), result("c", [None] * 3, seconds=30.0)]
    searched = [{"program": name, "cure": "he", "is_measured": True} for name in "abcd"]
    text = table._summary("measured", searched, half)
    assert "3 of the 4 programs" in text
    assert "the longest took 30 s" in text
    assert "On 4 of the 9 fresh seeds" in text
    assert "(programs sick on none of theirs: 1)" in text
    assert "(1/2) | 80% |" in text
    assert "(0/2) | 0% |" in text
    assert "| a remedy drawn at random | – | 50% |" in text
    rows = table._programs(half).splitlines()[2:]
    assert rows[0] == "| measured | `a` | dead | he | 2 of 2 | 50% | 2 of 2 | 10 |"
    assert rows[2] == "| measured | `c` | dead | he | not judged | not judged | not judged | 30 |"


def test_nothing_is_judged_on_a_seed_on_which_nothing_is_sick(monkeypatch):
    monkeypatch.setattr(search, "untreated", lambda form, seed: TrialRun(seed, 300, 1.0, 0.1, (), 1e-3, True))
    shares = measure.fresh(PROGRAMS["line_through_eight_points"], 5, None, everything()[0])
    assert shares == {"first": None, "always": None, "random": None}


def test_what_was_ranked_is_found_again_by_name_and_code():
    for candidate in everything():
        trial = SimpleNamespace(remedy=treatments.name_of(candidate), code=treatments.code_of(candidate))
        assert measure.candidate_of(trial) == candidate
