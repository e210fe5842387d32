"""Scales of a likelihood that begin at their floor, beside a slow twin and beside runs that look like it and learn."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.detect.silent_scale import SilentScale
from gradwatch.findings import Thresholds
from tests.detect.training import told, train
from tests.reports import NAN, run_of, table


def likelihood(deviation, target, centre):
    return ((target - centre) / deviation).square().mean() / 2 + deviation.log().mean()


def by_torch(deviation, target, centre):
    return F.gaussian_nll_loss(centre, target, deviation.square())


def by_distribution(deviation, target, centre):
    return -torch.distributions.Normal(centre, deviation).log_prob(target).mean()


def a_run(start, *, loss=likelihood, optimizer=torch.optim.SGD, rate=0.02, noise=0.5, floor=0.3, steps=90):
    """Findings of a Gaussian whose deviation is a softplus that begins at ``start``, on top of a floor."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"centre": nn.Linear(4, 1), "spread": nn.Linear(4, 1)})
    nn.init.constant_(model["spread"].bias, start)

    def loss_of(step):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step))
        target = x[:, :1] + noise * torch.randn(64, 1, generator=torch.Generator().manual_seed(1000 + step))
        return loss(floor + F.softplus(model["spread"](x)), target, model["centre"](x))

    return train(model, optimizer(model.parameters(), lr=rate), loss_of, steps)


@pytest.mark.parametrize("loss", [likelihood, by_torch, by_distribution])
def test_a_deviation_that_starts_at_nothing_is_found(loss):
    (finding,) = told(a_run(-25.0, loss=loss, rate=0.01), "dead")
    assert (finding.layer, finding.raised_step, finding.value) == ("spread.weight", 20, 1.0)
    assert "divides something in the loss" in finding.cause
    assert "spread.bias is -25 on average" in finding.cause


def squared_margin(deviation, target, centre):
    """A hinge that is satisfied, beside an error that is not."""
    return (target - centre).square().mean() + (deviation - 0.3).square().mean()


def logarithm_alone(deviation, target, centre):
    return (target - centre).square().mean() + deviation.log().mean()


def divided_alone(deviation, target, centre):
    return ((target - centre) / deviation).square().mean()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"start": 0.0}, id="it learns"),
        pytest.param({"start": 0.0, "noise": 0.0, "steps": 300, "rate": 0.1}, id="it has shrunk to its floor"),
        pytest.param({"start": -8.0, "optimizer": torch.optim.Adam}, id="Adam moves it, though it is flat at first"),
        pytest.param({"start": -25.0, "loss": squared_margin}, id="a hinge"),
        pytest.param({"start": -25.0, "loss": logarithm_alone}, id="nothing is divided by it"),
        pytest.param({"start": -25.0, "loss": divided_alone}, id="no likelihood"),
    ],
)
def test_what_learns_or_is_satisfied_is_no_finding(options):
    assert told(a_run(**options), "dead") == []


def reports_of(seed):
    random = np.random.default_rng(seed)
    reports = run_of(10.0 ** random.uniform(-1, 1, (40, 3)))
    for step in range(0, 40, 2):
        silent = np.where(random.random(3) < 0.1, NAN, (random.random(3) < 0.9).astype(float))
        moved = 10.0 ** random.uniform(-9, -5.5, 3)
        reports[step].figures.update({"update_ratio": moved} | ({"silent_scale": silent} if step % 10 else {}))
    return reports


@pytest.mark.parametrize("seed", range(20))
def test_it_says_what_its_twin_says(seed):
    reports, detector, seen = reports_of(seed), SilentScale(table(3), Thresholds()), [[], [], []]
    for report in reports:
        result, silent = detector.examine(report), report.figures.get("silent_scale")
        assert (result is None) == (silent is None)
        if silent is None:
            continue
        for column in range(3):
            seen[column].append(float(silent[column]))
            is_silent = seen[column][-1] == 1 and all(value == 1 or math.isnan(value) for value in seen[column])
            assert result.sick[column] == (is_silent and report.figures["update_ratio"][column] <= 1e-6)


def test_the_twin_meets_both():
    results = [SilentScale(table(3), Thresholds()).examine(report) for seed in range(20) for report in reports_of(seed)]
    assert {bool(each.sick.any()) for each in results if each is not None} == {False, True}
