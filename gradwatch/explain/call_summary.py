"""Summarise the calls of modules: the extremes of what each call was given and returned, and of their gradients.

The figures stay on the device. Each property reads them once, so only a step that is examined waits for the device.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

__all__ = ["ModuleCall", "TensorSummary"]


@dataclass(eq=False)
class TensorSummary:
    """One tensor as it was when a module was given it, or returned it.

    Attributes:
        extremes: () its smallest and its largest entry; NaN where any entry is NaN.
        gradients: the same of its gradient, once for each time that the backward pass came by.
    """

    extremes: tuple[Tensor, Tensor]
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @cached_property
    def is_nonfinite(self) -> bool:
        """True if the tensor held NaN or Inf."""
        return any(not math.isfinite(float(end)) for end in self.extremes)

    @cached_property
    def is_mask(self) -> bool:
        """True if it held −Inf, but neither NaN nor +Inf: a mask for attention looks like this."""
        low, high = map(float, self.extremes)
        return low == -math.inf and high < math.inf

    @cached_property
    def has_nan(self) -> bool:
        """True if the tensor held NaN."""
        return any(math.isnan(float(end)) for end in self.extremes)

    @cached_property
    def has_nonfinite_gradient(self) -> bool:
        """True if its gradient held NaN or Inf."""
        return any(not math.isfinite(float(end)) for ends in self.gradients for end in ends)


@dataclass(eq=False)
class ModuleCall:
    """One call of one module.

    Attributes:
        module, type: name and class of the module.
        given, returned: summaries of its tensors.
        is_outermost: the loop called the module, not another module.
        batch: the tensors given to an outermost call, as long as the loop keeps them.
        computed: those of ``given`` to an outermost call that were computed from parameters.
        is_builtin: the module is a layer of ``torch.nn`` without children.
    """

    module: str
    type: str
    given: list[TensorSummary] = field(default_factory=list)
    returned: list[TensorSummary] = field(default_factory=list)
    is_outermost: bool = False
    batch: list[weakref.ref[Tensor]] = field(default_factory=list)
    computed: list[TensorSummary] = field(default_factory=list)
    is_builtin: bool = False

    @property
    def was_given_nan(self) -> bool:
        """True if any tensor that went in held NaN."""
        return any(summary.has_nan for summary in self.given)

    @property
    def was_given_nonfinite(self) -> bool:
        """True if any tensor that went in held NaN or Inf."""
        return any(summary.is_nonfinite for summary in self.given)

    @property
    def returned_nan(self) -> bool:
        """True if any tensor that came out held NaN."""
        return any(summary.has_nan for summary in self.returned)

    @property
    def returned_nonfinite(self) -> bool:
        """True if any tensor that came out held NaN or Inf."""
        return any(summary.is_nonfinite for summary in self.returned)

    @property
    def received_gradient(self) -> bool:
        """True if the backward pass reached any tensor that came out."""
        return any(summary.gradients for summary in self.returned)

    @property
    def received_nonfinite_gradient(self) -> bool:
        """True if the gradient of any tensor that came out held NaN or Inf."""
        return any(summary.has_nonfinite_gradient for summary in self.returned)

    @property
    def passed_nonfinite_gradient(self) -> bool:
        """True if the gradient of any tensor that went in held NaN or Inf."""
        return any(summary.has_nonfinite_gradient for summary in self.given)
