"""Weights as they are initialised, beside trained ones."""

import pytest
import torch
from torch import nn

from gradwatch.measure.untrained import are_new_layers, are_untrained


def layers_of(model):
    return [list(module.parameters(recurse=False)) for module in model.modules()]


def initialised(fill, bias=nn.init.zeros_):
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    for layer in (model[0], model[2]):
        fill(layer.weight)
        bias(layer.bias)
    return model


def trained(model, shape, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        inputs = torch.randn(16, *shape)
        output = model(inputs)
        output = output[0] if isinstance(output, tuple) else output
        target = inputs.flatten(1).sum(1, keepdim=True)
        (output.flatten(1).mean(1, keepdim=True) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


MODELS = {
    "torch's default": (lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), (32,)),
    "Kaiming": (lambda: initialised(nn.init.kaiming_uniform_), (32,)),
    "Xavier": (lambda: initialised(nn.init.xavier_uniform_), (32,)),
    "normal, biases zero": (lambda: initialised(lambda weight: nn.init.normal_(weight, std=0.02)), (32,)),
    "orthogonal, biases zero": (lambda: initialised(nn.init.orthogonal_), (32,)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)), (3, 8, 8)),
    "recurrent": (lambda: nn.LSTM(8, 16, batch_first=True), (5, 8)),
    "float64": (lambda: nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64)), (32,)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_initialised_and_trained_weights_are_told_apart(name, seed):
    torch.manual_seed(seed)
    make, shape = MODELS[name]
    assert are_untrained(layers_of(make()))
    assert not are_untrained(layers_of(trained(make(), shape)))


def test_normal_weights_alone_say_nothing():
    assert not are_untrained([[torch.randn(64, 64)], [torch.randn(1000, 16)]])


def test_one_trained_layer_is_enough():
    torch.manual_seed(0)
    fresh = layers_of(nn.Linear(32, 64))
    assert not are_untrained([*fresh, [torch.rand(64), torch.rand(64)]])


@pytest.mark.parametrize("odd", [torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 3), torch.ones(3, dtype=torch.long)])
def test_odd_tensors_say_nothing(odd):
    assert not are_untrained([[odd]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_number_format_is_judged(dtype):
    torch.manual_seed(0)
    assert are_untrained(layers_of(nn.Linear(32, 64).to(dtype)))


def matrices_of(model):
    return [tensor for tensor in model.parameters() if tensor.ndim > 1]


NEW = ("torch's default", "convolutions", "float64")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_new_layers_are_those_of_torch_s_own_linear_and_convolutional_ones(name, seed):
    torch.manual_seed(seed)
    make, shape = MODELS[name]
    assert are_new_layers(matrices_of(make())) == (name in NEW)
    assert not are_new_layers(matrices_of(trained(make(), shape, steps=2)))


def test_filters_set_by_hand_are_not_new_layers():
    places = torch.arange(16) + 0.5
    cosines = torch.cos(torch.outer(torch.arange(16), places) * torch.pi / 16) / 4
    edges = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(8, 1, 3, 3)
    for filters in (cosines, edges, torch.eye(16), torch.ones(16, 16) / 16):
        assert not are_new_layers([filters])
    assert are_untrained([[cosines]])  # they are bounded, which is all that this asks for


def test_small_matrices_alone_are_not_enough():
    assert not are_new_layers(matrices_of(nn.Linear(4, 4)))
    assert are_new_layers(matrices_of(nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 1))))
    assert not are_new_layers([])
