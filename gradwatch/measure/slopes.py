"""Where an activation function is steep: an interval, found once by asking for its slope.

Enters: a function of torch's with its settings. Leaves: the inputs between which its slope is more than so much. Knows
nothing of modules and layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["SteepRange", "steep_range"]

FARTHEST = 40  # beyond it no function of torch's changes its slope any more
POINTS = 100  # to a unit, that are asked first; 0 is one of them, exactly: there a ReLU is still flat
HALVINGS = 50  # of the space between two of them, until its ends are neighbours in float64


@dataclass(frozen=True)
class SteepRange:
    """The inputs outside of which a function is flat; an end is infinite where it is steep for ever.

    Attributes:
        low, high: the last inputs, to both sides, that are flat.
    """

    low: float
    high: float

    def is_outside(self, inputs: Tensor) -> Tensor:
        """Which entries meet the function where it is flat; NaN does not."""
        flat = inputs <= self.low
        return flat if self.high == math.inf else flat | (inputs >= self.high)


def steep_range(
    function: Callable[..., Any],
    rest: Sequence[Any] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    slope: float | None = None,
    share: float | None = None,
) -> SteepRange:
    """Between which inputs ``function(x, *rest, **settings)``, taken entry by entry, is steep.

    A point within at which the slope passes through zero (GELU at −0.75) counts as steep.

    Args:
        function: of ``torch``, ``torch.nn.functional``, or a method of a tensor.
        rest, settings: what it is called with beside its input; ``inplace`` and ``out`` are left aside.
        slope: more than this is steep; or
        share: more than this share of the steepest slope is.
    """
    rest = tuple(False if isinstance(value, bool) else value for value in rest)  # ``inplace``, by position
    settings = {name: value for name, value in (settings or {}).items() if name not in ("inplace", "out")}

    def slopes(points: Tensor) -> Tensor:
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):  # not to be counted by a checkpoint around us
            x = points.clone().requires_grad_()
            return torch.autograd.grad(function(x * 1, *rest, **settings).sum(), x)[0].abs()

    grid = torch.arange(-FARTHEST * POINTS, FARTHEST * POINTS + 1, dtype=torch.float64) / POINTS
    on_grid = slopes(grid)
    least = slope if share is None else share * float(on_grid.amax())
    assert least is not None
    steep = (on_grid > least).nonzero().flatten().tolist()
    if not steep:
        return SteepRange(-math.inf, math.inf)
    first, last = steep[0], steep[-1]

    def edge(flat: int, steep: int) -> float:
        return _edge(
            lambda point: bool(slopes(grid.new_tensor([point])) > least), float(grid[flat]), float(grid[steep])
        )

    low = edge(first - 1, first) if first > 0 else -math.inf
    high = edge(last + 1, last) if last < len(grid) - 1 else math.inf
    return SteepRange(low, high)


def _edge(is_steep: Callable[[float], bool], flat: float, steep: float) -> float:
    """Between the two, the last point that is flat."""
    for _ in range(HALVINGS):
        middle = (flat + steep) / 2
        if is_steep(middle):
            steep = middle
        else:
            flat = middle
    return flat


def _same(tensor: Tensor) -> Tensor:
    return tensor
