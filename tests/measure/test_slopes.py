"""Where activation functions are steep, against the slopes that autograd computes in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gradwatch.measure import slopes
from gradwatch.measure.slopes import SATURATED_SHARE, SILENT_SLOPE, SteepRange

GRID = torch.arange(-20_000, 20_001, dtype=torch.float64) / 401  # ±50; of whole numbers only 0 and a few are hit
deterministic = settings(deadline=None, derandomize=True, max_examples=60)


def slope(function, points):
    """The absolute slope of ``function`` at each point, by autograd."""
    x = points.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0].abs()


def nearest(value):
    """1,000 points on each side of ``value``, closer and closer."""
    distance = torch.logspace(-9, 0, 1000, dtype=torch.float64)
    return torch.cat([value - distance, value + distance])


def assert_steep_exactly_inside(function, steep, least, seen=lambda x: x, zeros=()):
    """``steep`` holds ``seen(x)`` exactly where the slope at x exceeds ``least``, but for points near ``zeros``."""
    edges = [edge for edge in (steep.low, steep.high, 0.0) if math.isfinite(edge)]
    points = torch.cat([GRID, *map(nearest, edges)])
    if function is F.hardswish and slope(function, torch.tensor([-3.0], dtype=torch.float64)) != 0:
        points = points[points != -3]  # at the kink itself torch 2.6 gives the slope to the right of it
    found = slope(function, points)
    is_certain = (found / least - 1).abs() > 1e-6
    for zero in zeros:
        is_certain &= (points - zero).abs() > 0.02
    is_steep = ~steep.is_outside(seen(points))
    wrong = (is_steep != (found > least)) & is_certain
    assert not wrong.any(), (points[wrong], found[wrong], steep)


KNOWN = {
    "relu": (slopes.relu(), (0.0, math.inf)),
    "relu6": (slopes.hardtanh(0.0, 6.0), (0.0, 6.0)),
    "leaky_relu": (slopes.leaky_relu(0.01), (-math.inf, math.inf)),
    "leaky_relu, hardly": (slopes.leaky_relu(1e-4), (0.0, math.inf)),
    "elu": (slopes.elu(1.0), (math.log(1e-3), math.inf)),
    "elu, alpha 2": (slopes.elu(2.0), (math.log(1e-3 / 2), math.inf)),
    "softplus": (slopes.softplus(1.0, 20.0), (-math.log(1 / 1e-3 - 1), math.inf)),
    "hardtanh": (slopes.hardtanh(-1.0, 1.0), (-1.0, 1.0)),
    "hardtanh, wider": (slopes.hardtanh(-3.0, 2.0), (-3.0, 2.0)),
    "hardsigmoid": (slopes.hardsigmoid(), (-3.0, 3.0)),
    "tanh": (slopes.tanh_results(), (-math.sqrt(0.95), math.sqrt(0.95))),
    "sigmoid": (slopes.sigmoid_results(), (0.5 - math.sqrt(0.95) / 2, 0.5 + math.sqrt(0.95) / 2)),
    "softsign": (slopes.softsign_divisors(), (-math.inf, math.sqrt(20))),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_range_is_where_the_derivative_by_hand_says(name):
    steep, (low, high) = KNOWN[name]
    assert (steep.low, steep.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("function", "steep", "zeros"),
    [
        (F.relu, slopes.relu(), ()),
        (F.hardswish, slopes.hardswish(), (-1.5,)),
        (F.gelu, slopes.gelu("none"), (-0.7518,)),
        (lambda x: F.gelu(x, approximate="tanh"), slopes.gelu("tanh"), (-0.7525,)),
        (F.silu, slopes.silu(), (-1.2785,)),
        (F.mish, slopes.mish(), (-1.1924,)),
        (F.selu, slopes.elu(1.6732632423543772, 1.0507009873554805), ()),
        (F.relu6, slopes.hardtanh(0.0, 6.0), ()),
    ],
    ids=["relu", "hardswish", "gelu", "gelu by tanh", "silu", "mish", "selu", "relu6"],
)
def test_a_rectifier_is_steep_exactly_inside_its_range(function, steep, zeros):
    assert_steep_exactly_inside(function, steep, SILENT_SLOPE, zeros=zeros)


@deterministic
@given(st.floats(-2, 2))
def test_leaky_relu_is_steep_exactly_inside_its_range(negative_slope):
    steep = slopes.leaky_relu(negative_slope)
    assert_steep_exactly_inside(lambda x: F.leaky_relu(x, negative_slope), steep, SILENT_SLOPE)


@deterministic
@given(st.floats(-4, 4), st.floats(0.1, 3), st.floats(0.2, 3))
def test_elu_is_steep_exactly_inside_its_range(alpha, scale, input_scale):
    steep = slopes.elu(alpha, scale, input_scale)
    assert_steep_exactly_inside(lambda x: torch.ops.aten.elu(x, alpha, scale, input_scale), steep, SILENT_SLOPE)


@deterministic
@given(st.floats(0.2, 4))
def test_celu_is_steep_exactly_inside_its_range(alpha):
    assert_steep_exactly_inside(lambda x: F.celu(x, alpha), slopes.celu(alpha), SILENT_SLOPE)


@deterministic
@given(st.floats(0.2, 5), st.floats(-9, 30), st.sampled_from([1, -1]))
def test_softplus_is_steep_exactly_inside_its_range(beta, threshold, sign):
    steep = slopes.softplus(sign * beta, threshold)
    assert_steep_exactly_inside(lambda x: F.softplus(x, sign * beta, threshold), steep, SILENT_SLOPE)


@deterministic
@given(st.floats(-30, 30), st.floats(0.01, 30))
def test_hardtanh_is_steep_exactly_inside_its_range(low, width):
    steep = slopes.hardtanh(low, low + width)
    assert_steep_exactly_inside(lambda x: F.hardtanh(x, low, low + width), steep, SATURATED_SHARE)


@pytest.mark.parametrize(
    ("function", "steep", "seen"),
    [
        (torch.sigmoid, slopes.sigmoid_results(), torch.sigmoid),
        (torch.tanh, slopes.tanh_results(), torch.tanh),
        (F.softsign, slopes.softsign_divisors(), lambda x: 1 + x.abs()),
        (F.hardsigmoid, slopes.hardsigmoid(), lambda x: x),
    ],
    ids=["sigmoid", "tanh", "softsign", "hardsigmoid"],
)
def test_a_squashing_function_is_steep_exactly_inside_its_range(function, steep, seen):
    steepest = slope(function, GRID).max().item()
    assert_steep_exactly_inside(function, steep, SATURATED_SHARE * steepest, seen)


@pytest.mark.parametrize("alpha", [0.0, 1e-4])
def test_an_elu_that_is_flat_below_zero_is_a_relu(alpha):
    assert slopes.elu(alpha) == slopes.relu()


def test_an_exponential_that_grows_to_the_left_is_steep_everywhere():
    assert slopes.celu(-1.0) == SteepRange(-math.inf, math.inf)


def test_a_rectifier_is_flat_at_zero_itself():
    for steep in (slopes.relu(), slopes.hardtanh(0.0, 6.0)):
        assert steep.is_outside(torch.tensor([0.0, 1e-30])).tolist() == [True, False]


def test_nan_is_never_outside():
    results = torch.tensor([0.0, 0.001, 0.5, math.nan, 0.999, 1.0])
    assert slopes.sigmoid_results().is_outside(results).tolist() == [True, True, False, False, True, True]
