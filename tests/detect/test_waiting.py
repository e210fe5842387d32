"""Steps at which nothing can open or end are observed later: nobody must be able to tell."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch.detect.detector import Detector
from gradwatch.detect.detectors import Detectors
from gradwatch.findings import Thresholds
from gradwatch.watcher.report_processor import LONGEST_WAIT
from tests.reports import diagnosis, report, table

STEPS = 160
THRESHOLDS = {
    "default": Thresholds(),
    "impatient": Thresholds(patience=1),
    "patient": Thresholds(patience=30),
    "literal": Thresholds(vanishing_norm=1e-3, exploding_growth=20.0, unstable_jump=0.3),
}


def a_run(seed):
    """Norms that wander, leap, fade and overflow, and a loss that jumps; most seeds make some detector speak."""
    random = np.random.default_rng(seed)
    wobble, drift = random.choice([0.02, 0.2, 0.6]), random.normal(0, 0.02)
    level = np.cumsum(random.normal(drift, wobble * 0.1, (STEPS, 4)), axis=0) + random.normal(0, wobble, (STEPS, 1))
    for _ in range(random.integers(0, 5)):
        begin, length = random.integers(25, STEPS), random.choice([1, 2, 3, 12, 40])
        columns = slice(None) if random.random() < 0.5 else random.integers(0, 4)
        level[begin : begin + length, columns] += random.choice([-9, -5, 0.4, 1.5, 4, 9])
    jumps = (random.random(STEPS) < random.choice([0, 0.06, 0.25])) * 3
    loss = np.abs(1 + np.cumsum(random.normal(0, 0.02, STEPS))) + jumps
    sick = random.random(STEPS) < random.choice([0, 0, 0.02])
    has_loss = random.random() < 0.7
    return [
        report(
            10.0 ** level[step],
            step,
            float(loss[step]) if has_loss else None,
            sampled=step % 10 == 0,
            nonfinite=[0, int(sick[step]), 0, 0],
            **({"grad_norm_total": math.nan} if sick[step] else {}),
        )
        for step in range(STEPS)
    ]


def told(run, thresholds, *, waits):
    """(step at which it was told, event) of every event, and how many steps had to wait."""
    watching, waiting, events, waited = diagnosis(table(4), thresholds), [], [], 0
    for now in run:
        waiting.append(now)
        may_wait = waits and not now.sampled and len(waiting) <= LONGEST_WAIT
        if may_wait and watching.may_wait(len(waiting), now.grad_norm_total, now.loss):
            waited += 1
            continue
        events += [(now.step, event) for past in waiting for event in watching.observe(past)]
        waiting.clear()
    return events, waited


@pytest.mark.slow
@pytest.mark.parametrize("thresholds", THRESHOLDS.values(), ids=THRESHOLDS)
@pytest.mark.parametrize("seed", range(60))
def test_waiting_changes_no_event_and_delays_none(seed, thresholds):
    run = a_run(seed)
    assert told(run, thresholds, waits=True)[0] == told(run, thresholds, waits=False)[0]


step_norms = st.tuples(*[st.floats(-3, 3)] * 4)
losses = st.one_of(st.none(), st.floats(-2.0, 10.0))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(step_norms, losses), min_size=1, max_size=25),
    st.floats(0, 0.3),
    st.integers(0, 2**31),
    st.sampled_from(list(THRESHOLDS)),
)
def test_waiting_changes_no_event_after_any_steps(surprises, wobble, seed, name):
    """Forty steps that wobble settle the levels; then come any norms and losses, among quieter and quieter ones."""
    random = np.random.default_rng(seed)
    calm = [(random.normal(0, wobble, 4), 1.0 + random.normal(0, wobble)) for _ in range(40)]
    fading = [(random.normal(0, wobble / (1 + step), 4) - wobble, 1.0) for step in range(8)]
    steps = [*calm, *surprises, *fading, *surprises]
    run = [report(10.0 ** np.array(log), step, loss, sampled=step % 10 == 0) for step, (log, loss) in enumerate(steps)]
    assert told(run, THRESHOLDS[name], waits=True)[0] == told(run, THRESHOLDS[name], waits=False)[0]


def test_waiting_is_a_promise_that_each_detector_makes_and_proves_itself():
    assert Detector.may_wait(object(), 1, 1.0, 1.0) is False
    asked = [tracker for rules, _ in Detectors(table(2), Thresholds())._rules for tracker in rules._every_step]
    assert len(asked) > 5
    for tracker in asked:
        assert "Bound: " in type(tracker.detector).may_wait.__doc__, tracker.name


def test_the_runs_make_every_kind_speak_and_most_steps_wait():
    said, waited = set(), 0
    for seed in range(60):
        events, steps = told(a_run(seed), Thresholds(), waits=True)
        said |= {event.finding.kind for _, event in events}
        waited += steps
    assert said >= {"nonfinite", "exploding", "vanishing", "unstable"}
    assert waited > 0.3 * 60 * STEPS


def test_a_healthy_run_waits_but_for_its_first_steps_and_its_samples():
    run = [report([1.0, 2.0, 3.0], step, 1.0 - step / 1000, sampled=step % 10 == 0) for step in range(STEPS)]
    watching, waited = diagnosis(table(3)), 0
    for now in run:
        waited += not now.sampled and watching.may_wait(now.step % 10, now.grad_norm_total, now.loss)
        watching.observe(now)
    assert waited == 0.9 * (STEPS - 30)


def test_a_sick_run_waits_too_while_its_finding_is_open():
    """Nothing can open or end before ten healthy steps, so a run that stays sick costs what a healthy one does."""
    run = [report([1e-9, 2.0, 3.0], step, 1.0 - step / 1000, sampled=step % 10 == 0) for step in range(STEPS)]
    watching, waited = diagnosis(table(3)), 0
    for now in run:
        waited += not now.sampled and watching.may_wait(now.step % 10, now.grad_norm_total, now.loss)
        watching.observe(now)
    assert [finding.kind for finding in watching.open_findings()] == ["vanishing"]
    assert waited == 0.9 * (STEPS - 30)
