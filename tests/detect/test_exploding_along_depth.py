"""Activations, or gradients, that layer after layer multiplies are found in the first updates."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from gradwatch.detect.exploding_along_depth import (
    INNER,
    LEVERAGE,
    LOOKED_AT,
    MOVED,
    RECENT,
    RISE,
    SLOW,
    STEADY,
    STEADY_OF_RISE,
    STEEP,
    WINDOW,
    ExplodingAlongDepth,
)
from gradwatch.findings import Thresholds
from tests.detect.test_exploding_at_birth import FixedPoint, UnscaledAttention
from tests.detect.training import (
    Recurrent,
    ResidualStack,
    classification,
    perceptron,
    regression,
    sequences,
    told,
    train,
)
from tests.reports import NAN, examine_all, onsets, report, sick_columns, table

SGD, Adam = torch.optim.SGD, torch.optim.Adam


def slow_along_depth(reports):  # one long loop on purpose: a twin of the rule
    """The rule in plain numbers: the sick columns of each step, None where the step says nothing."""
    verdicts, losses, moved = [], [], False
    for step in reports:
        if step.update > WINDOW:
            verdicts.append(set())
            continue
        if any(step.nonfinite > 0) or (step.loss is not None and not math.isfinite(step.loss)):
            verdicts.append(None)
            continue
        if step.loss is not None:
            losses.append(step.loss)
        if not step.sampled:
            verdicts.append(None)
            continue
        recent = losses[-RECENT:]
        knows = step.update >= LOOKED_AT and losses and losses[0] > 0
        stays = bool(knows and sum(recent) / len(recent) >= SLOW * losses[0])
        moved_before = moved
        ratios = step.figures.get("update_ratio", np.array([]))
        moved = moved or (not step.skipped and any(ratio > MOVED for ratio in ratios.tolist()))
        sick = set()
        returned = [(column, rms) for column, rms in enumerate(step.figures["activation_rms"].tolist()) if rms > 0]
        if len(returned) > 1:
            kept = [min(rms for _, rms in returned[place:]) for place in range(len(returned))]
            decades = [math.log10(after / before) for before, after in pairwise(kept)]
            rise, steady = sum(decades), sum(decades) - max(decades)
            inner = math.log10(kept[-2] / max(1.0, returned[0][1]))
            slow = rise >= RISE and steady >= STEADY_OF_RISE and stays
            if steady >= STEADY or slow or (inner >= INNER and not moved_before):
                sick = {column for (column, _), each in zip(returned[1:], decades, strict=True) if each > 0}
        if not sick and stays:
            weights = [column for column, norm in enumerate(step.grad_norm.tolist()) if norm == norm]
            for column in weights:
                leverage = step.grad_norm[column] * step.figures["weight_norm"][column] / step.loss
                last = step.grad_norm[weights[-1]]
                if leverage >= LEVERAGE and step.grad_norm[column] >= STEEP * last and len(weights) > 1:
                    sick.add(column)
        verdicts.append(sick)
    return verdicts


def random_births(seed):
    random = np.random.default_rng(seed)
    count, growth, falls = 5, random.choice([0.1, 0.7, 1.5]), random.choice([0.5, 0.99, 1.0])
    reports = []
    for step in range(13):
        norms = 10.0 ** np.sort(random.normal(0, random.choice([0.3, 3.0]), count))[::-1]
        norms[random.random(count) < 0.1] = NAN
        figures = {}
        if is_sampled := step in (0, 1, 2, 4, 8, 10):
            rms = 10.0 ** (growth * np.arange(count) + random.normal(0, 0.4, count))
            rms[-2:] *= random.choice([1.0, 1.0, 1e5])
            rms[random.random(count) < 0.1] = NAN
            rms[random.random(count) < 0.05] = 0.0
            ratios = 10.0 ** random.normal(-2, 1, count)
            figures = {"activation_rms": rms, "weight_norm": np.full(count, 10.0), "update_ratio": ratios}
        loss = float(falls**step * random.uniform(0.98, 1.02))
        nonfinite = (random.random(count) < 0.01).astype(int)
        reports.append(report(norms, step, loss, sampled=is_sampled, figures=figures, nonfinite=nonfinite))
    return reports


@pytest.mark.parametrize("seed", range(60))
def test_the_rule_is_its_slow_twin(seed):
    reports = random_births(seed)
    found = examine_all(ExplodingAlongDepth(table(5), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_along_depth(reports)


def test_the_random_runs_are_sick_and_healthy():
    sick = [seed for seed in range(60) if any(slow_along_depth(random_births(seed)))]
    assert 10 < len(sick) < 50


def residual_classifier():
    model = ResidualStack(40, 10)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def residual_regression():
    model = ResidualStack(24, 1)
    return model, Adam(model.parameters(), 1e-3), regression(model)


def large_initialisation():
    model = perceptron(32, 128, 128, 128, 128, 1, std=2.0)
    return model, Adam(model.parameters(), 1e-3), regression(model)


def deep_and_linear():
    model = perceptron(32, *[64] * 20, 1, std=2 / 8, function=nn.Identity)
    return model, Adam(model.parameters(), 1e-3), regression(model)


def unscaled_attention():
    model = UnscaledAttention(10)
    return model, Adam(model.parameters(), 1e-3), sequences(model, 12)


def implicit_layer():
    model = FixedPoint()
    return model, Adam(model.parameters(), 1e-3), regression(model)


def chaotic_tanh():
    model = Recurrent(3.0, "tanh", is_random=True)
    return model, Adam(model.parameters(), 1e-4), sequences(model, 50)


def convolutions():
    parts = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    for _ in range(8):
        parts += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(nn.Unflatten(1, (1, 4, 8)), *parts, nn.Flatten(), nn.Linear(16 * 32, 10))
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.5)
    return model, Adam(model.parameters(), 1e-3), classification(model)


SICK = {
    make.__name__: make
    for make in (
        residual_classifier,
        residual_regression,
        large_initialisation,
        deep_and_linear,
        unscaled_attention,
        implicit_layer,
        chaotic_tanh,
        convolutions,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("make", SICK.values(), ids=SICK)
def test_a_stack_that_multiplies_is_found_under_adam_whose_updates_are_small(make):
    torch.manual_seed(0)
    exploding = told(train(*make(), 12), "exploding")
    assert len(exploding) == 1
    assert exploding[0].raised_step <= 10


class TinyEmbedding(nn.Module):
    """An embedding that begins at 1e-4 before a normalisation: a rise of 1e4 in one step."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(100, 64), nn.LayerNorm(64)
        self.rest = perceptron(64, 128, 100)
        nn.init.normal_(self.embedding.weight, std=1e-4)

    def forward(self, ids):
        return self.rest(self.norm(self.embedding(ids)))


