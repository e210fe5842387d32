"""Summarise the calls of modules: the extremes of what each call was given and returned, and of their gradients.

The figures stay on the device. Each property reads them once, so only a step that is examined waits for the device.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradwatch.fork_safety import lazy_property

__all__ = ["ModuleCall", "TensorSummary", "extremes_of", "has_entries"]


def has_entries(tensor: Tensor) -> bool:
    """Return True if ``tensor`` holds numbers that may be NaN or Inf."""
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided


def extremes_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the () smallest and largest entry on the device; NaN where any entry is."""
    tensor = (
        tensor.detach()
    )  # so that nothing here needs ``no_grad``, which takes longer than a small tensor's extremes
    smallest, largest = torch.aminmax(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    return smallest, largest


@dataclass(eq=False)
class TensorSummary:
    """One tensor as it was when a module was given it, or returned it.

    Attributes:
        extremes: () its smallest and its largest entry; NaN where any entry is NaN.
        gradients: the same of its gradient, once for each time that the backward pass came by.
    """

    extremes: tuple[Tensor, Tensor]
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @lazy_property
    def is_nonfinite(self) -> bool:
        """True if the tensor held NaN or Inf."""
        return any(not math.isfinite(float(end)) for end in self.extremes)

    @lazy_property
    def is_mask(self) -> bool:
        """True if it held −Inf, but neither NaN nor +Inf: a mask for attention looks like this."""
        low, high = map(float, self.extremes)
        return low == -math.inf and high < math.inf

    @lazy_property
    def has_nan(self) -> bool:
        """True if the tensor held NaN."""
        return any(math.isnan(float(end)) for end in self.extremes)

    @lazy_property
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
        follows_others: a tensor of whole numbers or truth values was handed over before the first of ``given``.
        handed_back: for each of ``given`` the extremes of each gradient that this call itself handed back; None where
            that was not seen. A tensor that several modules are given gets the sum of what they hand back.
    """

    module: str
    type: str
    given: list[TensorSummary] = field(default_factory=list)
    returned: list[TensorSummary] = field(default_factory=list)
    is_outermost: bool = False
    batch: list[weakref.ref[Tensor]] = field(default_factory=list)
    computed: list[TensorSummary] = field(default_factory=list)
    is_builtin: bool = False
    follows_others: bool = False
    handed_back: list[list[tuple[Tensor, Tensor]] | None] = field(default_factory=list)

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
        """True if the gradient of any tensor that went in held NaN or Inf: what this call handed back, where seen."""
        return any(self.handed_back_nonfinite(place) for place in range(len(self.given)))

    def handed_back_nonfinite(self, place: int) -> bool:
        """Return True if the gradient of what went in at ``place`` held NaN or Inf; the sum where no part was seen."""
        own = self.saw_handed_back(place)
        if own is None:
            return self.given[place].has_nonfinite_gradient
        return any(not math.isfinite(float(end)) for ends in own for end in ends)

    def saw_handed_back(self, place: int) -> list[tuple[Tensor, Tensor]] | None:
        """Return the extremes of what this call handed back at ``place``; None where it was not seen."""
        return self.handed_back[place] if place < len(self.handed_back) else None
