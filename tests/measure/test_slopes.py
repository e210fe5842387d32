"""Where activation functions are steep, against their derivatives by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from gradwatch.measure.slopes import steep_range

KNOWN = {
    # function, settings, (slope, share), (low, high)
    "relu": (F.relu, {}, (1e-3, None), (0.0, math.inf)),
    "relu in place": (F.relu, {"inplace": True}, (1e-3, None), (0.0, math.inf)),
    "relu6": (F.relu6, {}, (1e-3, None), (0.0, 6.0)),
    "leaky_relu": (F.leaky_relu, {"negative_slope": 0.01}, (1e-3, None), (-math.inf, math.inf)),
    "leaky_relu, hardly": (F.leaky_relu, {"negative_slope": 1e-4}, (1e-3, None), (0.0, math.inf)),
    "elu": (F.elu, {}, (1e-3, None), (math.log(1e-3), math.inf)),
    "elu, alpha 2": (F.elu, {"alpha": 2.0}, (1e-3, None), (math.log(1e-3 / 2), math.inf)),
    "softplus": (F.softplus, {}, (1e-3, None), (-math.log(1 / 1e-3 - 1), math.inf)),
    "hardtanh": (F.hardtanh, {}, (None, 0.05), (-1.0, 1.0)),
    "hardtanh, wider": (F.hardtanh, {"min_val": -3.0, "max_val": 2.0}, (None, 0.05), (-3.0, 2.0)),
    "hardsigmoid": (F.hardsigmoid, {}, (None, 0.05), (-3.0, 3.0)),
    "tanh": (torch.tanh, {}, (None, 0.05), (-math.atanh(math.sqrt(0.95)), math.atanh(math.sqrt(0.95)))),
    "softsign": (F.softsign, {}, (None, 0.05), (1 - math.sqrt(20), math.sqrt(20) - 1)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_range_is_where_the_derivative_says(name):
    function, settings, (slope, share), (low, high) = KNOWN[name]
    found = steep_range(function, (), settings, slope=slope, share=share)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_settings_by_position_count_too():
    assert steep_range(F.hardtanh, (-0.5, 0.25), share=0.05).high == pytest.approx(0.25)


def test_a_slope_that_passes_through_zero_is_no_end():
    found = steep_range(F.gelu, slope=1e-3)
    assert found.low < -3
    assert found.high == math.inf


@pytest.mark.parametrize("function", [F.relu, F.relu6, torch.relu])
def test_a_rectifier_is_flat_at_zero_itself(function):
    assert steep_range(function, slope=1e-3).is_outside(torch.tensor([0.0, 1e-30])).tolist() == [True, False]


def test_nan_is_never_outside():
    found = steep_range(torch.sigmoid, share=0.05)
    inputs = torch.tensor([-math.inf, -9.0, 0.0, math.nan, 9.0, math.inf])
    assert found.is_outside(inputs).tolist() == [True, True, False, False, True, True]
