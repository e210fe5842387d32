"""Layers that a clip by the total norm pushes below the optimizer's epsilon, and runs that only look like it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.detect.clipped_below_epsilon import (
    EPSILON,
    FALLEN,
    FOLLOWS,
    HALF,
    SAMPLES,
    TIGHT,
    WOULD_MOVE,
    ClippedBelowEpsilon,
)
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_model, of_tensors
from tests.reports import NAN, examine_all, findings, report, sick_columns

SIZES = np.array([16, 400, 400])  # a loud vector and two quiet matrices
RATE = 1e-3


def layers():
    return of_tensors({"loud": torch.ones(16), "first": torch.ones(20, 20), "second": torch.ones(20, 20)})


def run_of(
    norms=(1e5, 0.2, 0.2), limit=1e-4, moved=(0.3, 1e-3, 1e-3), weights=(4.0, 2.0, 2.0), loss=2.0, updates=200, **rest
):
    """A run sampled at every tenth update; ``moved`` is the root mean square of each layer's update ÷ rate."""
    reports = []
    for step in range(0, updates, 10):
        total = float(np.linalg.norm(np.nan_to_num(norms)))
        now = loss(step) if callable(loss) else loss
        each = report(
            norms,
            step,
            now,
            sampled=True,
            size=SIZES,
            grad_norm_clipped_total=min(limit, total),
            **({"learning_rate": RATE} | rest),
        )
        rate = each.learning_rate or RATE
        each.figures["weight_norm"] = np.array(weights, dtype=float)
        with np.errstate(divide="ignore"):
            each.figures["update_ratio"] = np.array(moved) * rate * np.sqrt(SIZES) / np.array(weights)
        reports.append(each)
    return reports


def told(reports, thresholds=None, table=None):
    found = findings(reports, thresholds, table or layers())
    return [finding for finding in found if "epsilon" in finding.figure]


def test_layers_below_epsilon_are_stalled_and_the_loud_one_is_named():
    (finding,) = told(run_of())
    assert (finding.kind, finding.severity, finding.layers) == ("stalled", "warning", ("first", "second"))
    assert (finding.step, finding.raised_step) == (0, 10 * (11 - 1))  # ten losses do not show a fall
    assert finding.value == pytest.approx(0.2 * 1e-9 / 20)
    assert finding.threshold == EPSILON
    assert "Clipping leaves 1e-09 of every gradient" in finding.measured
    assert "2 layers do not move because all gradients are cut by one factor" in finding.cause
    assert "of which loud alone makes 100%" in finding.cause
    assert finding.remedies[0].name == "looser-clip"


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param({"limit": 1e9}, id="nothing is clipped"),
        pytest.param({"limit": 1.0}, id="more than epsilon is left"),
        pytest.param({"moved": (0.3, 0.3, 0.3)}, id="a smaller epsilon, or none"),
        pytest.param({"moved": (0.3, 0.3, 1e-3), "norms": (1e5, 0.2, 2e-9)}, id="a gradient that is tiny by itself"),
        pytest.param({"moved": (0.3, 0.3, 1e-3)}, id="one layer of two"),
        pytest.param({"loss": lambda step: 2.0 * 0.99**step}, id="the loss comes down"),
        pytest.param({"loss": None}, id="no loss"),
        pytest.param({"learning_rate": 0.0}, id="a rate of 0"),
        pytest.param({"learning_rate": None}, id="no rate"),
        pytest.param({"moved": (0.3, 0.2, 0.2), "learning_rate": 1e-9}, id="the end of a schedule"),
        pytest.param({"moved": (1e-3, 1e-17, 1e-17)}, id="a gradient that would move nothing without clipping"),
        pytest.param({"weights": (4.0, 0.0, 0.0), "moved": (0.3, NAN, NAN)}, id="weights that are zero"),
        pytest.param({"skipped": True}, id="no update was made"),
        pytest.param({"updates": 90}, id="too few samples"),
    ],
)
def test_healthy_runs_raise_nothing(rest):
    assert told(run_of(**rest)) == []


def test_weight_decay_does_not_count_as_learning():
    assert len(told(run_of(moved=(0.3, 0.01, 0.01)))) == 1


def test_embeddings_say_nothing():
    model = nn.ModuleDict({"loud": nn.Linear(4, 4, bias=False), "first": nn.Embedding(20, 20)})
    model["second"] = nn.Embedding(20, 20)
    assert told(run_of(), table=of_model(model)) == []


