import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch.detect import CLEAR_STEPS
from gradwatch.detect.detector import DetectorResult
from gradwatch.detect.incident import IncidentTracker
from gradwatch.detect.vanishing import Vanishing
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from gradwatch.watcher import checkpoint
from tests.reports import NAN, diagnosis, events, findings, kinds, random_walks, report, run_of, table

# a literal threshold makes every layer's sickness plain: below 1 it is sick, from 1 on healthy
LITERAL = Thresholds(vanishing_norm=1.0, patience=2)
SICK, HEALTHY = 0.5, 1.0


def told(columns, thresholds=LITERAL):
    """(step, ended, layers, first, last) of each event; ``columns``: a string a layer, a character a step.

    ``x`` is sick, ``.`` healthy, ``-`` without a gradient.
    """
    norm = {"x": SICK, ".": HEALTHY, "-": NAN}
    rows = [[norm[character] for character in step] for step in zip(*columns, strict=True)]
    return [
        (event.finding.raised_step, event.ended, event.finding.layers, event.finding.step, event.finding.last_step)
        for event in events(run_of(rows), thresholds)
    ]


CLEAR = "." * CLEAR_STEPS


def test_one_sickness_is_opened_once_and_ended_once():
    assert told(["..xxxxx" + CLEAR + "..."]) == [(3, False, ("w0",), 2, 3), (3, True, ("w0",), 2, 6)]


def test_the_end_comes_with_the_last_of_the_healthy_steps():
    assert len(told(["xx" + CLEAR])) == 2
    assert len(told(["xx" + CLEAR[1:]])) == 1


def test_sickness_shorter_than_patience_is_none():
    assert told([".x.x.x.x" + CLEAR]) == []


def test_a_sickness_that_flickers_stays_one_finding():
    assert told(["xx" + (CLEAR[1:] + "x") * 5]) == [(1, False, ("w0",), 0, 1)]


def test_a_second_sickness_is_a_new_finding():
    first, second = (0, 1), (CLEAR_STEPS + 3, CLEAR_STEPS + 4)
    assert told(["xx" + CLEAR + ".xx" + CLEAR]) == [
        (first[1], False, ("w0",), *first),
        (first[1], True, ("w0",), *first),
        (second[1], False, ("w0",), *second),
        (second[1], True, ("w0",), *second),
    ]


def test_layers_that_turn_sick_later_join():
    opening, ending = told(["xxxxxx" + CLEAR, "...xxx" + CLEAR, "..x..." + CLEAR, "......" + CLEAR])
    assert opening == (1, False, ("w0",), 0, 1)
    assert ending == (1, True, ("w0", "w1"), 0, 5)


def test_a_layer_without_a_gradient_is_neither_sick_nor_healthy():
    assert told(["x--x", "...."]) == [(3, False, ("w0",), 0, 3)]
    assert told(["x-.x", "...."]) == []


def test_a_layer_that_had_no_gradients_since_its_finding_ended_begins_a_new_one():
    """Else both would have the same identity."""
    absent = "-" * CLEAR_STEPS
    steps = [step for _, ended, _, step, _ in told(["xx" + absent + "xx", ".." + CLEAR + ".."]) if not ended]
    assert steps == [0, CLEAR_STEPS + 2]


def slow_spells(steps, patience=2):
    """(first, last, whether it has ended) of each finding about one layer, from a string of sick and healthy steps."""
    found, streak, healthy, is_open = [], 0, 0, False
    for step, character in enumerate(steps):
        is_sick = character == "x"
        streak = streak + 1 if is_sick else 0
        if not is_open:
            if streak >= patience:
                found.append([step - patience + 1, step, False])
                healthy, is_open = 0, True
            continue
        if is_sick and (streak >= patience or healthy < CLEAR_STEPS):
            found[-1][1], healthy = step, 0
            continue
        healthy += not is_sick
        about = found[-1][1] - (found[-3] if len(found) >= 3 else found[-1])[0]
        if healthy >= CLEAR_STEPS and step - found[-1][1] >= about:
            found[-1][2], is_open, streak = True, False, 0
    return [tuple(each) for each in found]