def tiny_embedding_under_warm_up():
    model = TinyEmbedding()
    optimizer = Adam(model.parameters(), 1e-3)
    ids = torch.randint(100, (512,))

    def loss_of(step):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 200)
        batch = torch.randint(len(ids), (64,))
        return nn.functional.cross_entropy(model(ids[batch]), (7 * ids[batch] + 3) % 100)

    return model, optimizer, loss_of


def deep_and_normalised():
    model = ResidualStack(30, 10, normalises=True)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def branches_that_begin_at_zero():
    model = ResidualStack(30, 10, gain=0.0)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def small_branches_without_normalisation():
    model = ResidualStack(12, 10, gain=0.2)
    return model, Adam(model.parameters(), 1e-3), classification(model)


def raw_inputs():
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), 1e-3), regression(model, inputs_scale=1e4)


def raw_targets():
    model = perceptron(32, 64, 64, 1)
    return model, Adam(model.parameters(), 1e-2), regression(model, targets_scale=1e4)


def head_that_meets_raw_targets_at_once():
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 1))
    return model, SGD(model.parameters(), 0.01), regression(model, targets_scale=3.0)


def orthogonal_recurrence():
    model = Recurrent(1.0, "relu")
    return model, Adam(model.parameters(), 1e-3), sequences(model, 50)


def slow_start_without_progress():
    model = perceptron(32, 64, 64, 64, 10)
    return model, SGD(model.parameters(), 1e-5), classification(model)


