"""Scores that go through a softmax over an axis of one entry, and attention over the right axis."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.detect.softmax_of_one import SoftmaxOfOne
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import of_tensors
from tests.detect.training import perceptron, told, train
from tests.reports import NAN, examine_all, report, sick_columns

Adam = torch.optim.Adam


def scores_table():
    """A layer and the scores after it; a value beside both; a head after all."""
    layers = of_tensors({f"{name}.weight": torch.zeros(2, 2) for name in ("hidden", "score", "value", "head")})
    after = np.zeros((4, 4), dtype=bool)
    after[0, [1, 3]] = after[1:3, 3] = True
    layers.connect(after, np.ones(4, dtype=bool))
    return layers


def slow_softmax_of_one(reports):
    """The rule in plain numbers for ``scores_table``: the sick columns of each sample."""
    verdicts, reached = [], set()
    for step in reports:
        norms = step.grad_norm.tolist()
        reached |= {column for column, norm in enumerate(norms) if norm > 0}
        is_seen = step.figures["softmax_of_one"][1] == 1 if "softmax_of_one" in step.figures else False
        verdicts.append({column for column in (0, 1) if norms[column] == 0} - reached if is_seen else set())
    return verdicts


@pytest.mark.parametrize("seed", range(10))
def test_the_rule_is_its_slow_twin(seed):
    random = np.random.default_rng(seed)
    reports = []
    for step in range(20):
        norms = [*random.choice([0.0, 1.0, NAN], 2, p=[0.9, 0.05, 0.05]), 1.0, 1.0]
        figures = {"activation_rms": np.ones(4)}
        if random.random() < 0.8:
            figures["softmax_of_one"] = np.array([NAN, 1.0, NAN, NAN])
        reports.append(report(norms, step, 1.0, sampled=True, figures=figures))
    found = examine_all(SoftmaxOfOne(scores_table(), Thresholds()), reports)
    assert [sick_columns(result) for result in found] == slow_softmax_of_one(reports)


def test_a_sample_without_activations_says_nothing_and_a_literal_threshold_replaces_the_rule():
    plain = report([0.0, 0.0, 1.0, 1.0], 0, 1.0, sampled=True)
    assert SoftmaxOfOne(scores_table(), Thresholds()).examine(plain) is None
    assert SoftmaxOfOne(scores_table(), Thresholds(vanishing_norm=1.0)).examine(plain) is None


class Pooled(nn.Module):
    """The mean of items, weighed by a softmax of their scores over ``axis``."""

    def __init__(self, axis):
        super().__init__()
        self.score, self.value, self.head = perceptron(3, 16, 1, function=nn.Tanh), nn.Linear(3, 8), nn.Linear(8, 1)
        self.axis = axis

    def forward(self, items):
        weights = self.score(items).softmax(self.axis)
        return self.head(torch.tanh((weights * self.value(items)).sum(1)))


class Spatial(nn.Module):
    """A map of one channel that weighs the places of an image."""

    def __init__(self, is_over_channels):
        super().__init__()
        self.stem, self.map, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 1), nn.Linear(4, 1)
        self.is_over_channels = is_over_channels

    def forward(self, images):
        hidden = torch.relu(self.stem(images))
        scores = self.map(hidden)
        weights = F.softmax(scores, 1) if self.is_over_channels else F.softmax(scores.flatten(2), -1).view_as(scores)
        return self.head((weights * hidden).sum((2, 3)))


class OneToken(nn.Module):
    """Attention to a context of one token: queries and keys have no gradient, and nothing is wrong."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 4)
        self.head = nn.Linear(7, 1)

    def forward(self, items):
        context = items[:, :1]
        weights = (self.query(items) @ self.key(context).transpose(1, 2)).softmax(-1)
        return self.head(torch.cat([items, weights @ self.value(context)], -1)).mean(1)


class OneExpert(nn.Module):
    """A mixture that was configured with a single expert, over rows."""

    def __init__(self):
        super().__init__()
        self.router, self.expert = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, items):
        rows = items.flatten(0, 1)
        return (self.router(rows).softmax(-1) * self.expert(rows)).view(len(items), -1).mean(1, keepdim=True)


def pieces(model, shape=(64, 8, 3)):
    def loss_of(_):
        inputs = torch.randn(shape)
        return F.mse_loss(model(inputs), inputs.flatten(1)[:, :1])

    return model, Adam(model.parameters(), 5e-3), loss_of


SCORES = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")


@pytest.mark.parametrize(
    ("make", "sick"),
    [
        (lambda: pieces(Pooled(-1)), set(SCORES)),
        (lambda: pieces(Spatial(True), (64, 1, 8, 8)), {"map.weight", "map.bias"}),
        (lambda: pieces(nn.Sequential(nn.Linear(3, 3), Pooled(2))), {f"1.{name}" for name in SCORES}),
    ],
)
def test_scores_before_a_softmax_over_one_entry_are_found(make, sick):
    torch.manual_seed(0)
    (vanishing,) = told(train(*make(), 40), "vanishing")
    assert set(vanishing.layers) == sick
    assert "goes over an axis of one entry" in vanishing.cause
    assert vanishing.remedies[0].name == "softmax-over-classes"


HEALTHY = {
    "pooled_over_items": lambda: pieces(Pooled(1)),
    "bags_of_one_item": lambda: pieces(Pooled(1), (64, 1, 3)),
    "spatial": lambda: pieces(Spatial(False), (64, 1, 8, 8)),
    "one_token": lambda: pieces(OneToken()),
    "one_expert": lambda: pieces(OneExpert()),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
def test_attention_over_the_right_axis_is_left_alone(make):
    torch.manual_seed(0)
    assert "axis of one entry" not in str([finding.cause for finding in train(*make(), 40)])
