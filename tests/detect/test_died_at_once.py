"""A run whose gradients turn exactly zero at once, and runs that only look like one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.detect.died_at_once import DiedAtOnce
from gradwatch.findings import Thresholds
from tests.detect.training import told, train
from tests.reports import examine_all, run_of, table


def is_sick(norms, losses, thresholds=None):
    detector = DiedAtOnce(table(1), thresholds or Thresholds())
    results = examine_all(detector, run_of([[norm] for norm in norms], losses))
    return [bool(result.sick[0]) for result in results]


@pytest.mark.parametrize(
    ("norms", "losses", "expected"),
    [
        pytest.param([1, 0, 0, 0], [5, 4, 4, 4], [False, True, True, True], id="dead after one update"),
        pytest.param([0, 1, 1, 0], [5, 5, 4, 4], [False, False, False, True], id="dead after two"),
        pytest.param([0, 0, 0, 0], [5, 5, 5, 5], [False] * 4, id="never any: the other rule"),
        pytest.param([1, 1, 1, 0], [5, 4, 4, 4], [False] * 4, id="it has learned"),
        pytest.param([1, 0, 0, 0], [5, 0, 0, 0], [False] * 4, id="a hinge that is satisfied"),
        pytest.param([1, 0, 0, 0], None, [False] * 4, id="no loss"),
        pytest.param([1, 0, 0, 0], [-5, -4, -4, -4], [False] * 4, id="a loss below zero"),
    ],
)
def test_zero_beside_a_loss_from_the_second_or_third_update_on_is_sick(norms, losses, expected):
    assert is_sick(norms, losses) == expected


def test_a_threshold_that_is_set_replaces_the_rule():
    assert not any(is_sick([1, 0, 0, 0], [5, 4, 4, 4], Thresholds(vanishing_norm=1e-9)))


INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS.sum(1, keepdim=True) > 0).float()


def findings_of(rate, loss, steps=10):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.ReLU())
    nn.init.constant_(model[2].bias, 0.5)
    return train(model, torch.optim.SGD(model.parameters(), rate), lambda _: loss(model(INPUTS)), steps)


def clamped_cross_entropy(p):
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(LABELS * p.log() + (1 - LABELS) * (1 - p).log()).mean()


def test_a_relu_that_dies_at_the_first_update_is_found_in_a_run_of_ten():
    findings = told(findings_of(50.0, lambda y: F.mse_loss(y, LABELS)), "dead")
    assert [finding.raised_step <= 6 for finding in findings] == [True]
    assert (findings[0].layer, findings[0].remedies[0].name) == ("2.weight", "leaky-relu")
    assert "No gradient passes the relu before the loss" in findings[0].cause


def test_a_mask_that_shuts_after_the_first_update_is_found_in_a_run_of_ten():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    loss_of = lambda step: F.mse_loss(model(INPUTS) * (step == 0), LABELS)
    findings = told(train(model, torch.optim.SGD(model.parameters(), 0.1), loss_of, 10), "vanishing")
    assert [finding.raised_step <= 6 for finding in findings] == [True]
    assert "exactly zero" in findings[0].measured


def test_one_that_learns_is_no_finding():
    assert findings_of(0.05, clamped_cross_entropy) == []
