"""Targets that the function at the output cannot give: the rule against a slow twin, and programs of both kinds."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.detect.out_of_reach import OutOfReach
from gradwatch.findings import Thresholds
from tests.detect.training import told, train
from tests.reports import NAN, examine_all, run_of, table


def twin(rows):
    """Whether each sample is sick, from its (floor, error, size) and those before it; NaN is no sample."""
    known = [row for row in rows if row[0] == row[0]]
    share = [floor / error for floor, error, _ in known]
    relative = [error / size for _, error, size in known]
    sick, place = [], 0
    for floor, _, size in rows:
        if floor != floor:
            sick.append(False)
            continue
        place += 1
        count = min(place, 3)
        first_share = sum(share[:count]) / count
        much = floor >= 0.25 * size and share[place - 1] >= 0.25
        stays = place >= 10 and all(
            known[at][0] >= 0.25 * known[at][2]
            and share[at] >= 0.25
            and relative[at] >= 0.9 * sum(relative[: min(at + 1, 3)]) / min(at + 1, 3)
            for at in range(place - 10, place)
        )
        sick.append(much and (first_share >= 0.8 or stays))
    return sick


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_what_its_twin_says(seed):
    random = np.random.default_rng(seed)
    level, falls = random.uniform(0.2, 1), random.choice([0.0, 0.01, 0.1])
    rows, reports = [], run_of(np.ones((30, 2)))
    for step, report in enumerate(reports):
        size = random.uniform(1, 2)
        error = size * (1 + np.exp(-falls * step)) * random.uniform(0.97, 1.03)
        row = (level * min(error, size), error, size) if random.random() < 0.9 else (NAN, NAN, NAN)
        rows.append(row)
        for name, value in zip(("target_floor", "target_error", "target_size"), row, strict=True):
            report.figures[name] = np.array([NAN, value])
    table_of_two = table(2)
    results = examine_all(OutOfReach(table_of_two, Thresholds()), reports)
    assert [result is not None and bool(result.sick[1]) for result in results] == twin(rows)
    assert not any(result is not None and result.sick[0] for result in results)


INPUTS = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
SCORES = INPUTS.sum(1, keepdim=True) / 2.5


def findings_of(function, targets, loss=F.mse_loss, steps=40, rate=0.003):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), function)
    nn.init.constant_(model[2].bias, 0.5)  # so that a ReLU is not dead from the start
    return train(model, torch.optim.Adam(model.parameters(), rate), lambda step: loss(model(INPUTS), targets), steps)


SICK = {
    "sigmoid for 3 to 103": (nn.Sigmoid(), 50 + 20 * SCORES, F.mse_loss),
    "tanh for prices": (nn.Tanh(), 2e5 + 5e4 * SCORES, F.l1_loss),
    "relu for what is negative": (nn.ReLU(), SCORES - 8, F.mse_loss),
    "by hand": (nn.Sigmoid(), 50 + 20 * SCORES, lambda y, t: (t - y).square().mean()),
}


@pytest.mark.parametrize("program", SICK.values(), ids=SICK)
def test_an_output_that_cannot_reach_its_targets_is_stalled(program):
    (finding,) = told(findings_of(*program), "stalled")
    assert finding.layer == "2.weight"
    assert finding.raised_step <= 10
    assert "The function at the output gives" in finding.cause
    assert [advice.name for advice in finding.remedies] == ["linear-output"]
    assert "% of the error is out of its reach, normal below 25%" in finding.message


def test_half_of_the_targets_below_a_relu_are_found_once_the_error_stays():
    (finding,) = told(findings_of(nn.ReLU(), SCORES, steps=120, rate=1e-5), "stalled")
    assert finding.raised_step >= 60
    assert [advice.name for advice in finding.remedies] == ["linear-output"]


HEALTHY = {
    "labels of 0 and 1": (nn.Sigmoid(), (SCORES > 0).float()),
    "5 % beyond a tanh": (nn.Tanh(), 1.05 * torch.tanh(3 * SCORES)),
    "standard normal targets of a tanh": (nn.Tanh(), SCORES),
    "counts with noise": (nn.ReLU(), (3 * SCORES).clamp(min=0).round() + 0.1 * INPUTS[:, :1]),
    "between −1 and 1 for a sigmoid": (nn.Sigmoid(), torch.tanh(SCORES - 1)),
}


@pytest.mark.parametrize("program", HEALTHY.values(), ids=HEALTHY)
def test_targets_within_reach_or_nearly_are_no_finding(program):
    assert findings_of(*program, steps=200) == []


def test_a_run_that_goes_on_from_a_checkpoint_is_judged_by_its_targets_not_by_what_is_left_of_its_error():
    torch.manual_seed(0)
    targets = 1.05 * torch.tanh(3 * SCORES)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Tanh())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    loss_of = lambda _: F.mse_loss(model(INPUTS), targets)
    train(model, optimizer, loss_of, 400)
    assert train(model, optimizer, loss_of, 100) == []


class Dense(nn.Module):
    """A layer that applies its own function and keeps its parameters in a dict, bias first, as those of Keras do."""

    def __init__(self, inputs, outputs, function):
        super().__init__()
        weight, bias = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5), nn.Parameter(torch.zeros(outputs))
        self.kept = nn.ParameterDict({"bias": bias, "kernel": weight})
        self.function = function

    def forward(self, x):
        return self.function(x @ self.kept["kernel"] + self.kept["bias"])


def test_a_function_inside_the_layer_itself_belongs_to_that_layer():
    torch.manual_seed(0)
    model = nn.Sequential(Dense(6, 16, torch.relu), Dense(16, 1, torch.sigmoid))
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    findings = train(model, optimizer, lambda _: F.mse_loss(model(INPUTS), 50 + 20 * SCORES), 40)
    assert [finding.layer for finding in findings] == ["1.kept.kernel"]
