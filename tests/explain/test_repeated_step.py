"""A sick step of torch's own modules is looked at twice, modules first; that shows what one thorough look does."""

import contextlib
import gc
import math

import pytest
import torch
from torch import nn

from gradwatch.explain.repeated_step import RepeatedStep
from gradwatch.explain.replay import Replay
from gradwatch.explain.replica import as_it_was
from gradwatch.hooks.guard import Guard


def of_a_bad_batch():
    x = torch.ones(4, 8)
    x[1, 2] = torch.nan
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), x


def of_a_layer_that_overflows():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    nn.init.constant_(model[2].weight, 3e38)
    return model, torch.ones(4, 8)


def of_corrupt_statistics():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    model[1].running_mean[3] = torch.nan
    model[1].eval()
    return model, torch.ones(4, 8)


def of_a_layer_of_two_names():
    shared = nn.Linear(8, 8)
    nn.init.constant_(shared.weight, 1e30)
    model = nn.Sequential(nn.Sequential(shared, nn.Tanh()), nn.Sequential(shared, shared), nn.Linear(8, 1))
    return model, torch.ones(4, 8)


def of_noise():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 1))
    nn.init.constant_(model[3].weight, 3e38)
    return model, torch.ones(4, 8)


def recorded(model, x):
    """The calls of a step, and its loss."""
    replay = Replay({"": model})
    loss = model(x).square().mean()
    loss.backward()
    calls = replay.calls
    replay.remove()
    return calls, loss.item()


@pytest.mark.parametrize(
    "make",
    [of_a_bad_batch, of_a_layer_that_overflows, of_corrupt_statistics, of_a_layer_of_two_names, of_noise],
)
def test_two_looks_show_what_one_thorough_look_does(make):
    torch.manual_seed(0)
    model, x = make()
    calls, loss = recorded(model, x)
    assert not math.isfinite(loss)
    state = {name: values.clone() for name, values in model.state_dict().items()}
    by_two, at_once = (RepeatedStep(calls, {"": model}, free, Guard(), loss, []).observe() for free in (True, False))
    assert by_two == at_once
    assert by_two is not None
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, state[name], rtol=0, atol=0, equal_nan=True)


def test_the_operation_of_the_layer_at_fault_is_named():
    torch.manual_seed(0)
    model, x = of_a_layer_that_overflows()
    calls, loss = recorded(model, x)
    found = RepeatedStep(calls, {"": model}, True, Guard(), loss, []).observe()
    assert (found.pattern, found.module.name, found.operation.name) == ("forward", "2", "addmm")


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(collects):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with contextlib.suppress(ValueError), as_it_was():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is collects
    finally:
        (gc.enable if was_enabled else gc.disable)()
