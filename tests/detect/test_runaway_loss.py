"""Losses that fall without an end, and losses that fall as far as their task goes."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.detect.course import FIRST_STEPS, HORIZON
from gradwatch.detect.runaway_loss import FALLEN, LEAST, MAKES_IT, RISEN, RunawayLoss
from gradwatch.findings import Thresholds
from tests.detect.training import perceptron, told, train
from tests.reports import examine_all, report, sick_columns, table

Adam = torch.optim.Adam


def slow_runaway(reports):
    """The rule in plain numbers: the sick columns of each sample, None where the step says nothing."""
    verdicts, losses, totals, mean, lowest = [], [], [], 0.0, math.inf
    for step in reports:
        if any(step.nonfinite > 0) or (step.loss is not None and not math.isfinite(step.loss)):
            verdicts.append(None)
            continue
        totals.append(step.grad_norm_total)
        if step.loss is not None:
            losses.append(step.loss)
            mean += (step.loss - mean) / min(len(losses), HORIZON)
        if not step.sampled:
            verdicts.append(None)
            continue
        first = max([LEAST, *(abs(loss) for loss in losses[:FIRST_STEPS])])
        rise = totals[-1] / max([LEAST, *totals[:FIRST_STEPS]])
        is_sick = mean < lowest and -mean / first >= 10**FALLEN and rise >= 10**RISEN
        lowest = min(lowest, mean)
        loud = {column for column, norm in enumerate(step.grad_norm.tolist()) if norm >= MAKES_IT * totals[-1]}
        verdicts.append(loud if is_sick else set())
    return verdicts


def random_falls(seed):
    random = np.random.default_rng(seed)
    tendency, sign = random.choice([0.0, 0.02, 0.03]), random.choice([-1, -1, 1])
    scale, has_loss = random.choice([1e-6, 1.0, 100.0]), random.random() < 0.8
    reports = []
    for step in range(301):
        norms = scale * 10.0 ** (tendency * step + random.normal(0, 0.2, 3) - [0, 0.5, 2])
        loss = float(sign * scale * 10.0 ** (tendency * step + random.normal(0, 0.1))) if has_loss else None
        nonfinite = [int(random.random() < 0.01), 0, 0]
        reports.append(report(norms, step, loss, sampled=step % 10 == 0, nonfinite=nonfinite))
    return reports


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_falls(seed)
    found = examine_all(RunawayLoss(table(3), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_runaway(reports)


def test_the_random_runs_are_sick_and_healthy():
    sick = [seed for seed in range(30) if any(slow_runaway(random_falls(seed)))]
    assert 3 < len(sick) < 27


def soft_actor(is_right):
    """The temperature of a soft actor, driven by the distance of the entropy from its target."""
    policy, log_alpha = nn.Linear(4, 6), nn.Parameter(torch.zeros(()))
    model = nn.ModuleDict({"policy": policy, "temperature": nn.ParameterList([log_alpha])})
    values = torch.randn(4, 6)

    def loss_of(_):
        states = torch.randn(32, 4)
        logs = policy(states).log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1).mean()
        surplus = entropy.detach() - 1.0
        reward = (logs.exp() * (states @ values)).sum(-1).mean()
        alpha = log_alpha.exp()
        return -reward - alpha.detach() * entropy + (alpha * surplus if is_right else -alpha * surplus)

    return model, Adam(model.parameters(), 5e-2), loss_of


def multiplier_of_the_wrong_sign():
    """A constraint's multiplier, exp(λ), that descends where it should ascend."""
    model = nn.ModuleDict({"net": nn.Linear(8, 1), "logs": nn.ParameterList([nn.Parameter(torch.zeros(()))])})

    def loss_of(_):
        x = torch.randn(64, 8)
        violation = model["net"](x).square().mean() + 0.5
        return F.mse_loss(model["net"](x), x[:, :1]) - model["logs"][0].exp() * violation.detach()

    return model, Adam(model.parameters(), 5e-2), loss_of


