"""Weights that grow for hundreds of steps while the loss runs away with them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch.detect.course import FIRST_STEPS, HORIZON
from gradwatch.detect.unbounded import (
    AT_ITS_HIGHEST,
    FLOWN,
    GROWN,
    IDLE_GREW,
    IDLE_STRETCHED,
    STRETCHED,
    STRETCHED_UNSEEN,
    TOGETHER,
    TOGETHER_UNSEEN,
    Unbounded,
)
from gradwatch.findings import Thresholds
from tests.detect.training import classification, perceptron, regression, told, train
from tests.reports import examine_all, findings, report, sick_columns, table

SGD, Adam, RMSprop = torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop


def slow_unbounded(reports, ordinary):  # one long loop on purpose: a twin of the rule
    """The rule in plain numbers: the sick columns of each sample, None where the step says nothing."""
    verdicts, sizes, losses, totals = [], None, [], []
    farthest, mean, idle = 0.0, 0.0, None
    for step in reports:
        finite = not any(step.nonfinite > 0) and (step.loss is None or math.isfinite(step.loss))
        if finite:
            totals.append(step.grad_norm_total)
            if step.loss is not None:
                losses.append(step.loss)
                mean += (step.loss - mean) / min(len(losses), HORIZON)
        if not finite or not step.sampled:
            verdicts.append(None)
            continue
        norms = step.figures["weight_norm"].tolist()
        sizes = sizes or [max(norm, ordinary) for norm in norms]
        growths = [norm / size for norm, size in zip(norms, sizes, strict=True)]
        stretch = sum(math.log10(growth) for growth in growths if growth >= GROWN)
        if step.grad_norm_total > 0:
            idle = None
        elif idle is None:
            idle = stretch
        sick = idle is not None and stretch >= IDLE_STRETCHED and stretch - idle >= IDLE_GREW
        if losses:
            now, first = abs(mean), max(abs(loss) for loss in losses[:FIRST_STEPS])
        else:
            now, first = step.grad_norm_total, max(totals[:FIRST_STEPS])
        if now > 0 and first > 0:
            flight = math.log10(now / first)
            farthest = max(farthest, flight)
            least, together = (STRETCHED, TOGETHER) if losses else (STRETCHED_UNSEEN, TOGETHER_UNSEEN)
            flies = flight >= FLOWN and flight >= farthest - AT_ITS_HIGHEST
            sick = sick or (flies and stretch >= least and stretch + flight >= together)
        verdicts.append({column for column, growth in enumerate(growths) if growth >= GROWN} if sick else set())
    return verdicts


def random_growths(seed):
    """Runs whose weights grow or not, with losses that rise, fall, pass below zero, or are not seen."""
    random = np.random.default_rng(seed)
    rates = random.choice([0.0, 0.002, 0.01, 0.02], 3)
    tendency, sign = random.choice([-0.01, 0.0, 0.01, 0.03]), random.choice([1, -1])
    has_loss, dies = random.random() < 0.6, random.random() < 0.3
    reports = []
    for step in range(301):
        norms = 10.0 ** (rates * step + random.normal(0, 0.05, 3) + 0.2)
        gradients = np.zeros(3) if dies and step > 150 else 10.0 ** (tendency * step + random.normal(0, 0.2, 3))
        loss = float(sign * 10.0 ** (tendency * step + random.normal(0, 0.2))) if has_loss else None
        is_sampled = step % 10 == 0
        figures = {"weight_norm": norms} if is_sampled else {}
        nonfinite = [int(random.random() < 0.01), 0, 0]
        reports.append(report(gradients, step, loss, sampled=is_sampled, figures=figures, nonfinite=nonfinite))
    return reports


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_growths(seed)
    found = examine_all(Unbounded(table(3), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_unbounded(reports, math.sqrt(2))


def test_the_random_runs_are_sick_and_healthy_with_and_without_a_loss():
    sick = [seed for seed in range(30) if any(slow_unbounded(random_growths(seed), math.sqrt(2)))]
    assert 3 < len(sick) < 27
    assert {random_growths(seed)[0].loss is None for seed in sick} == {True, False}


def decayed(optimizer, decay):
    """An optimizer whose weight decay was given the wrong sign; torch refuses it in the constructor alone."""
    optimizer.param_groups[0]["weight_decay"] = decay
    return optimizer


def negative_decay():
    model = perceptron(32, 64, 64, 10)
    return model, decayed(SGD(model.parameters(), 0.05), -0.4), classification(model)


def negative_decay_of_adamw():
    model = perceptron(32, 64, 64, 10)
    return model, decayed(torch.optim.AdamW(model.parameters(), 1e-3), -20.0), classification(model)


def critic_without_a_bound():
    model = perceptron(2, 64, 64, 1)
    loss_of = lambda _: model(torch.randn(64, 2)).mean() - model(torch.randn(64, 2) + 2).mean()
    return model, Adam(model.parameters(), 3e-3), loss_of


def targets_of_its_own():
    model = perceptron(8, 64, 64, 1)
    states = torch.randn(256, 8)
    later = states + 0.3 * torch.randn(256, 8)

    def loss_of(_):
        batch = torch.randint(len(states), (64,))
        targets = 1 + 1.05 * model(later[batch]).detach()
        return nn.functional.mse_loss(model(states[batch]), targets)

    return model, Adam(model.parameters(), 3e-3), loss_of


def linear_targets_of_its_own():
    """The deadly triad: features that double from one state to the next."""
    model = nn.Linear(4, 1, bias=False)

    def loss_of(_):
        states = torch.rand(32, 4)
        return nn.functional.mse_loss(model(states), 0.99 * model(2 * states).detach())

    return model, SGD(model.parameters(), 0.02), loss_of


def regulariser_of_the_wrong_sign():
    model = perceptron(32, 64, 64, 10)
    loss_of = classification(model)
    penalty = lambda: sum(weight.square().sum() for weight in model.parameters())
    return model, SGD(model.parameters(), 0.05), lambda step: loss_of(step) - 0.1 * penalty()


def distance_that_is_maximised():
    model, inputs = perceptron(32, 64, 16), torch.randn(256, 32)
    loss_of = lambda _: -(model(inputs[:128]) - model(inputs[128:])).square().sum(1).mean()
    return model, Adam(model.parameters(), 3e-3), loss_of


SAID_OF_LOSS = "falls without an end"  # of the loss itself, which is seen earlier than its weights
SICK = {
    make.__name__: make
    for make in (
        negative_decay,
        negative_decay_of_adamw,
        critic_without_a_bound,
        targets_of_its_own,
        linear_targets_of_its_own,
        regulariser_of_the_wrong_sign,
        distance_that_is_maximised,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("make", SICK.values(), ids=SICK)
def test_slow_growth_without_bound_is_found(make):
    torch.manual_seed(0)
    exploding = told(train(*make(), 300), "exploding")
    assert len(exploding) == 1
    words = SAID_OF_LOSS if make is distance_that_is_maximised else "grown without bound"
    assert words in exploding[0].cause


def late_and_large_rewards():
    """A value that grows from 0 to thousands, with a target network: the loss rises far, and comes down."""
    model, target = perceptron(8, 64, 64, 4), perceptron(8, 64, 64, 4)

    def loss_of(step):
        if step % 20 == 0:
            target.load_state_dict(model.state_dict())
        states = torch.randn(64, 8)
        later = 0.9 * states + 0.1 * torch.randn(64, 8)
        rewards = (50 + states[:, 0]) * (step > 60)
        goal = rewards + 0.95 * target(later).amax(1).detach()
        return nn.functional.mse_loss(model(states)[:, 0], goal)

    return model, Adam(model.parameters(), 1e-3), loss_of


def actor_whose_rewards_grow():
    model = perceptron(8, 64, 2, function=nn.Tanh)

    def loss_of(step):
        actions = torch.tanh(model(torch.randn(64, 8)))
        return -(min(step, 300) * 0.5 * (1 - (actions - 0.5).square()).mean()) - 0.01

    return model, Adam(model.parameters(), 1e-3), loss_of


def separable_classes(rate):
    model, inputs = nn.Linear(2, 1), torch.randn(200, 2)
    classes = (inputs[:, :1] > 0).float()
    loss_of = lambda _: nn.functional.binary_cross_entropy_with_logits(model(inputs), classes)
    return model, SGD(model.parameters(), rate), loss_of


def before_normalisation():
    """Weights whose scale means nothing, under a rate that makes them grow as √t."""
    parts = [nn.Linear(32, 64, bias=False), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 10)]
    model = nn.Sequential(*parts)
    return model, Adam(model.parameters(), 0.1), classification(model)


def raw_targets():
    model = nn.Linear(32, 1)
    return model, Adam(model.parameters(), 10.0), regression(model, targets_scale=1e4)


def tiny_embeddings():
    model = nn.ModuleDict({"rows": nn.Embedding(100, 16), "columns": nn.Embedding(100, 16)})
    for weight in model.parameters():
        nn.init.normal_(weight, std=1e-4)
    table_ = 5 * torch.randn(100, 100)

    def loss_of(_):
        rows, columns = torch.randint(100, (256,)), torch.randint(100, (256,))
        products = (model["rows"](rows) * model["columns"](columns)).sum(1)
        return nn.functional.mse_loss(products, table_[rows, columns])

    return model, Adam(model.parameters(), 1e-2), loss_of


def tiny_initialisation():
    model = perceptron(32, 64, 64, 10, std=1e-4)
    return model, Adam(model.parameters(), 1e-2), classification(model)


def likelihood():
    """The logarithm of a density, which falls below zero as the deviation that is learned falls."""
    model, inputs = perceptron(8, 64, 2), torch.randn(256, 8)

    def loss_of(_):
        mean, log_std = model(inputs).unbind(1)
        return (log_std + 0.5 * (inputs[:, 0] - mean).square() * torch.exp(-2 * log_std)).mean()

    return model, Adam(model.parameters(), 1e-3), loss_of


def memorised_noise():
    model, inputs, classes = perceptron(32, 128, 128, 10), torch.randn(128, 32), torch.randint(10, (128,))
    return model, Adam(model.parameters(), 3e-3), lambda _: nn.functional.cross_entropy(model(inputs), classes)


HEALTHY = {
    make.__name__: make
    for make in (
        late_and_large_rewards,
        actor_whose_rewards_grow,
        before_normalisation,
        raw_targets,
        tiny_embeddings,
        tiny_initialisation,
        likelihood,
        memorised_noise,
    )
} | {"separable_classes": lambda: separable_classes(10.0), "separable_at_once": lambda: separable_classes(100.0)}


@pytest.mark.slow
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_growth_that_has_its_reason_is_left_alone(make):
    torch.manual_seed(0)
    findings_ = train(*make(), 300)
    assert [finding.cause for finding in findings_ if "without bound" in finding.cause] == []


@pytest.mark.slow
@pytest.mark.parametrize("make", [raw_targets, before_normalisation, likelihood, late_and_large_rewards])
def test_it_is_left_alone_where_no_loss_is_seen(make):
    torch.manual_seed(0)
    findings_ = train(*make(), 200, observes=False)
    assert [finding.cause for finding in findings_ if "without bound" in finding.cause] == []


def growth_of(growth, loss, step=100, **rest):
    figures = {"weight_norm": np.array([10.0 * growth, 10.0])}
    return report([1.0, 1.0], step, loss, sampled=True, figures=figures, **rest)


def test_what_was_measured_is_said_with_its_figures():
    detector = Unbounded(table(2), Thresholds())
    for step in range(10):
        detector.examine(growth_of(1.0, 1.0, step))
    for step in range(10, 200):
        now = growth_of(8.0, 5000.0, step)
        result = detector.examine(now)
    assert (sick_columns(result), result.value.tolist()) == ({0}, [8.0, 1.0])
    evidence = detector.explain(now, 0, [0])
    assert "The norm of w0 is 80 at step 199, 8 times its size when the run began (normal: up to 3" in evidence.measured
    assert evidence.cause[0].startswith("1 weight has grown without bound. The loss was at most 1 in the first steps")
    assert evidence.clues == ("grows without bound",)


def test_a_literal_threshold_replaces_the_rule_and_nan_says_nothing():
    literal = Unbounded(table(2), Thresholds(exploding_growth=5.0))
    assert literal.examine(growth_of(8.0, 1.0)) is None
    assert Unbounded(table(2), Thresholds()).examine(growth_of(8.0, math.nan)) is None


def test_weights_that_grow_without_any_gradient_are_grown_by_the_optimizer():
    reports = [
        report(
            [0.0, 0.0],
            step,
            0.0,
            sampled=step % 10 == 0,
            figures={"weight_norm": np.array([10.0 * 1.02**step, 10.0])} if step % 10 == 0 else {},
        )
        for step in range(400)
    ]
    found = [each for each in findings(reports, layers=table(2)) if each.kind == "exploding"]
    assert len(found) == 1
    assert "its weight decay may be negative" in found[0].cause