def spells(steps):
    """The same as ``IncidentTracker`` has it."""
    states = {}
    watching = diagnosis(table(1), LITERAL)
    for step in run_of([[SICK if character == "x" else HEALTHY] for character in steps]):
        for event in watching.observe(step):
            finding = event.finding
            states[finding.step] = (finding.step, finding.last_step, event.ended)
            assert finding.step <= finding.raised_step <= finding.last_step
    for finding in watching.open_findings():
        states[finding.step] = (finding.step, finding.last_step, False)
    return sorted(states.values())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 15), st.integers(1, 60)), min_size=1, max_size=12))
def test_spells_agree_with_the_slow_loop(lengths):
    steps = "".join("x" * sick + "." * healthy for sick, healthy in lengths)
    assert spells(steps) == slow_spells(steps)


def test_what_returns_within_the_time_that_it_has_lasted_is_the_same_finding():
    assert spells("x" * 40 + "." * 30 + "x" * 5 + "." * 20) == [(0, 74, False)]
    assert spells("x" * 40 + "." * 41 + "x" * 5) == [(0, 39, True), (81, 85, False)]


@pytest.mark.parametrize("pause", [11, 50, 200])
def test_what_comes_and_goes_for_ever_has_three_findings(pause):
    steps = ("xx" + "." * pause) * 20
    found = spells(steps)
    assert len(found) == 3
    assert found[-1] == (2 * (pause + 2), 19 * (pause + 2) + 1, False)


def test_pauses_that_grow_make_new_findings_and_few_of_them():
    steps = "".join("xx" + "." * 3**power for power in range(3, 8))
    assert len(spells(steps)) == 5


def test_an_error_is_an_event_of_its_own_however_often_it_returns():
    run = run_of([[1.0]] * 400)
    for step in range(0, 400, 20):
        run[step] = report([1.0], step, nonfinite=[1])
    assert [finding.step for finding in findings(run)] == list(range(0, 400, 20))


def test_other_layers_after_a_pause_have_a_finding_of_their_own():
    pause = "." * CLEAR_STEPS
    told_of = told(["x" * 50 + pause + "..", "." * 50 + pause + "xx"])
    assert [(ended, layers, first, last) for _, ended, layers, first, last in told_of] == [
        (False, ("w0",), 0, 1),
        (True, ("w0",), 0, 49),
        (False, ("w1",), 60, 61),
    ]
    joined = told(["x" * 50 + pause + "xx", "." * 50 + pause + "xx"])
    assert [(ended, layers) for _, ended, layers, *_ in joined] == [(False, ("w0",))]


def test_the_worst_layer_gives_its_name():
    (finding,) = findings(run_of([[0.5, 0.1, 0.3]] * 2), LITERAL)
    assert (finding.layer, finding.layers) == ("w1", ("w0", "w1", "w2"))


@pytest.mark.parametrize(
    ("bias", "weight", "raised"),
    [
        ("xxxxxx", ".xxxxx", [("w", 2)]),  # a step after the bias
        ("xxxxxx", "......", [("b", 1)]),  # never
        ("xxxxxx", "x.x.x.", [("b", 1)]),  # it is healthy at the step at which the bias is due
        ("xxxxxx", ".x.x.x", [("b", 2)]),  # the same, a step later
    ],
)
def test_a_bias_waits_for_a_weight_that_is_sick_to_give_its_name(bias, weight, raised):
    layers = of_tensors({"b": torch.zeros(2), "w": torch.zeros(2, 2)})
    norm = {"x": SICK, ".": HEALTHY}
    rows = [[norm[each] for each in step] for step in zip(bias, weight, strict=True)]
    found = findings(run_of(rows), LITERAL, layers)
    assert [(finding.layer, finding.raised_step) for finding in found] == raised


def test_a_bias_waits_no_longer_for_a_weight_that_keeps_mending_than_the_patience_again():
    layers = of_tensors({"b": torch.zeros(2), "w": torch.zeros(2, 2)})
    tracker = IncidentTracker(Vanishing(layers, LITERAL), layers)
    both, norm = np.ones(2, dtype=bool), np.full(2, SICK)
    result = DetectorResult(both, norm, norm, norm, mending=layers.is_weight)
    opened = [tracker.advance(report([SICK, SICK], step), result) for step in range(6)]
    assert [len(each) for each in opened] == [0, 0, 0, 1, 0, 0]
    assert opened[3][0].incident.layer == "b"


