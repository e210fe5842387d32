"""Outputs far above their targets are found from the first updates on, though Adam or a clip keeps updates finite."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch.detect.far_above_targets import (
    BEGINS,
    CHANGED,
    GROWTH,
    INPUTS,
    LOOKED_AT,
    STRAIGHT,
    FarAboveTargets,
)
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.detect.training import perceptron, regression, told, train
from tests.reports import NAN, examine_all, report, sick_columns, table

SGD, Adam = torch.optim.SGD, torch.optim.Adam
SAMPLES = (1, 2, 4, 8, 10, 20, 30, 40, 50)


def slow_far_above(reports):  # one long loop on purpose: a twin of the rule, for layers that form one path
    """The rule in plain numbers: the sick columns of each sample, None where the step says nothing."""
    verdicts, seen, is_over = [], [], False
    for step in reports:
        if is_over:
            verdicts.append(set())
            continue
        if any(step.nonfinite > 0) or (step.loss is not None and not math.isfinite(step.loss)):
            verdicts.append(None)
            continue
        returned = {column: rms for column, rms in enumerate(step.figures["activation_rms"].tolist()) if rms > 0}
        inputs = next(iter(returned.values()), 0.0)
        limit = INPUTS if inputs >= INPUTS else GROWTH * max(1.0, inputs)
        is_large = any(rms >= limit for rms in returned.values())
        if not is_large or step.loss is None or step.loss <= 0 or (not seen and step.update > BEGINS):
            is_over = True
            verdicts.append(set())
            continue
        output = list(returned.values())[-1]
        seen.append((math.log10(output), math.log10(step.loss / output), math.log10(step.loss / output**2)))
        outputs, ratios, squares = ([each[place] for each in seen] for place in range(3))
        decades = max(outputs) - min(outputs)
        spread = min(max(ratios) - min(ratios), max(squares) - min(squares))
        is_sick = step.update >= LOOKED_AT and decades >= CHANGED and spread <= STRAIGHT * decades
        verdicts.append({column for column, rms in returned.items() if rms >= limit} if is_sick else set())
    return verdicts


def random_births(seed):
    """Runs whose outputs come down or not, with losses that follow them, their square, or something else."""
    random = np.random.default_rng(seed)
    scale, tendency = 10.0 ** random.uniform(2, 6), random.choice([0.0, -0.02, -0.04])
    degree, noise = random.choice([1.0, 2.0, 1.5]), random.choice([0.0, 0.02, 0.1])
    inputs, count = 10.0 ** random.uniform(-1, 5), 4
    reports = []
    for step in SAMPLES if random.random() < 0.9 else SAMPLES[2:]:
        output = scale * 10.0 ** (tendency * step)
        rms = np.array([inputs, inputs, scale * 10.0 ** random.normal(0, 0.2), output])
        rms[1] = random.choice([rms[1], NAN, 0.0])
        loss = 7.0 * output**degree * 10.0 ** random.normal(0, noise)
        loss = random.choice([loss, -1.0, math.nan], p=[0.98, 0.01, 0.01])
        nonfinite = (random.random(count) < 0.01).astype(int)
        figures = {"activation_rms": rms}
        reports.append(report(np.ones(count), step, float(loss), sampled=True, figures=figures, nonfinite=nonfinite))
    return reports


@pytest.mark.parametrize("seed", range(80))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_births(seed)
    found = examine_all(FarAboveTargets(table(4), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_far_above(reports)


def test_the_random_runs_are_sick_and_healthy():
    sick = [seed for seed in range(80) if any(slow_far_above(random_births(seed)))]
    assert 10 < len(sick) < 60


class Recurrence(nn.Module):
    """A linear recurrence, written as a loop, whose matrix is ``radius`` times an orthogonal one."""

    def __init__(self, radius, outputs=1):
        super().__init__()
        self.inlet, self.recur, self.outlet = nn.Linear(1, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, outputs)
        nn.init.orthogonal_(self.recur.weight, gain=radius)

    def forward(self, sequence):
        state = torch.zeros(len(sequence), 32)
        for item in sequence.unbind(1):
            state = self.recur(state) + self.inlet(item[:, None])
        return self.outlet(state)


def sums(model, length=48, loss=nn.functional.mse_loss):
    def loss_of(_):
        items = torch.randn(64, length)
        return loss(model(items), items.sum(1, keepdim=True) / math.sqrt(length))

    return loss_of


class Clipped(SGD):
    """Descent that clips the total gradient norm to 1 first, as a loop would."""

    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


def radius_above_one():
    model = Recurrence(1.25)
    return model, Adam(model.parameters(), 3e-3), sums(model)


def radius_above_one_by_absolute_errors():
    model = Recurrence(1.25)
    return model, Adam(model.parameters(), 3e-3), sums(model, loss=nn.functional.l1_loss)


def radius_above_one_clipped():
    model = Recurrence(1.3)
    return model, Clipped(model.parameters(), 3e-2), sums(model)


class UnscaledSums(nn.Module):
    """Attention without a softmax over 48 positions, QKᵀV, divided by nothing: cubic in its input, twice."""

    def __init__(self, *, is_mean):
        super().__init__()
        self.level, self.position = nn.Linear(1, 32), nn.Embedding(48, 32)
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3)) for _ in range(2))
        self.head, self.share = nn.Linear(32, 1), 1 / 48 if is_mean else 1.0

    def forward(self, levels):
        hidden = self.level(levels[..., None]) * self.position.weight
        for query, key, value in self.layers:
            summary = key(hidden).transpose(1, 2) @ value(hidden)
            hidden = hidden + query(hidden) @ (self.share * summary)
        return self.head(hidden.mean(1))


def brightness(model):
    def loss_of(_):
        level = torch.rand(64, 1)
        return nn.functional.mse_loss(model(4 * level + 0.1 * torch.randn(64, 48)), level)

    return loss_of


def sums_over_positions():
    model = UnscaledSums(is_mean=False)
    return model, Adam(model.parameters(), 1e-3), brightness(model)


def raw_features():
    """Features of 10⁵ with a mean, as incomes have, and targets of size 1."""
    model, wealth = perceptron(2, 32, 32, 1), torch.randn(512, 2)
    inputs, targets = 6e4 + 2e4 * wealth, torch.tanh(wealth[:, :1])

    def loss_of(_):
        batch = torch.randint(512, (64,))
        return nn.functional.mse_loss(model(inputs[batch]), targets[batch])

    return model, Adam(model.parameters(), 3e-3), loss_of


SICK = {
    radius_above_one: "recur.weight",
    radius_above_one_by_absolute_errors: "recur.weight",
    radius_above_one_clipped: "recur.weight",
    sums_over_positions: "head.weight",
    raw_features: "0.weight",
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "layer"), SICK.items(), ids=[make.__name__ for make in SICK])
def test_an_explosion_that_ends_in_no_nan_is_found(make, layer):
    torch.manual_seed(0)
    exploding = told(train(*make(), 81), "exploding")
    assert [(finding.layer, finding.step >= LOOKED_AT) for finding in exploding] == [(layer, True)]
    assert "the loss has been proportional to" in exploding[0].cause
    remedies = [advice.name for advice in exploding[0].remedies]
    assert remedies[0] == ("scaled-inputs" if make is raw_features else "he")


def radius_of_one():
    model = Recurrence(1.0)
    return model, Adam(model.parameters(), 3e-3), sums(model)


def radius_a_little_above_one():
    model = Recurrence(1.05)
    return model, Adam(model.parameters(), 3e-3), sums(model)


def means_over_positions():
    model = UnscaledSums(is_mean=True)
    return model, Adam(model.parameters(), 1e-3), brightness(model)


def inputs_of_a_thousand():
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), 1e-3), regression(model, inputs_scale=1e3)


def raw_targets():
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), 1.0), regression(model, targets_scale=3e5)


def raw_features_before_a_normalisation():
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))
    return model, Adam(model.parameters(), 3e-3), regression(model, inputs_scale=1e5)


def features_and_targets_in_one_unit():
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), 1e-3), regression(model, inputs_scale=1e4, targets_scale=1e4)


def standard_normal_weights():
    model = perceptron(32, 64, 64, 1, std=1.0)
    return model, Adam(model.parameters(), 1e-2), regression(model)


class SumOfItems(nn.Module):
    """An output that is summed over 2,000 items, and so begins a hundred times too large."""

    def __init__(self):
        super().__init__()
        self.item, self.head = perceptron(1, 32, 32), nn.Linear(32, 1)

    def forward(self, levels):
        return self.head(self.item(levels[..., None]).sum(1))


def sums_of_many_items():
    model = SumOfItems()

    def loss_of(_):
        levels = torch.randn(16, 2000) * (0.5 + torch.rand(16, 1))
        return nn.functional.mse_loss(model(levels), levels.std(1, keepdim=True))

    return model, Adam(model.parameters(), 3e-3), loss_of


def targets_of_zero():
    """A critic whose rewards are all zero: its output is what the loss is made of, and rightly comes down."""
    model = perceptron(32, 64, 1)
    return model, Adam(model.parameters(), 1e-3), regression(model, inputs_scale=100.0, targets_scale=0.0)


HEALTHY = (
    radius_of_one,
    radius_a_little_above_one,
    means_over_positions,
    inputs_of_a_thousand,
    raw_targets,
    raw_features_before_a_normalisation,
    features_and_targets_in_one_unit,
    standard_normal_weights,
    sums_of_many_items,
    targets_of_zero,
)


@pytest.mark.slow
@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_a_run_that_only_looks_like_it_is_left_alone(make):
    torch.manual_seed(0)
    assert told(train(*make(), 81), "exploding") == []


def falling(outputs, degree=2.0):
    """Samples of a run of two layers whose loss follows its output."""
    return [
        report([1.0, 1.0], step, output**degree, sampled=True, figures={"activation_rms": np.array([2.0, output])})
        for step, output in zip(SAMPLES, outputs, strict=False)
    ]


OUTPUTS = np.geomspace(1e6, 1e4, 6)


def test_what_was_measured_is_said_with_its_figures():
    detector, reports = FarAboveTargets(table(2), Thresholds()), falling(OUTPUTS)
    results = examine_all(detector, reports)
    assert [sick_columns(result) for result in results] == [set()] * 5 + [{1}]
    evidence = detector.explain(reports[-1], 1, [1])
    assert evidence.measured == (
        "What the layer of w1 returns has a root mean square of 1e+04 at step 20 (normal: below 2,000, unless the "
        "targets are as large)."
    )
    assert evidence.cause == (
        "Since the run began the loss has been proportional to the square of what the model returns, which lay between "
        "1e+04 and 1e+06: the targets are too small to count beside it.",
    )
    assert evidence.clues == ("grows along depth",)


def test_the_inputs_are_those_of_layers_that_no_other_lies_before():
    layers = of_tensors({"w0": torch.zeros(2, 2), "w1": torch.zeros(2, 2)})
    after = np.array([[True, False], [True, False]])  # w0 is recurrent, and w1 feeds it
    layers.connect(after, np.ones(2, dtype=bool))
    detector = FarAboveTargets(layers, Thresholds())
    reports = [
        report([1.0, 1.0], step, out**2, sampled=True, figures={"activation_rms": np.array([out, 0.5])})
        for step, out in zip(SAMPLES, OUTPUTS, strict=False)
    ]
    for step in reports:  # the output is that of the last layer, which does not change here
        detector.examine(step)
    assert detector._limit(np.array([1e4, 0.5])) == GROWTH


def test_a_module_that_holds_layers_is_not_named():
    detector = FarAboveTargets(
        of_tensors({"bias": torch.zeros(2, 2), "a.weight": torch.zeros(2, 2), "b.c.weight": torch.zeros(2, 2)}),
        Thresholds(),
    )
    assert detector._path(np.array([9.0, 1.0, 9.0])).tolist() == [1, 2]


def test_a_user_who_sets_a_growth_has_that_rule_alone():
    found = examine_all(FarAboveTargets(table(2), Thresholds(exploding_growth=10.0)), falling(OUTPUTS))
    assert [sick_columns(result) for result in found] == [set()] * 6


def test_the_state_survives_a_checkpoint():
    whole, cut = (FarAboveTargets(table(2), Thresholds()) for _ in range(2))
    reports = falling(OUTPUTS)
    examine_all(whole, reports[:3])
    cut.restore(whole.state())
    rest = [sick_columns(cut.examine(step)) for step in reports[3:]]
    assert rest == [set(), set(), {1}]
