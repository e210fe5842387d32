"""The intervals where activation functions are steep: one for each function of torch, in closed form.

A rectifier is steep where the absolute value of its slope exceeds ``SILENT_SLOPE``. A squashing function is steep where
its slope exceeds the share ``SATURATED_SHARE`` of its largest slope. A single point inside the interval at which the
slope passes through zero (GELU at -0.75) counts as steep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = [
    "EVERYWHERE",
    "SATURATED_SHARE",
    "SILENT_SLOPE",
    "SteepRange",
    "celu",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "mish",
    "relu",
    "sigmoid_results",
    "silu",
    "softplus",
    "softsign_divisors",
    "tanh_results",
]

SILENT_SLOPE = 1e-3
"""A unit with this slope passes practically no gradient. A ReLU's slope is exactly 0 there."""

SATURATED_SHARE = 0.05
"""Share of the largest slope: it makes tanh saturated beyond ±2.2 and sigmoid beyond ±4.4."""


@dataclass(frozen=True)
class SteepRange:
    """An open interval outside of which a function is flat; an end is infinite where the function stays steep.

    Attributes:
        low, high: the last numbers on either side at which the function is flat.
    """

    low: float = -math.inf
    high: float = math.inf

    def is_outside(self, numbers: Tensor) -> Tensor:
        """Return a bool tensor, True where a number lies outside the interval. NaN does not."""
        flat = numbers <= self.low
        return flat if self.high == math.inf else flat | (numbers >= self.high)


EVERYWHERE = SteepRange()


def relu() -> SteepRange:
    """Return (0, ∞), for inputs and for results alike."""
    return SteepRange(low=0.0)


def leaky_relu(negative_slope: float) -> SteepRange:
    """Return the steep inputs of x for x > 0, else ``negative_slope``·x."""
    return EVERYWHERE if abs(negative_slope) > SILENT_SLOPE else relu()


def elu(alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> SteepRange:
    """Return the steep inputs of ``scale``·x for x > 0, else ``scale``·``alpha``·(exp(``input_scale``·x) − 1).

    The slope for x ≤ 0 is s·exp(``input_scale``·x) with s = ``scale``·``alpha``·``input_scale``. SELU is an ELU, too.

    Args:
        alpha: of any sign.
        scale: its absolute value exceeds ``SILENT_SLOPE``.
        input_scale: not 0.
    """
    slope_at_zero = abs(scale * alpha * input_scale)
    if slope_at_zero == 0:
        return relu()
    if input_scale < 0:  # the slope grows to the left
        return EVERYWHERE
    return SteepRange(low=min(0.0, math.log(SILENT_SLOPE / slope_at_zero) / input_scale))


def celu(alpha: float) -> SteepRange:
    """Return the steep inputs of x for x > 0, else ``alpha``·(exp(x/``alpha``) − 1)."""
    return elu(alpha, input_scale=1 / alpha)


def softplus(beta: float, threshold: float) -> SteepRange:
    """Return the steep inputs of log(1 + exp(``beta``·x))/``beta``, which torch replaces by x above ``threshold``.

    The slope is sigmoid(``beta``·x); above ``threshold`` it is 1.
    """
    edge = min(math.log(SILENT_SLOPE / (1 - SILENT_SLOPE)), threshold) / beta
    return SteepRange(low=edge) if beta > 0 else SteepRange(high=edge)


def hardswish() -> SteepRange:
    """Return (−3, ∞): the slope is 0 below, and (2x + 3)/6 from −3 to 3."""
    return SteepRange(low=-3.0)


# The slopes of the next three have no elementary inverse. Each constant solves slope(x) = −SILENT_SLOPE at the left
# of the function's minimum; the tests check them against autograd.


def gelu(approximate: Literal["none", "tanh"]) -> SteepRange:
    """Return the steep inputs of x·Φ(x), with the slope Φ(x) + x·φ(x), or of its approximation by tanh."""
    return SteepRange(low=-3.810371436001633 if approximate == "none" else -3.7373491698594)


def silu() -> SteepRange:
    """Return the steep inputs of x·sigmoid(x), with the slope s·(1 + x·(1 − s)) for s = sigmoid(x)."""
    return SteepRange(low=-8.9850615640753)


def mish() -> SteepRange:
    """Return the steep inputs of x·t for t = tanh(softplus(x)), with the slope t + x·(1 − t²)·sigmoid(x)."""
    return SteepRange(low=-8.985213726841021)


def hardtanh(min_val: float, max_val: float) -> SteepRange:
    """Return (``min_val``, ``max_val``), where the slope is 1. A ReLU6 is a hardtanh from 0 to 6."""
    return SteepRange(min_val, max_val)


def hardsigmoid() -> SteepRange:
    """Return (−3, 3), where the slope is 1/6."""
    return SteepRange(-3.0, 3.0)


def sigmoid_results() -> SteepRange:
    """Return the steep results of sigmoid: the slope at a result y is y·(1 − y), at most 1/4."""
    reach = math.sqrt(1 - SATURATED_SHARE)
    return SteepRange((1 - reach) / 2, (1 + reach) / 2)


def tanh_results() -> SteepRange:
    """Return the steep results of tanh: the slope at a result y is 1 − y², at most 1."""
    reach = math.sqrt(1 - SATURATED_SHARE)
    return SteepRange(-reach, reach)


def softsign_divisors() -> SteepRange:
    """Return the steep values of d = 1 + |x| in the softsign x/d: the slope is d⁻², at most 1."""
    return SteepRange(high=SATURATED_SHARE**-0.5)
