"""Parameters that come into a model after it was watched are named, once."""

import pytest
import torch
from torch import nn

import gradwatch

STEPS = 8


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(model, optimizer, steps=STEPS):
    for step in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def said(caplog):
    return [record.getMessage() for record in caplog.records if "after watch() was called" in record.getMessage()]


def add_to_the_optimizer(model, optimizer):
    model[2] = nn.Linear(8, 1)
    optimizer.add_param_group({"params": [*model[2].parameters()]})
    return optimizer


def make_another_optimizer(model, optimizer):
    model[2] = nn.Linear(8, 1)
    return sgd(model)


@pytest.mark.parametrize("replace", [add_to_the_optimizer, make_another_optimizer])
@pytest.mark.parametrize("before", [0, 3], ids=["before the first step", "later"])
def test_a_head_replaced_after_watch_is_named_once(replace, before, caplog):
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model) as watcher:
        train(model, optimizer, before)
        train(model, replace(model, optimizer))
    assert said(caplog) == [
        "gradwatch: 2.weight, 2.bias came into the model after watch() was called, so no figure and no finding is "
        "about them. Call gradwatch.watch() again after a change of the model."
    ]
    assert len(watcher.history) == before + STEPS


def test_a_layer_added_after_watch_is_named(caplog):
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer):
        train(model, optimizer, 2)
        model.append(nn.Linear(1, 1))
        optimizer.add_param_group({"params": [*model[3].parameters()]})
        train(model, optimizer)
    assert [line.partition(" came")[0] for line in said(caplog)] == ["gradwatch: 3.weight, 3.bias"]


def test_what_it_says_works(caplog):
    model = net()
    optimizer = sgd(model)
    gradwatch.watch(model, optimizer)
    add_to_the_optimizer(model, optimizer)
    with gradwatch.watch(model, optimizer) as watcher:
        train(model, optimizer)
    assert said(caplog) == []
    assert not torch.tensor(watcher.history["grad_norm"]).isnan().any()


def test_nothing_is_said_of_what_was_left_out_or_is_no_part_of_the_model(caplog):
    model, beside = net(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *beside.parameters()], lr=0.01)
    with gradwatch.watch(model, optimizer, exclude="2.*"):
        train(model, optimizer)
    assert said(caplog) == []


def test_nothing_is_said_where_a_tied_weight_goes_by_its_other_name(caplog):
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    optimizer = sgd(model)
    with gradwatch.watch(model) as watcher:
        train(model, optimizer, 2)
        model[0] = nn.Identity()
        train(model, sgd(model))
    assert said(caplog) == []
    assert watcher.history.layers[0] == "0.weight"