def contrast_of_the_wrong_sign():
    """The loss of CLIP, negated, with its learned scale."""
    left, right, scale = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.tensor(2.6))
    model = nn.ModuleDict({"left": left, "right": right, "scale": nn.ParameterList([scale])})

    def loss_of(_):
        x = torch.randn(32, 8)
        logits = F.normalize(left(x), dim=-1) @ F.normalize(right(x), dim=-1).T * scale.exp()
        return -F.cross_entropy(logits, torch.arange(32))

    return model, Adam(model.parameters(), 5e-2), loss_of


SICK = {
    "temperature": lambda: soft_actor(False),
    "multiplier_of_the_wrong_sign": multiplier_of_the_wrong_sign,
    "contrast_of_the_wrong_sign": contrast_of_the_wrong_sign,
}


@pytest.mark.parametrize("make", SICK.values(), ids=SICK)
def test_a_loss_that_falls_without_an_end_is_found(make):
    torch.manual_seed(0)
    exploding = told(train(*make(), 300), "exploding")
    assert len(exploding) == 1
    assert exploding[0].layer.startswith(("temperature", "logs", "scale"))


def rewards_that_grow():
    """An actor whose rewards grow a thousandfold and then stay."""
    model = perceptron(8, 32, 2, function=nn.Tanh)

    def loss_of(step):
        actions = torch.tanh(model(torch.randn(64, 8)))
        return -(1 + min(step, 100) * 20.0) * (1 - (actions - 0.5).square()).mean()

    return model, Adam(model.parameters(), 1e-3), loss_of


def likelihood_of_copies():
    """A density of points without noise: the logarithm of the deviation falls for ever, and so does the loss."""
    model, inputs = perceptron(8, 64, 2), torch.randn(256, 8)

    def loss_of(_):
        mean, log_std = model(inputs).unbind(1)
        return (log_std + 0.5 * (inputs[:, 0] - mean).square() * torch.exp(-2 * log_std)).mean()

    return model, Adam(model.parameters(), 1e-3), loss_of


def learned_scale():
    """The loss of CLIP, with pairs that can be told apart entirely: the scale grows."""
    model, optimizer, loss_of = contrast_of_the_wrong_sign()
    return model, optimizer, lambda step: -loss_of(step)


def critic_from_nothing():
    """A head of zeros whose values grow from nothing to ten thousand, as the loss −Q of an actor does."""
    model = nn.Linear(4, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model, Adam(model.parameters(), 10.0), lambda _: -(1e4 - (model(torch.rand(64, 4)) - 100).square()).mean()


HEALTHY = {
    make.__name__: make for make in (rewards_that_grow, likelihood_of_copies, learned_scale, critic_from_nothing)
} | {"temperature": lambda: soft_actor(True)}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_loss_that_falls_as_far_as_its_task_goes_is_left_alone(make):
    torch.manual_seed(0)
    assert "falls without an end" not in str([finding.cause for finding in train(*make(), 200)])


def test_what_was_measured_is_said():
    detector = RunawayLoss(table(2), Thresholds())
    for step in range(201):
        now = report([10.0 ** (0.03 * step), 1e-3], step, -(10.0 ** (0.03 * step)), sampled=step % 10 == 0)
        result = detector.examine(now)
    assert sick_columns(result) == {0}
    evidence = detector.explain(now, 0, [0])
    assert "The loss was at most 1.86 away from zero in the first steps" in evidence.measured
    assert "by the gradient of w0 above all" in evidence.cause[0]


def test_a_literal_threshold_replaces_the_rule_and_nan_says_nothing():
    now = report([1.0, 1.0], 0, -1.0, sampled=True)
    assert RunawayLoss(table(2), Thresholds(exploding_growth=5.0)).examine(now) is None
    assert RunawayLoss(table(2), Thresholds()).examine(report([1.0, 1.0], 0, math.nan, sampled=True)) is None
