"""Updates that keep their size whatever clipping leaves of the gradients, and optimizers that follow these."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.explain.update_sizes import DIFFERENT, MOST, OFTEN, SAME, SAMPLES, UpdateSizes
from tests.detect.training import perceptron
from tests.reports import report

RATE = 0.01


def facts_of(moves, gradients, *, is_clipped=True, rate=RATE):
    """The facts after samples whose layers moved by ``moves`` · rate, of gradients of these norms after clipping."""
    sizes = UpdateSizes()
    for step, (moved, norms) in enumerate(zip(moves, gradients, strict=True)):
        share = 0.5 if is_clipped else 1.0
        each = report([norm / share for norm in norms], step, sampled=True, learning_rate=rate)
        left = {"grad_norm_clipped_total": each.grad_norm_total * share}
        each = each.__class__(**{**vars(each), **left})
        each.figures["weight_norm"] = np.full(len(norms), 2.0)
        each.figures["update_ratio"] = np.array(moved) * (rate or RATE) / 2.0
        sizes.add(each)
    return [fact.clue for fact in sizes.facts()]


SHRINKING = [[1.0, 2.0], [0.5, 1.0], [0.3, 0.6], [0.1, 0.2]]
CONSTANT = [[3.0, 4.0]] * 4


def test_updates_of_one_size_are_not_limited_by_clipping():
    assert facts_of(CONSTANT, SHRINKING) == ["clipping idle"]


@pytest.mark.parametrize(
    ("moves", "gradients", "rest"),
    [
        pytest.param(SHRINKING, SHRINKING, {}, id="updates follow the gradient"),
        pytest.param(CONSTANT, [[1.0, 2.0]] * 4, {}, id="gradients of one size show nothing"),
        pytest.param(CONSTANT[:3], SHRINKING[:3], {}, id="too few samples"),
        pytest.param(CONSTANT, SHRINKING, {"is_clipped": False}, id="nothing is clipped"),
        pytest.param(CONSTANT, SHRINKING, {"rate": None}, id="no rate"),
    ],
)
def test_other_updates_say_nothing(moves, gradients, rest):
    assert facts_of(moves, gradients, **rest) == []


def slow_verdict(moves, gradients):
    """The rule in the plainest words, for a run that clips each gradient."""
    if len(moves) < SAMPLES or OFTEN > 1:
        return False
    judged, same = 0, 0
    for column in range(len(moves[0])):
        moved, norms = [row[column] for row in moves], [row[column] for row in gradients]
        if max(norms) / min(norms) >= DIFFERENT:
            judged += 1
            same += max(moved) / min(moved) <= SAME
    return judged > 0 and same / judged >= MOST


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_twin_finds_the_same(seed):
    random = np.random.default_rng(seed)
    spreads = random.choice([0.02, 0.1, 0.4], 4)
    moves = np.exp(random.normal(0, spreads, (6, 4))).tolist()
    gradients = np.exp(random.normal(0, random.choice([0.1, 0.4], 4), (6, 4))).tolist()
    assert (facts_of(moves, gradients) == ["clipping idle"]) == slow_verdict(moves, gradients)


class Signs(torch.optim.Optimizer):
    """The sign of a running mean of gradients."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.sub_(mean.lerp(parameter.grad, 0.1).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 0.01)


def findings_of(make, limit=0.05, *, own=True):
    torch.manual_seed(0)
    model, truth = perceptron(8, 32, 1, function=nn.Tanh), torch.randn(8, 1)
    optimizer = make(model.parameters())
    with gradwatch.watch(model, optimizer, clip=None if own else limit) as watcher:
        for _ in range(120):
            inputs = torch.randn(32, 8)
            F.mse_loss(model(inputs), inputs @ truth).backward()
            if own:
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()
    return [finding for finding in watcher.findings if finding.kind in ("unstable", "exploding")]


@pytest.mark.parametrize("own", [True, False], ids=["the loop clips", "gradwatch clips"])
def test_an_unstable_run_of_signs_is_told_that_clipping_limits_nothing(own):
    found = findings_of(lambda parameters: Signs(parameters, 1.0), own=own)
    finding = next(each for each in found if each.kind == "unstable")
    assert finding.cause.startswith("Clipping does not limit these updates")
    names = [advice.name for advice in finding.remedies]
    assert names[0] == "lower-learning-rate"
    assert not {"clip-norm", "clip-adaptive"} & set(names)


@pytest.mark.parametrize("make", [lambda parameters: torch.optim.SGD(parameters, lr=100.0)], ids=["descent"])
def test_an_unstable_run_of_plain_descent_is_not(make):
    found = findings_of(make)
    assert found
    assert not any("does not limit" in finding.cause for finding in found)


def test_signs_that_learn_raise_nothing():
    assert findings_of(lambda parameters: Signs(parameters, 2e-3)) == []