def test_a_threshold_that_the_user_sets_replaces_the_rule():
    assert told(run_of(), Thresholds(stalled_update_ratio=1e-12)) == []


def slow_verdict(reports):
    """The sick layers at the last report, in the plainest words; None where an earlier fall of the loss spoils it."""
    losses, held = [], []
    for each in reports:
        total, left = each.grad_norm_total, each.grad_norm_clipped_total
        share = left / total
        held = []
        losses.append(each.loss)
        for column in range(3):
            root = float(SIZES[column]) ** 0.5
            ratio, norm = each.figures["update_ratio"][column], each.figures["weight_norm"][column]
            is_below = share < TIGHT and each.grad_norm[column] * share / root < EPSILON
            follows = ratio * norm / root <= FOLLOWS * each.learning_rate
            if is_below and follows and ratio >= WOULD_MOVE * share:
                held.append(column)
        if sum(SIZES[column] for column in held) < HALF * sum(SIZES):
            held, losses = [], []
    beginning, recent = (sum(losses[:10]) / len(losses[:10]) if losses else 0.0), 0.0
    for count, loss in enumerate(losses, 1):
        recent += (loss - recent) / min(count, 50)
    mends = len(losses) <= 10 or beginning - recent > FALLEN * abs(beginning)
    return set(held), mends


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_twin_finds_the_same(seed):
    random = np.random.default_rng(seed)
    reports = []
    for start in range(0, 300, 10):
        norms = 10.0 ** random.normal([5, -0.7, -0.7], [1, 0.5, 0.5])
        moved = 10.0 ** random.normal([-0.5, -3, -2.5], 0.7)
        (each,) = run_of(norms, 10.0 ** random.uniform(-4, 1 - 4 * (seed % 2)), moved, updates=10)
        step = {"step": start, "update": start, "loss": 2.0 - 0.0005 * start * (seed % 3)}
        reports.append(each.__class__(**{**vars(each), **step}))
    results = examine_all(ClippedBelowEpsilon(layers(), Thresholds()), reports)
    for index, result in enumerate(results):
        held, mends = slow_verdict(reports[: index + 1])
        assert sick_columns(result) == held
        if held:
            assert bool(result.mending.all()) == bool(result.mending.any()) == mends


class WithLoudScale(nn.Module):
    """A classifier beside one vector whose gradient is as large as ``loud``, and of no use."""

    def __init__(self, loud):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.scale, self.loud = nn.Parameter(torch.ones(16)), loud

    def loss(self, inputs, targets):
        noise = self.loud * ((self.scale - self.scale.detach()) * torch.randn(16)).sum() / 4  # 0, and so no loss
        return F.cross_entropy(self.net(inputs), targets) + noise


def trained(make, limit, loud=1e5, updates=220):
    torch.manual_seed(0)
    model, truth = WithLoudScale(loud), torch.randn(8, 4)
    optimizer = make(model.parameters())
    with gradwatch.watch(model, optimizer, clip=limit) as watcher:
        for _ in range(updates):
            inputs = torch.randn(32, 8)
            model.loss(inputs, (inputs @ truth).argmax(1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [finding for finding in watcher.findings if finding.kind == "stalled"]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_optimizers_of_adams_kind_stand_still_where_one_layer_is_loud(make):
    (finding,) = trained(lambda parameters: make(parameters, lr=1e-3), 1e-4)
    assert set(finding.layers) >= {"net.0.weight", "net.2.weight"}
    assert "of which scale alone makes 100%" in finding.cause
    assert finding.remedies[0].name == "looser-clip"


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        pytest.param(lambda parameters: torch.optim.Adam(parameters, lr=1e-3), 10.0, id="Adam above its epsilon"),
        pytest.param(lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-20), 1e-4, id="a smaller epsilon"),
        pytest.param(
            lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
            gradwatch.clip.by_layer_norm(1e-4),
            id="each layer by its own norm",
        ),
    ],
)
def test_the_same_run_is_no_finding_where_its_layers_move(make, limit):
    assert trained(make, limit) == []


def test_patience_counts_samples():
    (finding,) = told(run_of(updates=300), Thresholds(patience=20))
    assert finding.raised_step == 190 != 10 * (SAMPLES - 1)
