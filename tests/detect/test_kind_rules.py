"""Several rules raise one kind: one sickness makes one finding."""

import numpy as np
import pytest
import torch

from gradwatch.detect.detector import Detector, DetectorResult, Evidence
from gradwatch.detect.incident import CLEAR_STEPS, IncidentTracker
from gradwatch.detect.kind_rules import KindRules
from tests.detect.training import perceptron, regression, told, train
from tests.reports import report, table


class Scripted(Detector[None]):
    """Says at each step what it was told to: sick columns, or None."""

    kind = "exploding"

    def __init__(self, script, patience=1):
        self.patience = patience
        self._script = iter(script)

    def examine(self, report):
        sick = next(self._script)
        if sick is None:
            return None
        column = np.isin(np.arange(2), list(sick))
        return DetectorResult(column, column.astype(float), column.astype(float), np.ones(2))

    def explain(self, report, column, covered):
        return Evidence(f"It is {type(self).__name__}.", ())


class Other(Scripted):
    """A second rule of the same kind."""


def events(first, second, steps, patience=1):
    """[(step, name of the rule, ended)] of two rules that follow a script."""
    trackers = [IncidentTracker(first, table(2)), IncidentTracker(second, table(2))]
    rules, seen = KindRules(trackers), []
    for step in range(steps):
        for event in rules.observe(report([1.0, 1.0], step), counts=True):
            seen.append((step, event.detector, event.ended, event.incident))
    return seen, trackers


def test_the_rule_that_sees_it_first_keeps_the_incident_and_the_others_join():
    first, second = Scripted([[], [], [1], [], []]), Other([[], [0], [0], [], []])
    seen, trackers = events(first, second, 5)
    assert [(step, name, ended) for step, name, ended, _ in seen] == [(1, "Other", False)]
    assert trackers[0].incident is None
    assert trackers[1].incident.layers == ("w0", "w1")
    assert trackers[1].incident.last_step == 2


def test_a_rule_in_front_speaks_first():
    assert events(Scripted([[0]]), Other([[1]]), 1)[0][0][1] == "Scripted"


def test_a_sick_step_of_another_rule_keeps_the_incident_open():
    quiet = [[]] * (CLEAR_STEPS - 1)
    first, second = Scripted([[0], *quiet, [], *quiet, []]), Other([[], *quiet, [1], *quiet, []])
    seen, _ = events(first, second, 2 * CLEAR_STEPS + 1)
    ends = [(step, incident.last_step) for step, _, ended, incident in seen if ended]
    assert ends == [(2 * CLEAR_STEPS, CLEAR_STEPS)]


def test_a_step_that_the_keeper_cannot_judge_ends_nothing_though_another_calls_it_healthy():
    steps = 3 * CLEAR_STEPS
    first, second = Scripted([[]] * steps), Other([[0], *[None] * (steps - 1)])
    assert [ended for _, _, ended, _ in events(first, second, steps)[0]] == [False]


def test_streaks_of_others_begin_anew_once_the_incident_is_over():
    steps = CLEAR_STEPS + 3
    first = Scripted([[0]] + [[]] * (steps - 1))
    second = Other([[1], *[[]] * CLEAR_STEPS, [1], [1]], patience=2)
    seen, _ = events(first, second, steps)
    assert [(step, name, ended) for step, name, ended, _ in seen] == [
        (0, "Scripted", False),
        (CLEAR_STEPS, "Scripted", True),
        (CLEAR_STEPS + 2, "Other", False),
    ]


def test_what_does_not_count_is_learned_from_but_raises_nothing():
    rules = KindRules([IncidentTracker(Scripted([[0], [0]]), table(2))])
    assert rules.observe(report([1.0, 1.0], 0), counts=False) == []
    (event,) = rules.observe(report([1.0, 1.0], 1), counts=True)
    assert event.incident.step == 1


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_a_run_that_diverges_has_one_finding_of_its_kind(rate):
    torch.manual_seed(0)
    model = perceptron(32, 64, 64, 1)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    findings = train(model, optimizer, regression(model, targets_scale=1e4), 10)
    assert len(told(findings, "exploding")) == 1
