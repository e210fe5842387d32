"""One block of a stack gets next to no gradient, while a residual path keeps the others learning."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch.detect.branch_vanishing import BRANCH_RATIO, SIBLINGS, BranchVanishing
from gradwatch.detect.faint_branch import PATIENCE
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.detect.training import ResidualStack, classification, perceptron, regression, sequences, told, train
from tests.reports import NAN, examine_all, report, sick_columns

SGD, Adam = torch.optim.SGD, torch.optim.Adam


def stack(count, *, in_series=True, name="blocks.{}.linear.weight"):
    """A table of ``count`` blocks of one weight; ``after`` says whether each lies after those before it."""
    layers = of_tensors({name.format(place): torch.zeros(2, 2) for place in range(count)})
    after = np.triu(np.ones((count, count), dtype=bool), 1) if in_series else np.zeros((count, count), dtype=bool)
    layers.connect(after, np.ones(count, dtype=bool))
    return layers


def slow_branches(reports):
    """The rule in plain numbers, for a stack of blocks in series: the faint columns of each sample."""
    verdicts = []
    for step in reports:
        if not step.sampled or any(step.nonfinite > 0):
            verdicts.append(None)
            continue
        norms = {column: norm for column, norm in enumerate(step.grad_norm.tolist()) if norm == norm}
        sick = set()
        for column, norm in norms.items():
            others = sorted(other for place, other in norms.items() if place != column)
            if len(others) < SIBLINGS:
                continue
            middle = len(others) // 2
            median = others[middle] if len(others) % 2 else (others[middle - 1] + others[middle]) / 2
            if 0 < norm <= BRANCH_RATIO * median:
                sick.add(column)
        verdicts.append(sick)
    return verdicts


def random_stacks(seed):
    random = np.random.default_rng(seed)
    level = random.choice([0.0, -3.0, -5.0, -8.0], 5)
    reports = []
    for step in range(40):
        norms = 10.0 ** (level + random.normal(0, random.choice([0.1, 1.0]), 5))
        norms[random.random(5) < 0.1] = NAN
        norms[random.random(5) < 0.1] = 0.0
        nonfinite = [int(random.random() < 0.02), 0, 0, 0, 0]
        reports.append(report(norms, step, 1.0, sampled=step % 2 == 0, nonfinite=nonfinite))
    return reports


@pytest.mark.parametrize("seed", range(40))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_stacks(seed)
    found = examine_all(BranchVanishing(stack(5), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_branches(reports)


class Gated(nn.Module):
    """A residual block whose branch is multiplied by a scale."""

    def __init__(self, scale, width=32):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor([scale]))

    def forward(self, inputs):
        return inputs + self.scale * self.last(torch.relu(self.first(inputs)))


def gated_stack(*scales):
    return nn.Sequential(*(Gated(scale) for scale in scales), nn.Linear(32, 10))


def scale_collapsed_at_the_start():
    model = gated_stack(0.5, 0.5, 1e-9, 0.5)
    model[2].scale.requires_grad_(False)
    return model, SGD(model.parameters(), 0.1), classification(model)


def scale_collapses_later():
    model = gated_stack(0.5, 0.5, 0.5, 0.5)
    loss_of = classification(model)

    def shrinking(step):
        with torch.no_grad():
            if step >= 20:
                model[1].scale.fill_(1e-8)
        return loss_of(step)

    return model, Adam(model.parameters(), 1e-3), shrinking


class SigmoidGated(nn.Module):
    """A residual block whose branch passes a sigmoid gate that depends on the input."""

    def __init__(self, bias):
        super().__init__()
        self.first, self.last, self.gate = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, inputs):
        return inputs + torch.sigmoid(self.gate(inputs)) * self.last(torch.relu(self.first(inputs)))


def gate_shut():
    model = nn.Sequential(*(SigmoidGated(bias) for bias in (0.0, 0.0, -18.0, 0.0)), nn.Linear(32, 10))
    return model, SGD(model.parameters(), 0.1), classification(model)


class Attention(nn.Module):
    """A residual block of attention; ``sharpness`` multiplies what goes into its softmax."""

    def __init__(self, sharpness):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.sharpness = sharpness

    def forward(self, inputs):
        products = self.query(inputs) @ self.key(inputs).transpose(1, 2) / math.sqrt(32)
        return inputs + (self.sharpness * products).softmax(-1) @ self.value(inputs)


class Attending(nn.Module):
    def __init__(self, *sharpness):
        super().__init__()
        self.layers = nn.ModuleList(Attention(each) for each in sharpness)
        self.head = nn.Linear(32, 10)

    def forward(self, inputs):
        for layer in self.layers:
            inputs = layer(inputs)
        return self.head(inputs[:, -1])


def attention_one_hot():
    model = Attending(1.0, 1.0, 1e7, 1.0)
    return model, Adam(model.parameters(), 1e-4), sequences(model, 8)


class Normed(nn.Module):
    """A pre-norm residual block whose last layer was multiplied to nothing."""

    def __init__(self, std):
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        nn.init.normal_(self.first.weight, std=std)
        nn.init.zeros_(self.first.bias)

    def forward(self, inputs):
        return inputs + self.last(torch.relu(self.first(self.norm(inputs))).square())


def branch_of_no_size():
    model = nn.Sequential(*(Normed(std) for std in (0.2, 1e-8, 0.2, 0.2)), nn.Linear(32, 10))
    return model, SGD(model.parameters(), 0.01), classification(model)


SICK = {
    make.__name__: (make, place)
    for make, place in (
        (scale_collapsed_at_the_start, "2."),
        (scale_collapses_later, "1."),
        (gate_shut, "2."),
        (attention_one_hot, "layers.2."),
        (branch_of_no_size, "1."),
    )
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "place"), SICK.values(), ids=SICK)
def test_a_branch_that_is_shut_is_found_while_the_others_learn(make, place):
    torch.manual_seed(0)
    vanishing = told(train(*make(), 131), "vanishing")
    assert len(vanishing) == 1
    assert vanishing[0].layer.startswith(place)


def scales_that_begin_at_zero():
    model = gated_stack(0.0, 0.0, 0.0, 0.0)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def one_scale_that_begins_at_zero():
    model = gated_stack(0.5, 0.5, 0.0, 0.5)
    return model, SGD(model.parameters(), 0.1), classification(model)


def tiny_layer_scale():
    model = gated_stack(1e-6, 1e-6, 1e-6, 1e-6)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def deep_without_skips():
    model = perceptron(32, *[64] * 6, 10)
    return model, SGD(model.parameters(), 0.1), classification(model)


def deep_and_normalised():
    model = ResidualStack(8, 10, normalises=True)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def converged():
    model = ResidualStack(4, 1, gain=0.3)
    inputs = torch.randn(16, 32)
    return model, Adam(model.parameters(), 1e-3), lambda _: model(inputs).square().mean()


class Routed(nn.Module):
    """Experts beside each other in every block, of which the last gets no token."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(32, 32) for _ in range(4)) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, inputs):
        for place, experts in enumerate(self.blocks):
            used = 4 if place else 3
            inputs = inputs + sum(expert(inputs) for expert in experts[:used]) + 0 * experts[-1](inputs)
        return self.head(inputs)


