"""What is said where a script dies of an exception before an update shows anything; and why a gradient is exactly 0."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.explain.last_words import last_words


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(3, 1)

    def forward(self, state):
        return torch.distributions.Normal(self.mean(state), 1.0)


def raised_by(function, *arguments):
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_the_rows_of_what_the_model_was_given_are_told():
    state = torch.randn(4, 3)
    state[2, 1] = math.nan
    said = last_words(raised_by(Policy(), state))
    assert said == "the last thing that Policy was given held NaN, in 1 of 4 rows: 2; the script ended by ValueError"


def test_nothing_is_said_where_nothing_was_sick():
    assert last_words(raised_by(Policy(), torch.randn(4, 2))) is None
    assert last_words(raised_by(Policy(), torch.full((4, 2), -math.inf))) is None
    assert last_words(KeyboardInterrupt()) is None
    assert last_words(None) is None


def test_the_watcher_says_it_on_the_exceptions_way_out(caplog):
    policy = Policy()
    with pytest.raises(ValueError), gradwatch.watch(policy, torch.optim.SGD(policy.parameters(), lr=0.1)):
        policy(torch.full((1, 3), math.nan))
    assert "the last thing that Policy was given held NaN, in 1 of 1 rows: 0" in caplog.text


# a gradient that is exactly 0


def vanishing_of(model, loss_of):
    torch.manual_seed(0)
    x = torch.randn(32, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(60):
            optimizer.zero_grad()
            loss_of(model(x)).backward()
            optimizer.step()
    (finding,) = (finding for finding in watcher.findings if finding.kind == "vanishing")
    return finding


def names_of(finding):
    return [advice.name for advice in finding.remedies]


def test_a_softmax_over_one_entry_is_the_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(dim=1))
    finding = vanishing_of(model, lambda p: F.binary_cross_entropy(p, (torch.arange(32) % 2.0)[:, None]))
    assert "A softmax runs over axis 1 of shape (32, 1), which has one entry" in finding.cause
    assert names_of(finding)[0] == "softmax-over-classes"


class Zeros(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def stack(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), middle, nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def test_a_layer_that_is_given_zeros_is_told_so():
    finding = vanishing_of(stack(Zeros()), lambda y: F.cross_entropy(y, torch.arange(32) % 3))
    assert "The gradient of 3.weight is exactly 0 while that of 3.bias is" in finding.cause
    assert names_of(finding) == ["nonzero-gain"]


def test_a_gain_of_zero_is_named():
    model = stack(nn.Identity())
    nn.init.zeros_(model[1].weight)
    model[1].weight.requires_grad_(True).register_hook(torch.zeros_like)  # as where what it multiplies is 0, too
    finding = vanishing_of(model, lambda y: F.cross_entropy(y, torch.arange(32) % 3))
    assert "1.weight is 0 throughout, so that no gradient passes it" in finding.cause
    assert names_of(finding)[0] == "nonzero-gain"
