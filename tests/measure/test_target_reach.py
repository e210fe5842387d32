"""How far targets lie out of reach, against slow loops over their entries in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.measure.target_reach import target_reach

SIGMOID = torch.sigmoid, 0.0, 1.0
FUNCTIONS = {
    "sigmoid": SIGMOID,
    "tanh": (torch.tanh, -1.0, 1.0),
    "softmax": (lambda x: x.softmax(-1), 0.0, 1.0),
    "relu": (torch.relu, 0.0, math.inf),
    "relu6": (F.relu6, 0.0, 6.0),
    "clamp": (lambda x: x.clamp(max=2), -math.inf, 2.0),
    "hardsigmoid": (F.hardsigmoid, 0.0, 1.0),
    "logsigmoid": (F.logsigmoid, -math.inf, 0.0),
}


def product_of(difference):
    return difference * difference


ERRORS = {
    "mse_loss": (F.mse_loss, 2),
    "turned round": (lambda y, t: F.mse_loss(t, y), 2),
    "l1_loss": (F.l1_loss, 1),
    "huber_loss": (F.huber_loss, 1),
    "by hand": (lambda y, t: (y - t).square().mean(-1).sum() / len(y), 2),
    "by hand, turned round": (lambda y, t: (t - y).abs().mean(), 1),
    "a product": (lambda y, t: product_of(y - t).mean(), 2),
    "its root": (lambda y, t: F.mse_loss(y, t).sqrt() * 3, 2),
    "of other shape": (lambda y, t: F.mse_loss(y.flatten(), t.flatten()), 2),
    "chosen by one number": (lambda y, t: torch.where(torch.tensor(True), F.mse_loss(y, t), 0.0), 2),
}


def twin(outputs, targets, low, high, power):
    pairs = list(zip(outputs.double().flatten().tolist(), targets.double().flatten().tolist(), strict=True))
    beyond = [max(low - target, target - high, 0.0) for _, target in pairs]
    return {
        "target_floor": sum(each**power for each in beyond) / len(pairs),
        "target_error": sum(abs(output - target) ** power for output, target in pairs) / len(pairs),
        "target_size": sum(abs(target) ** power for _, target in pairs) / len(pairs),
        "target_low": min(target for _, target in pairs),
        "target_high": max(target for _, target in pairs),
    }


def outputs_and_targets(function):
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 3)
    return layer, function(layer(torch.randn(16, 4, generator=random))), 5 * torch.randn(16, 3, generator=random) + 2


def check(function, low, high, error, power):
    _, outputs, targets = outputs_and_targets(function)
    reach = target_reach(error(outputs, targets).grad_fn)
    assert reach.output == (low, high)
    figures = {name: float(value) for name, value in reach.figures.items()}
    assert figures == pytest.approx(twin(outputs.detach(), targets, low, high, power), rel=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_every_function_has_the_range_and_the_figures_of_its_twin(function):
    for error, power in (ERRORS["mse_loss"], ERRORS["by hand"]):
        check(*function, error, power)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_every_error_has_the_figures_of_its_twin(error):
    check(*SIGMOID, *error)


def test_a_penalty_on_weights_is_passed_by():
    layer, outputs, targets = outputs_and_targets(torch.sigmoid)
    loss = F.mse_loss(outputs, targets) + 1e-3 * sum(weight.square().sum() for weight in layer.parameters())
    assert target_reach(loss.grad_fn) is not None


MASK = (torch.arange(48).reshape(16, 3) % 2).float()
UNREAD = {
    "a mask by a product": lambda y, t: (MASK * (y - t).square()).sum() / MASK.sum(),
    "a mask in the second place": lambda y, t: (F.mse_loss(y, t, reduction="none") * MASK).mean(),
    "a choice of entries": lambda y, t: torch.where(MASK > 0, (y - t).square(), 0.0).mean(),
    "outputs that are scaled": lambda y, t: F.mse_loss(5 * y, t),
    "two terms of outputs": lambda y, t: F.mse_loss(y, t) + y.mean(),
    "targets that are learned": lambda y, t: F.mse_loss(y, t.clone().requires_grad_()),
    "a cube": lambda y, t: (y - t).pow(3).mean(),
    "a cross entropy": lambda y, t: F.binary_cross_entropy(y, t.sigmoid()),
    "no difference": lambda y, t: y.square().mean(),
}


@pytest.mark.parametrize("loss", UNREAD.values(), ids=UNREAD)
def test_what_may_leave_targets_out_or_move_the_range_is_not_read(loss):
    _, outputs, targets = outputs_and_targets(torch.sigmoid)
    assert target_reach(loss(outputs, targets).grad_fn) is None


def test_an_output_without_a_bound_is_not_read():
    _, outputs, targets = outputs_and_targets(lambda x: x)
    assert target_reach(F.mse_loss(outputs, targets).grad_fn) is None
