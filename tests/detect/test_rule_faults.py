"""Each rule fails alone: the others find what they find without the fault, and what it has missed is counted."""

import logging

import pytest

from gradwatch.detect.detectors import Detectors
from gradwatch.findings import Thresholds, UnjudgedSteps
from gradwatch.hooks.guard import REST_AFTER
from tests.detect.test_waiting import STEPS, a_run
from tests.reports import diagnosis, run_of, table

RULES = {each.name: each.detector.kind for each in Detectors(table(2), Thresholds())._trackers}
SEEDS = (2, 9, 16)
LITERAL = Thresholds(patience=1, vanishing_norm=1e-3, exploding_growth=20.0)
TOLD_TOGETHER = ({"dead", "vanishing"},)
"""Kinds of which one tells of the other's sickness: a layer that is shut makes gradients vanish."""


def broken(*_):
    raise ArithmeticError("made to happen")


def kinds_beside(kind):
    """Return the kinds whose rules do not hear of ``kind``."""
    together = next((kinds for kinds in TOLD_TOGETHER if kind in kinds), {kind})
    return set(RULES.values()) - together


def watching(*rules, verb="examine"):
    """Return a diagnosis of which each of ``rules`` fails."""
    made = diagnosis(table(4), Thresholds(patience=1))
    for name in rules:
        setattr(made._detectors._by_name[name].detector, verb, broken)
    return made


def told(watching, run, kinds):
    """Return where each finding of ``kinds`` opens and ends; causes may speak of other findings."""
    events = [event for report in run for event in watching.observe(report)]
    return [
        (event.ended, event.finding.identity, event.finding.raised_step, event.finding.last_step, event.finding.layers)
        for event in events
        if event.finding.kind in kinds
    ]


def test_the_runs_have_findings_to_lose():
    found = {identity[0] for seed in SEEDS for _, identity, *_ in told(watching(), a_run(seed), RULES.values())}
    assert found >= {"nonfinite", "exploding", "vanishing", "unstable"}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_fails_for_good_leaves_the_findings_of_all_others_as_they_are(name, caplog):
    for seed in SEEDS:
        run, kinds = a_run(seed), kinds_beside(RULES[name])
        faulty = watching(name)
        assert told(faulty, run, kinds) == told(watching(), run, kinds)
        assert faulty.unjudged() == (UnjudgedSteps(RULES[name], name, STEPS),)
    said = [message for message in caplog.messages if f"the rule {name}, which looks for {RULES[name]}" in message]
    assert len(said) == 2 * len(SEEDS)  # that it fails, and that it rests
    assert f"came {REST_AFTER} times in a row" in said[1]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_cannot_explain_what_it_finds_leaves_the_others_as_they_are(name):
    for seed in SEEDS:
        run, kinds = a_run(seed), kinds_beside(RULES[name])
        assert told(watching(name, verb="explain"), run, kinds) == told(watching(), run, kinds)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_fails_once_is_asked_at_every_step_after_it(name):
    for seed in SEEDS:
        run, kinds = a_run(seed), kinds_beside(RULES[name])
        faulty, whole = watching(name), watching()
        detector, asked = faulty._detectors._by_name[name].detector, []
        assert told(faulty, run[:1], RULES.values()) == told(whole, run[:1], RULES.values()) == []

        def examine(report, detector=detector, asked=asked):
            asked.append(report.step)
            return type(detector).examine(detector, report)

        detector.examine = examine
        assert told(faulty, run[1:], kinds) == told(whole, run[1:], kinds)
        assert asked == list(range(1, STEPS))
        assert faulty.unjudged() == (UnjudgedSteps(RULES[name], name, 1),)


@pytest.mark.parametrize("verb", ["examine", "explain"])
@pytest.mark.parametrize(("name", "sick"), [("Exploding", [1e6, 1e6]), ("Vanishing", [1e-12, 1e-12])])
def test_what_a_rule_missed_at_one_step_it_finds_at_the_next(name, sick, verb):
    run = run_of([[1.0, 1.0]] * 40 + [sick] * 20)
    faulty, faults = diagnosis(table(2), LITERAL), []
    detector = faulty._detectors._by_name[name].detector

    def fails_once(*arguments):
        if arguments[0].step >= 40 and not faults:
            faults.append(arguments[0].step)
            broken()
        return getattr(type(detector), verb)(detector, *arguments)

    setattr(detector, verb, fails_once)
    found = [event for each in run for event in faulty.observe(each) if event.finding.kind == RULES[name]]
    assert [event.finding.raised_step for event in found] == [faults[0] + 1]


def test_all_rules_may_fail_at_one_line_with_one_traceback(caplog):
    faulty = watching(*RULES)
    with caplog.at_level(logging.WARNING):
        assert told(faulty, a_run(0), RULES.values()) == []
    assert {each.rule for each in faulty.unjudged()} == set(RULES)
    assert sum(bool(record.exc_info) for record in caplog.records) == 1


def test_a_finding_that_a_faulty_rule_has_open_stays_open_and_known():
    run = a_run(SEEDS[1])
    whole = watching()
    at, opened = 0, []
    while not opened:
        whole.observe(run[at])
        opened = [each for each in whole.open_findings() if each.kind == "exploding"]
        at += 1
    for rule in [name for name, kind in RULES.items() if kind == "exploding"]:
        whole._detectors._by_name[rule].detector.examine = broken
    assert told(whole, run[at:], {"exploding"}) == []
    assert [each.identity for each in whole.open_findings() if each.kind == "exploding"] == [opened[0].identity]
