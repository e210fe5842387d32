"""Branches that gradients lead past, on their way to the layers before them."""

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch.detect.bypassed import ALIVE, BYPASSED, Bypassed
from gradwatch.detect.faint_branch import PATIENCE
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.detect.test_branch_vanishing import HEALTHY, Attention, Gated, SigmoidGated, gated_stack
from tests.detect.training import classification, sequences, told, train
from tests.reports import NAN, examine_all, report, sick_columns

SGD, Adam = torch.optim.SGD, torch.optim.Adam


def path(*names, beside=()):
    """A table of weights in series, but for the pairs of columns in ``beside``."""
    layers = of_tensors({name: torch.zeros(2, 2) for name in names})
    after = np.triu(np.ones((len(names), len(names)), dtype=bool), 1)
    for one, other in beside:
        after[one, other] = False
    layers.connect(after, np.ones(len(names), dtype=bool))
    return layers


def slow_bypassed(reports):
    """The rule in plain numbers, for weights in series without twins: the faint columns of each step."""
    verdicts = []
    for step in reports:
        norms = [0.0 if norm != norm else norm for norm in step.grad_norm.tolist()]
        sick = set()
        for column in range(1, len(norms) - 1):
            reference = min(max(norms[:column]), max(norms[column + 1 :]))
            if 0 < norms[column] <= BYPASSED * reference:
                sick.add(column)
        verdicts.append(sick)
    return verdicts


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_is_its_slow_twin(seed):
    random = np.random.default_rng(seed)
    level = random.choice([0.0, -3.0, -6.0, -9.0], 5)
    reports = []
    for step in range(30):
        norms = 10.0 ** (level + random.normal(0, 0.5, 5))
        norms[random.random(5) < 0.1] = NAN
        norms[random.random(5) < 0.1] = 0.0
        reports.append(report(norms, step, 1.0, sampled=True))
    found = examine_all(Bypassed(path("a", "b", "c", "d", "e"), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_bypassed(reports)


def with_stem(*blocks):
    return nn.Sequential(nn.Linear(32, 32), *blocks, nn.Linear(32, 10))


def all_scales_fixed_at_nothing():
    model = with_stem(*(Gated(1e-8) for _ in range(3)))
    for block in model[1:-1]:
        block.scale.requires_grad_(False)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def all_gates_shut():
    model = with_stem(*(SigmoidGated(-18.0) for _ in range(3)))
    return model, SGD(model.parameters(), 0.1), classification(model)


def only_branch_scaled_away():
    model = with_stem(Gated(1e-7))
    model[1].scale.requires_grad_(False)
    return model, SGD(model.parameters(), 0.1), classification(model)


class ScaledAttention(Attention):
    """A block whose branch is multiplied by a millionth, which is no parameter."""

    def forward(self, inputs):
        return inputs + 1e-6 * (super().forward(inputs) - inputs)


def attention_scaled_by_a_millionth():
    model = with_stem(ScaledAttention(1.0), nn.Linear(32, 32), ScaledAttention(1.0), nn.Flatten(), nn.Linear(256, 32))
    return model, Adam(model.parameters(), 1e-3), sequences_of(model)


def sequences_of(model):
    class Last(nn.Module):
        def forward(self, inputs):
            return model(inputs)

    return sequences(Last(), 8)


class Mixed(nn.Module):
    """A shortcut beside a branch whose last layer is multiplied by a constant that was forgotten."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 10),
        )

    def forward(self, inputs):
        hidden = torch.relu(self.stem(inputs.unflatten(1, (1, 4, 8))))
        return self.head((hidden + 1e-7 * torch.relu(self.branch(hidden))).mean((2, 3)))


def convolution_beside_a_shortcut():
    model = Mixed()
    return model, SGD(model.parameters(), 0.1), classification(model)


SICK = {
    make.__name__: make
    for make in (
        all_scales_fixed_at_nothing,
        all_gates_shut,
        only_branch_scaled_away,
        attention_scaled_by_a_millionth,
        convolution_beside_a_shortcut,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("make", SICK.values(), ids=SICK)
def test_a_branch_that_is_bypassed_is_found(make):
    torch.manual_seed(0)
    vanishing = told(train(*make(), 61), "vanishing")
    assert len(vanishing) == 1
    assert "Gradients pass this branch on another path" in vanishing[0].cause
    assert vanishing[0].layer not in ("0.weight", "stem.weight", "head.weight")


class SoftExperts(nn.Module):
    """Experts weighed by a softmax, of which the last gets next to nothing."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(32, 32), nn.Linear(32, 10)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.register_buffer("weights", torch.tensor([0.5, 0.3, 0.2, 1e-8]))

    def forward(self, inputs):
        hidden = torch.tanh(self.stem(inputs))
        mixed = sum(weight * expert(hidden) for weight, expert in zip(self.weights, self.experts, strict=True))
        return self.head(hidden + mixed)


def expert_of_no_weight():
    model = SoftExperts()
    return model, SGD(model.parameters(), 0.1), classification(model)


@pytest.mark.slow
@pytest.mark.parametrize("make", [*HEALTHY.values(), expert_of_no_weight], ids=[*HEALTHY, "expert_of_no_weight"])
def test_branches_that_are_faint_for_a_reason_are_left_alone(make):
    torch.manual_seed(0)
    findings = told(train(*make(), 61), "vanishing")
    assert [finding.cause for finding in findings if "another path" in finding.cause] == []


def test_scales_of_a_millionth_that_learn_wake_up():
    torch.manual_seed(0)
    model = gated_stack(1e-7, 1e-7)
    assert told(train(model, SGD(model.parameters(), 0.1), classification(model), 61), "vanishing") == []


def test_what_was_measured_is_said_with_its_figures():
    detector = Bypassed(path("stem", "branch", "head"), Thresholds())
    now = report([1.0, 2e-7, 3.0], 5, 1.0, sampled=True)
    result = detector.examine(now)
    assert sick_columns(result) == {1}
    assert result.threshold[1] == pytest.approx(1e-5)
    evidence = detector.explain(now, 1, [1])
    assert "The gradient norm of branch is 2e-07 at step 5: per entry 5e+06 times less" in evidence.measured
    assert evidence.clues == ("one branch",)


@pytest.mark.parametrize(
    ("norms", "why"),
    [
        ([1e-9, 1.0, 1.0, 1.0], "nothing lies before it"),
        ([1.0, 1.0, 1.0, 1e-9], "nothing lies after it"),
        ([1e-9, 1e-9, 1.0, 1.0], "all that lies before it is faint, too: faded along depth"),
        ([1.0, 0.0, 1.0, 1.0], "left out"),
        ([1.0, 1e-9, ALIVE, 1.0], "a twin beside it learns"),
    ],
)
def test_a_weight_that_is_not_judged(norms, why):
    layers = path("stem", "experts.0.weight", "experts.1.weight", "head", beside=[(1, 2)])
    detector = Bypassed(layers, Thresholds())
    results = examine_all(detector, [report(norms, step, 1.0, sampled=True) for step in range(PATIENCE)])
    assert not any(result.is_sick for result in results), why


def test_a_literal_threshold_replaces_the_rule():
    detector = Bypassed(path("a", "b", "c"), Thresholds(vanishing_norm=1e-12))
    assert detector.examine(report([1.0, 1e-9, 1.0], 0, 1.0, sampled=True)) is None
