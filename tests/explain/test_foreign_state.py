"""A step is repeated in this process only where nobody but torch has written what runs, and nothing changes by it."""

import functools
import itertools
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import gradwatch
from gradwatch.explain.foreign_state import is_free_of_foreign_state
from gradwatch.explain.recorded_call import record_call

STEPS, SICK = 8, 4


class Own(nn.Sequential):
    """A class of the user's own, that runs code of the user's."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


class Named(nn.Sequential):
    """A class of the user's own, that runs torch's code alone."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh())


def recurrent(kind):
    return kind(4, 4, num_layers=2, dropout=0.5, batch_first=True)


TORCHS = {
    "layers": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.LayerNorm(4), nn.GELU()),
    "a class of the user's": Named,
    "running figures": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.RReLU()),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "spectral norm, the old one": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=0.5),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu, batch_first=True),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()),
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU),
}


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def with_own_forward():
    layer = nn.Linear(4, 4)
    layer.forward = functools.partial(F.linear, weight=layer.weight)
    return layer


def with_own_parametrisation():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def with_own_attribute():
    layer = nn.Linear(4, 4)
    layer.numbers = itertools.count()
    return layer


class Marked(torch.Tensor):
    pass


def with_own_tensor():
    layer = nn.Linear(4, 4)
    layer.register_buffer("mark", torch.zeros(2).as_subclass(Marked))
    return layer


@functools.wraps(F.gelu)
def like_gelu(x):
    return F.gelu(x)


FOREIGN = {
    "code of the user's": lambda: nn.Sequential(Own(nn.Linear(4, 4))),
    "a forward of the user's": with_own_forward,
    "a parametrisation of the user's": with_own_parametrisation,
    "an activation of the user's": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=like_gelu),
    "an attribute of the user's": with_own_attribute,
    "a tensor of the user's": with_own_tensor,
    "an embedding that moves its weights": lambda: nn.Embedding(4, 4, max_norm=1.0),
}


def calls(model, *args):
    return [record_call("model", type(model).__name__, args, {})]


@pytest.mark.parametrize("make", TORCHS.values(), ids=TORCHS)
def test_models_of_torchs_modules_are_free_of_foreign_state(make):
    model = make()
    x = torch.ones(2, 3, 4) if isinstance(model, nn.RNNBase | nn.TransformerEncoderLayer) else torch.ones(2, 4)
    model(x)
    assert is_free_of_foreign_state(calls(model, x), [model])


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_models_with_anything_of_the_users_are_not(make):
    model = make()
    assert not is_free_of_foreign_state(calls(model, torch.ones(2, 4)), [model])


@pytest.mark.parametrize("given", [itertools.count(), {"x": [object()]}, torch.ones(2).as_subclass(Marked)])
def test_arguments_of_the_users_are_not(given):
    model = nn.Linear(4, 4)
    assert is_free_of_foreign_state(calls(model, {"x": [torch.ones(2), 1, "a", None]}), [model])
    assert not is_free_of_foreign_state(calls(model, given), [model])


def test_a_changed_forward_of_torchs_own_class_is_seen(monkeypatch):
    plain = nn.Linear.forward

    @functools.wraps(plain)
    def forward(self, x):
        return plain(self, x)

    model, wrapper = nn.Linear(4, 4), torch.no_grad()(plain)
    monkeypatch.setattr(nn.Linear, "forward", wrapper)
    assert is_free_of_foreign_state(calls(model, torch.ones(2, 4)), [model])
    del forward.__wrapped__
    monkeypatch.setattr(nn.Linear, "forward", forward)
    assert not is_free_of_foreign_state(calls(model, torch.ones(2, 4)), [model])


class Follows(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Follows, lambda: FlopCounterMode(display=False)])
def test_modes_of_the_users_see_what_runs(mode):
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    with mode():
        assert not is_free_of_foreign_state(calls(model, x), [model])
    with torch.device("cpu"):
        assert is_free_of_foreign_state(calls(model, x), [model])


def test_hooks_on_all_modules_hear_what_runs():
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not is_free_of_foreign_state(calls(model, x), [model])
    handle.remove()
    assert is_free_of_foreign_state(calls(model, x), [model])


def trained(make, *, watched):
    """Return the weights and buffers that a run leaves, what torch draws next, and its findings."""
    torch.manual_seed(0)
    model = make()
    shape = (6, 3, 4) if isinstance(model, nn.RNNBase | nn.TransformerEncoderLayer) else (6, 4)
    model(torch.ones(shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watcher = gradwatch.watch(model, optimizer, on_nonfinite="skip") if watched else None
    for step in range(STEPS):
        x = torch.rand(shape)
        x[0] = float("nan") if step == SICK else 1
        optimizer.zero_grad()
        output = model(x)
        (output[0] if isinstance(output, tuple) else output).square().sum().backward()
        if watched or step != SICK:
            optimizer.step()
    if watcher is not None:
        watcher.close()
    left = {name: value.tolist() for name, value in model.state_dict().items()}
    return str(left), torch.rand(4).tolist(), [] if watcher is None else watcher.findings


@pytest.mark.parametrize("make", TORCHS.values(), ids=TORCHS)
def test_the_run_is_bit_for_bit_what_it_is_without_and_nothing_is_forked(make, monkeypatch):
    monkeypatch.delattr(os, "fork")  # whatever would fork is not run again
    bare = trained(make, watched=False)
    *left, (finding, *_) = trained(make, watched=True)
    assert tuple(left) == bare[:2]
    assert (finding.kind, finding.step) == ("nonfinite", SICK)
    assert finding.cause.startswith("Observed:")


def test_where_no_process_can_be_copied_the_origin_is_inferred(monkeypatch):
    monkeypatch.delattr(os, "fork")
    *_, (finding, *_) = trained(lambda: nn.Sequential(Own(nn.Linear(4, 4))), watched=True)
    assert (finding.kind, finding.step) == ("nonfinite", SICK)
    assert "could not be run again as it was; trace_nonfinite=True examines every call" in finding.cause
