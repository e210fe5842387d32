"""Where activation functions are flat, read off the graph, against their slopes entry by entry in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from gradwatch.measure.activation_functions import flat_entries

RECTIFIERS = {
    "relu": F.relu,
    "relu_": lambda x: (x * 1).relu_(),
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "elu, alpha 0.5": lambda x: F.elu(x, 0.5),
    "selu": F.selu,
    "celu": F.celu,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "softplus, beta 3": lambda x: F.softplus(x, beta=3),
    "leaky_relu": F.leaky_relu,
}
SQUASHING = {
    "sigmoid": torch.sigmoid,
    "sigmoid_": lambda x: (x * 1).sigmoid_(),
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "hardtanh, wider": lambda x: F.hardtanh(x, -3.0, 2.0),
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
}
INPUTS = torch.cat([torch.linspace(-30, 30, 1201), torch.tensor([0.0, -200.0, 200.0])]).double()


def looked_at(function, *inputs):
    """The flat entries of calls of ``function`` on each of ``inputs``, examined together."""
    outputs = [function(x.clone().requires_grad_()) for x in inputs]
    return list(flat_entries([(y.grad_fn, lambda saved: saved) for y in outputs]))


def by_call(flat):
    """Where each call is flat: (rows..., units)."""
    return flat.joined.split([*flat.units], -1)


def entries_of(flat):
    """Of a single call."""
    (entries,) = by_call(flat)
    return entries.flatten()


def slopes(function):
    """|f'| at each input; at −0.75 a GELU's passes through zero, which is no end of its range."""
    x = INPUTS.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0].abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_rectifier_is_flat_where_its_slope_is(name, dtype):
    (flat,) = looked_at(RECTIFIERS[name], INPUTS.to(dtype))
    assert flat.kind == "rectifier"
    expected = slopes(RECTIFIERS[name]) <= 1e-3
    dips = (INPUTS < 0) & (INPUTS > -2.5)  # GELU, SiLU, Mish and hardswish turn there
    assert (entries_of(flat) == expected)[~dips].all()
    assert not entries_of(flat)[dips & ~expected].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SQUASHING)
def test_a_squashing_function_is_flat_below_a_twentieth_of_its_steepest_slope(name, dtype):
    (flat,) = looked_at(SQUASHING[name], INPUTS.to(dtype))
    slope = slopes(SQUASHING[name])
    assert flat.kind == "squashing"
    assert torch.equal(entries_of(flat), slope < 0.05 * slope.max())
    assert 0 < flat.joined.sum() < len(INPUTS)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_rows_of_a_softmax_that_are_sure_are_flat(dim):
    torch.manual_seed(0)
    x = 4 * torch.randn(40, 30)
    (flat,) = looked_at(lambda x: x.softmax(dim), x)
    expected = [
        max(row) > 0.5 and 4 * max(row) * (1 - max(row)) < 0.05
        for row in x.double().softmax(dim).movedim(dim, -1).tolist()
    ]
    assert flat.kind == "softmax"
    assert entries_of(flat).tolist() == expected
    assert any(expected)
    assert not all(expected)


@pytest.mark.parametrize(
    "masked",
    [lambda x, m: x.masked_fill(m, -math.inf), lambda x, m: x + torch.zeros(x.shape).masked_fill(m, -math.inf)],
)
def test_a_row_that_its_mask_leaves_one_entry_is_not_flat(masked):
    x = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True], [False, False, True]])
    (flat,) = looked_at(lambda x: masked(x, mask).softmax(1), x)
    assert entries_of(flat).tolist() == [False, True]


def test_nan_is_not_flat():
    for function in (F.relu, F.gelu, torch.sigmoid, F.softsign):
        assert not looked_at(function, torch.full((3,), math.nan))[0].joined.any()
    assert not looked_at(lambda x: x.softmax(0), torch.full((3,), math.nan))[0].joined.any()


@pytest.mark.parametrize(
    "function", [torch.exp, lambda x: x / 2, lambda x: 1 / x, lambda x: x / (x + 1), lambda x: F.log_softmax(x, 1)]
)
def test_what_is_no_activation_function_is_passed_over(function):
    assert looked_at(function, torch.rand(3, 3)) == []


def test_what_the_backward_pass_has_freed_is_passed_over():
    y = torch.rand(3, requires_grad=True).sigmoid()
    y.sum().backward()
    assert list(flat_entries([(y.grad_fn, lambda saved: saved)])) == []


def test_calls_looked_at_together_are_told_as_one_by_one():
    torch.manual_seed(0)
    inputs = [4 * torch.randn(shape) for shape in ((5, 3), (5, 3), (2, 3), (5, 3), (2, 3))]
    functions = [F.relu, torch.sigmoid, F.relu, F.relu, F.hardtanh]
    asked = [(f(x.requires_grad_()).grad_fn, lambda saved: saved) for f, x in zip(functions, inputs, strict=True)]
    together = {
        place: (flat.kind, entries.tolist())
        for flat in flat_entries(asked)
        for place, entries in zip(flat.places, by_call(flat), strict=True)
    }
    alone = {place: next(iter(flat_entries([each]))) for place, each in enumerate(asked)}
    assert together == {place: (flat.kind, by_call(flat)[0].tolist()) for place, flat in alone.items()}


def test_figures_of_calls_of_different_widths_are_those_of_each():
    torch.manual_seed(0)
    inputs = [4 * torch.randn(shape) for shape in ((5, 3), (5, 7), (5, 1))]
    (squashed,) = looked_at(torch.tanh, *inputs)
    expected = [(1 - x.double().tanh() ** 2 < 0.05).double().mean().item() for x in inputs]
    assert [share.item() for share in squashed.shares()] == pytest.approx(expected)
    (rectified,) = looked_at(F.relu, *inputs)
    assert [units.tolist() for units in rectified.silent_units()] == [(x <= 0).all(0).tolist() for x in inputs]


def test_rows_of_a_softmax_that_are_examined_are_of_all_positions():
    probabilities = torch.full((64, 16, 4), 1e-6)
    probabilities[:, ::2, 0] = 20.0  # every other position is sure
    (flat,) = looked_at(lambda x: x.softmax(-1), probabilities)
    assert len(flat.joined) <= 256
    assert flat.shares()[0].item() == pytest.approx(0.5, abs=0.02)


def test_many_large_calls_are_looked_at_in_parts(monkeypatch):
    monkeypatch.setattr("gradwatch.measure.activation_functions.TOGETHER", 40)
    found = looked_at(F.relu, *(torch.full((5, 3), float(sign)) for sign in (-1, 1, -1, 1, -1)))
    assert [list(flat.places) for flat in found] == [[0, 1], [2, 3], [4]]
    assert [flat.joined.all().item() for flat in looked_at(F.relu, torch.full((50,), -1.0))] == [True]
    assert [entries.any().item() for flat in found for entries in by_call(flat)] == [True, False, True, False, True]