def expert_without_tokens():
    model = Routed()
    return model, SGD(model.parameters(), 0.01), classification(model)


class Heads(nn.Module):
    """Four heads beside each other, of which one has learned its task."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(32, 32)
        self.heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(4))

    def forward(self, inputs):
        hidden = torch.tanh(self.stem(inputs))
        return torch.cat([head(hidden) for head in self.heads], 1)


def head_that_has_learned():
    model, scales = Heads(), torch.tensor([1.0, 1.0, 1e-6, 1.0])
    inputs = torch.randn(256, 32)
    return model, SGD(model.parameters(), 0.01), lambda _: (scales * (model(inputs) - 1).square()).mean()


def stochastic_depth():
    model = ResidualStack(4, 10, gain=0.5)
    loss_of = classification(model)

    def dropping(step):
        for block in model.blocks:
            keeps = float(torch.rand(()) > 0.5)
            block[-1].register_forward_hook(lambda module, inputs, output, keeps=keeps: keeps * output)
        loss = loss_of(step)
        for block in model.blocks:
            block[-1]._forward_hooks.clear()
        return loss

    return model, Adam(model.parameters(), 1e-3), dropping


def unfreezing():
    model = ResidualStack(4, 10, gain=0.5)
    loss_of = classification(model)

    def loss_of_step(step):
        for place, block in enumerate(model.blocks):
            block.requires_grad_(place >= 3 - step // 20)
        return loss_of(step)

    return model, Adam(model.parameters(), 1e-3), loss_of_step


def regression_on_raw_targets():
    model = ResidualStack(4, 1, gain=0.3)
    return model, Adam(model.parameters(), 1e-2), regression(model, targets_scale=1e3)


HEALTHY = {
    make.__name__: make
    for make in (
        scales_that_begin_at_zero,
        one_scale_that_begins_at_zero,
        tiny_layer_scale,
        deep_without_skips,
        deep_and_normalised,
        converged,
        expert_without_tokens,
        head_that_has_learned,
        stochastic_depth,
        unfreezing,
        regression_on_raw_targets,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_stack_whose_blocks_differ_for_a_reason_is_left_alone(make):
    torch.manual_seed(0)
    assert [finding.cause for finding in told(train(*make(), 131), "vanishing")] == []


def sampled(norms, count):
    return [report(norms, step, 1.0, sampled=True) for step in range(count)]


def test_what_was_measured_is_said_with_its_figures():
    detector, layers = BranchVanishing(stack(4), Thresholds()), stack(4)
    now = report([1.0, 2.0, 1e-6, 3.0], 5, 1.0, sampled=True)
    result = detector.examine(now)
    assert sick_columns(result) == {2}
    assert result.threshold[2] == pytest.approx(2e-4)
    evidence = detector.explain(now, 2, [2])
    assert f"The gradient norm of {layers.names[2]} is 1e-06 at step 5, 2e+06 times less" in evidence.measured
    assert "through blocks.2, while its siblings learn" in evidence.cause[0]
    assert evidence.clues == ("one branch",)


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(stack(4, in_series=False), id="beside each other"),
        pytest.param(stack(4, name="towers.linear{}.weight"), id="no index in their names"),
        pytest.param(stack(2), id="one sibling alone"),
    ],
)
def test_what_has_no_siblings_in_series_is_not_judged(layers):
    norms = [1e-9, *[1.0] * (len(layers) - 1)]
    detector = BranchVanishing(layers, Thresholds())
    assert not any(result is not None and result.is_sick for result in examine_all(detector, sampled(norms, 20)))


def test_a_ratio_that_rises_raises_nothing():
    detector = BranchVanishing(stack(4), Thresholds())
    reports = [report([1.0, 1.0, 1e-9 * 2**step, 1.0], step, 1.0, sampled=True) for step in range(PATIENCE + 4)]
    results = examine_all(detector, reports)
    assert all(result.sick[2] for result in results)
    assert all(result.mending[2] for result in results[PATIENCE - 1 :])


def test_beside_a_norm_that_overflows_nothing_is_faint():
    detector = BranchVanishing(stack(4), Thresholds())
    reports = [report([math.inf, 1.0, 1e-9, math.inf], step, 1.0, sampled=True) for step in range(PATIENCE + 4)]
    assert examine_all(detector, reports) == [None] * len(reports)


def test_a_literal_threshold_replaces_the_rule():
    detector = BranchVanishing(stack(4), Thresholds(vanishing_norm=1e-12))
    assert examine_all(detector, sampled([1.0, 1.0, 1e-9, 1.0], 3)) == [None] * 3