class Pretrained(nn.Module):
    """Blocks whose inner layers have a few huge activations, as large language models have, and a final norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(32, 64)
        self.blocks = nn.ModuleList(nn.ModuleList([nn.LayerNorm(64), nn.Linear(64, 64)]) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)
        nn.init.normal_(self.stem.weight, std=2e-3)
        with torch.no_grad():
            self.blocks[1][1].weight[0] *= 1e4

    def forward(self, inputs):
        hidden = self.stem(inputs)
        for norm, linear in self.blocks:
            hidden = hidden + linear(norm(hidden))
        return self.head(self.norm(hidden))


def fine_tuning_with_massive_activations():
    model = Pretrained()
    return model, Adam(model.parameters(), 1e-6), classification(model)


HEALTHY = {
    make.__name__: make
    for make in (
        tiny_embedding_under_warm_up,
        deep_and_normalised,
        branches_that_begin_at_zero,
        small_branches_without_normalisation,
        raw_inputs,
        raw_targets,
        head_that_meets_raw_targets_at_once,
        orthogonal_recurrence,
        slow_start_without_progress,
        fine_tuning_with_massive_activations,
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_a_run_that_only_looks_like_it_is_left_alone(make):
    torch.manual_seed(0)
    assert train(*make(), 21) == []


def depth_report(rms, step=1, loss=1.0, **figures):
    figures = {"activation_rms": np.array(rms), "weight_norm": np.ones(len(rms))} | figures
    return report([1.0] * len(rms), step, loss, sampled=True, figures=figures)


def test_what_was_measured_is_said_with_its_figures():
    detector, now = ExplodingAlongDepth(table(4), Thresholds()), depth_report([1.0, 1e2, 1e4, 1e6])
    result = detector.examine(now)
    assert sick_columns(result) == {1, 2, 3}
    assert (result.value[3], result.threshold[3]) == pytest.approx((1e6, 1e4))
    evidence = detector.explain(now, 3, [1, 2, 3])
    assert "The layer of w3 returns" not in evidence.measured
    assert (
        "root mean square of 1e+06 at step 1, 1e+06 times that of w0 (normal: up to 10000 times)" in evidence.measured
    )
    assert evidence.cause == ("Activations are multiplied layer after layer: by 100 each, over 3 layers.",)
    assert evidence.clues == ("grows along depth",)


def test_a_weight_with_leverage_is_named_while_the_loss_stays():
    detector = ExplodingAlongDepth(table(2), Thresholds())
    runs = [report([1e5, 1.0], step, 2.0, sampled=True, figures={"weight_norm": np.full(2, 3.0)}) for step in range(9)]
    assert [onsets(result) if result and result.onset is not None else sick_columns(result) for result in
            examine_all(detector, runs)] == [*[set()] * 8, {0}]  # fmt: skip
    evidence = detector.explain(runs[-1], 0, [0])
    assert "The gradient norm of w0 is 1e+05 at step 8" in evidence.measured
    assert "by 1.5e+03 times its value" in evidence.measured


@pytest.mark.parametrize(
    ("rms", "why"),
    [
        ([1.0, 1e5, 1e5], "one step, whatever its reason, of which the last layer but one is short of the limit"),
        ([1.0, 1e3, 1e6, 1.0], "a normalisation at the end takes it back"),
        ([1e-4, 1.0, 1.0, 1.0], "one step, after an embedding near zero"),
        ([1e5, 1e5, 1e5], "raw inputs"),
        ([1.0, 3.0, 10.0, 30.0], "the rise of healthy programs"),
        ([0.0, NAN, 1e9], "nothing to compare with"),
    ],
)
def test_a_rise_that_is_none(rms, why):
    detector = ExplodingAlongDepth(table(len(rms)), Thresholds())
    has_moved = depth_report([1.0] * len(rms), step=0, update_ratio=np.full(len(rms), 2.0))
    detector.examine(has_moved)
    assert sick_columns(detector.examine(depth_report(rms))) == set(), why


def test_a_step_with_nan_is_left_to_nonfinite_and_a_literal_threshold_replaces_the_rule():
    assert ExplodingAlongDepth(table(3), Thresholds()).examine(depth_report([1.0, 1e4, 1e8], loss=NAN)) is None
    literal = ExplodingAlongDepth(table(3), Thresholds(exploding_growth=5.0))
    assert sick_columns(literal.examine(depth_report([1.0, 1e4, 1e8]))) == set()