def test_the_finding_shows_three_remedies_and_carries_all():
    (finding,) = findings(run_of([[0.5]] * 2), LITERAL)
    assert len(finding.remedies) > 3
    shown = "\n".join(f"  - {advice.text} ({advice.name})" for advice in finding.remedies[:3])
    assert f"What to do:\n{shown}\n" in str(finding)
    assert all(advice.name in str(finding) for advice in finding.remedies)


@pytest.mark.parametrize("warmup", [0, 5, 8])
def test_nothing_but_nonfinite_is_raised_during_warm_up(warmup):
    rows, thresholds = [[SICK]] * 8, Thresholds(vanishing_norm=1.0, patience=2, warmup_steps=warmup)
    assert [finding.step for finding in findings(run_of(rows), thresholds)] == [warmup] * (warmup < 8)
    assert kinds([*run_of(rows), report([SICK], 8, nonfinite=[1])], thresholds)[-1] == "nonfinite"


def test_what_warm_up_saw_is_part_of_the_level():
    rows = [[1.0], [1.0], [1.0], [100.0]]
    assert kinds(run_of(rows), Thresholds(exploding_growth=50, warmup_steps=3)) == ["exploding"]
    assert kinds(run_of(rows), Thresholds(exploding_growth=50, warmup_steps=4)) == []


def test_a_loss_that_suffers_twice_under_one_growth_makes_two_findings_that_do_not_overlap():
    calm, grown = [[1.0, 1.0]] * 20, [[1e4, 1e4]] * 40
    losses = [1.0] * 20 + [5.0] * 5 + [1.0] * 15 + [50.0] * 5 + [1.0] * 15
    opened, ended, opened_again, ended_again = (event.finding for event in events(run_of(calm + grown, losses)))
    assert (opened.step, ended.last_step) == (20, 24)
    assert ended.last_step < opened_again.step <= 40
    assert ended_again.last_step == 44


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.text("xx..-", min_size=60, max_size=60), min_size=1, max_size=3), st.integers(1, 4))
def test_findings_of_a_kind_never_overlap_and_each_ends_at_most_once(columns, patience):
    done = -1
    opened = None
    for raised, ended, _, first, last in told(columns, Thresholds(vanishing_norm=1.0, patience=patience)):
        if ended:
            assert opened == (raised, first)
            opened, done = None, last
        else:
            assert opened is None
            assert done < first <= raised
            opened = (raised, first)


def eventful_run():
    """Fades, explodes, turns NaN, recovers and fades again, with a layer that comes and goes."""
    rows, losses = random_walks(seed=4, steps=40, count=3)
    rows += [[1e-9, 1e-9, 1.0]] * 20 + [[1.0, 1.0, 1.0]] * 30 + [[1e4, 1e4, NAN], [1e6, 1e6, 1e6]]
    losses += [1.0, 7.0] * 10 + [1.0] * 30 + [1e4, 1e6]
    reports = run_of(rows, losses)
    reports += [report([1.0] * 3, len(rows) + step, NAN, nonfinite=[0, step, 1]) for step in range(3)]
    start = len(reports)
    return reports + [report([1e-9, NAN, 1.0], start + step, 1.0) for step in range(30)]


RUN = eventful_run()
uncut = functools.cache(lambda: events(RUN))


def test_the_eventful_run_is_eventful():
    assert {"exploding", "vanishing", "nonfinite", "unstable"} <= set(kinds(RUN))


@pytest.mark.parametrize("cut", range(0, len(RUN) + 1, 3))
def test_a_run_that_is_saved_and_resumed_tells_the_same(cut):
    assert events(RUN, cut=cut) == uncut()


def test_open_findings_survive_a_checkpoint_as_they_stand():
    watching, resumed = diagnosis(table(1), LITERAL), diagnosis(table(1), LITERAL)
    for step in run_of([[SICK]] * 5):
        watching.observe(step)
    resumed.restore(checkpoint.unpack(checkpoint.pack(watching.state())))
    assert resumed.open_findings() == watching.open_findings()
    assert [finding.last_step for finding in resumed.open_findings()] == [4]
