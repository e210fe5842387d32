"""What every module was given and returned in one step → which of them made a NaN or Inf.

The figures of the calls stay on the device; each is read on the host once, and only for a step that is sick.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Origin, Where

__all__ = ["ModuleCall", "TensorSummary", "inferred_origin", "origin_of"]


@dataclass(eq=False)
class TensorSummary:
    """One tensor as it was when a module was given it, or returned it.

    Attributes:
        extremes: () its smallest and its largest entry; NaN where any entry is.
        gradients: the same of its gradient, once the backward pass has come by.
    """

    extremes: tuple[Tensor, Tensor]
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @cached_property
    def is_sick(self) -> bool:
        """Whether it held NaN or Inf."""
        return any(not math.isfinite(float(end)) for end in self.extremes)

    @cached_property
    def is_mask(self) -> bool:
        """Whether it held −Inf, and neither NaN nor Inf: attention is told so what to leave out."""
        low, high = map(float, self.extremes)
        return low == -math.inf and high < math.inf

    @cached_property
    def has_nan(self) -> bool:
        """Whether it held NaN."""
        return any(math.isnan(float(end)) for end in self.extremes)

    @cached_property
    def turns_sick(self) -> bool:
        """Whether its gradient held NaN or Inf."""
        return any(not math.isfinite(float(end)) for ends in self.gradients for end in ends)


@dataclass(eq=False)
class ModuleCall:
    """One call of one module.

    Attributes:
        module, type: its name and class.
        entered, left: what went in and came out.
        is_whole: it was called by the loop, not by another module.
        batch: the tensors that went into it then, as long as the loop keeps them.
        computed: those of ``entered`` then that were computed from parameters.
        is_builtin: a layer of ``torch.nn`` without parts.
    """

    module: str
    type: str
    entered: list[TensorSummary] = field(default_factory=list)
    left: list[TensorSummary] = field(default_factory=list)
    is_whole: bool = False
    batch: list[weakref.ref[Tensor]] = field(default_factory=list)
    computed: list[TensorSummary] = field(default_factory=list)
    is_builtin: bool = False

    def title(self) -> str:
        """How it is called in a sentence."""
        return f"{self.module} ({self.type})" if self.module else f"the model itself ({self.type})"


def origin_of(calls: Sequence[ModuleCall], loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
    """Where a step's NaN or Inf came from; None where no call was seen. Waits for the device.

    Args:
        calls: the calls of that step, in the order in which they ended, so that a part stands before its whole.
        loss: of that step, if it was observed.
        sick_layers: names of the parameters whose gradients hold NaN or Inf.
    """
    if not calls:
        return None
    loss_is_sick = not math.isfinite(loss) if loss is not None else _is_sick(calls[-1].left)
    return _forward(calls) if loss_is_sick else _backward(calls, sick_layers)


def inferred_origin(
    layers: Layers, modules: Sequence[tuple[str, bool]], how_to_see: str, loss: float | None, sick_layers: Sequence[str]
) -> Origin:
    """The same from which gradients are finite: all that is known where no call was seen.

    Args:
        layers: the table.
        modules: (name, whether it is one of ``torch.nn``) of those without parts, as registered.
        how_to_see: what would name the module.
        loss, sick_layers: as for ``origin_of``.
    """
    order = [layers.names[column] for column in np.argsort(layers.depth)]
    sick = [place for place, name in enumerate(order) if name in set(sick_layers)]
    if not sick or (loss is not None and not math.isfinite(loss)):
        words = "made in the forward pass, or by the loss"
        return Origin("", "forward", f"{words}; the module was {how_to_see}", "inferred")
    last = order[sick[-1]]
    owner = last.rpartition(".")[0]
    if sick[-1] == len(order) - 1:
        words = f"no gradient is finite behind the loss, down from {last}: made by the loss, or "
        own = _own_from(modules, owner)
        words += f"by {own[0]}, which stands there" if len(own) == 1 else "behind that layer"
        return Origin(owner, "loss", f"{words}; the module was {how_to_see}", "inferred")
    finite = order[sick[-1] + 1]
    if sick[0] > 0 and order[0].rpartition(".")[0] != owner:
        words = f"the gradient of {last} is not finite, while those on both sides of it are"
        return Origin(owner, "backward", f"{words}; the module was {how_to_see}", "inferred")
    if finite.rpartition(".")[0] == owner:
        words = f"the gradient of {finite} is finite and that of {last} is not: what {owner} was given held NaN or Inf"
        return Origin(owner, "input", f"{words}; the module that made it was {how_to_see}", "inferred")
    words = f"gradients are finite from the loss down to {finite}, and no longer at {last}: made between the two"
    maker = _between(modules, owner, finite.rpartition(".")[0])
    if maker is not None:
        words += f", where {maker or 'the model itself'} stands"
    return Origin(maker or owner, "backward", f"{words}; the module was {how_to_see}", "inferred")


def _between(modules: Sequence[tuple[str, bool]], first: str, last: str) -> str | None:
    """The one module between two that may have made it: torch's own activation functions have bounded slopes."""
    names = [name for name, _ in modules]
    if first not in names or last not in names:
        return None
    between = modules[names.index(first) + 1 : names.index(last)]
    own = [name for name, is_builtin in between if not is_builtin] or [name for name, _ in between]
    if not own and (last, False) in modules:
        return last  # no layer of torch's: what goes in may get a sick gradient while its own weights get none
    whole = first.rpartition(".")[0]
    if not own and whole and whole == last.rpartition(".")[0]:
        return whole  # the forward pass of the module around both
    return own[0] if len(own) == 1 else None


def _own_from(modules: Sequence[tuple[str, bool]], first: str) -> list[str]:
    """Those from ``first`` on that are not torch's, whose derivatives may be without bound."""
    names = [name for name, _ in modules]
    behind = modules[names.index(first) :] if first in names else []
    return [name for name, is_builtin in behind if not is_builtin]


def _forward(calls: Sequence[ModuleCall]) -> Origin:
    made_nan = next((p for p in calls if _has_nan(p.left) and not _has_nan(p.entered)), None)
    made_inf = next((p for p in calls if _is_sick(p.left) and not _is_sick(p.entered)), None)
    if made_inf is not None and (
        made_nan is None or _is_sick(made_nan.entered) or _came_first(made_inf, made_nan, calls)
    ):
        what = "NaN" if _has_nan(made_inf.left) else "Inf"
        return Origin(made_inf.module, "forward", f"{made_inf.title()} was given finite values and returned {what}")
    fed = next((p for p in calls if _is_sick(p.computed)), None)
    if fed is not None and (made_nan is None or _reaches(fed, made_nan, calls)):
        return Origin(
            fed.module,
            "between",
            f"what {fed.title()} was given already held NaN or Inf{_rows(fed)}; it was computed outside "
            f"every module{_before(calls, fed)}",
        )
    whole = [p for p in calls if p.is_whole and _is_fed(p)]
    if made_nan is not None and not (whole and _reaches(whole[0], made_nan, calls)):
        given = "Inf" if _is_sick(made_nan.entered) else "finite values"
        return Origin(made_nan.module, "forward", f"{made_nan.title()} was given {given} and returned NaN")
    sick_inputs = [p for p in calls if _is_sick(p.entered)]
    fed = next((p for p in sick_inputs if p.is_whole), sick_inputs[0] if sick_inputs else None)
    if fed is not None:
        return Origin(fed.module, "input", f"what {fed.title()} was given already held NaN or Inf{_rows(fed)}")
    last = calls[-1]
    ends = [float(end) for summary in last.left for end in summary.extremes]
    reach = f" ({min(ends):.3g} to {max(ends):.3g})" if ends else ""
    return Origin(last.module, "loss", f"{last.title()} returned finite values{reach}; the loss made of them is not")


def _is_fed(call: ModuleCall) -> bool:
    """Whether what went in was sick; a mask is no sickness, and never what a model is given first."""
    return any(summary.is_sick and (place == 0 or not summary.is_mask) for place, summary in enumerate(call.entered))


def _came_first(made_inf: ModuleCall, made_nan: ModuleCall, calls: Sequence[ModuleCall]) -> bool:
    """Whether an Inf that is no mask was there before: it may have come as a weight that another module generated."""
    is_no_mask = any(summary.is_sick and not summary.is_mask for summary in made_inf.left)
    return made_inf is made_nan or (is_no_mask and calls.index(made_inf) < calls.index(made_nan))


def _reaches(fed: ModuleCall, other: ModuleCall, calls: Sequence[ModuleCall]) -> bool:
    """Whether ``other`` was called by ``fed`` or after it, and what went into it was not finite either."""
    is_later = calls.index(fed) < calls.index(other) or _is_inside(other.module, fed.module) or fed is other
    return is_later and _is_sick(other.entered)


def _backward(calls: Sequence[ModuleCall], sick_layers: Sequence[str]) -> Origin | None:
    received = [p for p in calls if any(summary.gradients for summary in p.left)]
    around_sick = _parents([*sick_layers, *(p.module for p in received if _turns_sick(p.left))])
    healthy = [p for p in received if not _turns_sick(p.left)]
    sick_elsewhere = {p.module for p in received if _turns_sick(p.left)}  # of a module that is called several times
    makers = [p for p in healthy if _passes_on(p, received) or p.module in around_sick - sick_elsewhere]
    around_makers = _parents(p.module for p in makers)
    deepest = [p for p in makers if p.module not in around_makers]
    seen = [p for p in deepest if _turns_sick(p.entered) or _is_sick(p.entered)]
    if not seen and any(p.is_whole and _turns_sick(p.left) for p in received):
        deepest = []  # of several micro-batches, one whose gradient came sick from the loss
    if deepest:
        maker = (seen or deepest)[-1]
        if _is_sick(maker.entered) and any(_is_sick(p.left) for p in calls):
            return _forward(calls)  # zero times NaN: a forward value that the loss did not see
        given = f"the backward pass of {maker.title()} was given finite gradients"
        if maker.is_builtin and not _turns_sick(maker.entered):
            layer = next(layer for layer in sick_layers if _is_inside(layer, maker.module))
            return Origin(
                maker.module,
                "backward",
                f"{given}, but that of {layer} is not finite: it overflowed, or something else uses that parameter (a "
                "penalty in the loss)",
            )
        return Origin(maker.module, "backward", f"{given} and returned NaN or Inf")
    sick = [place for place, p in enumerate(received) if _turns_sick(p.left)]
    if not sick:
        return None
    first, behind = received[sick[-1]], received[sick[-1] + 1 :]
    said = f"the gradient of what {first.title()} returned is already NaN or Inf"
    after = f", while that of what {behind[0].title()} returned is finite: made between the two" if behind else ""
    where: Where = "between" if behind else "loss"
    return Origin(first.module, where, f"{said}{after}, outside every module")


def _passes_on(call: ModuleCall, received: Sequence[ModuleCall]) -> bool:
    """Whether the gradient of what went in is sick, and not by another module that was given the same."""
    others = [p for p in received if _turns_sick(p.left) and not _is_inside(p.module, call.module)]
    return any(summary.turns_sick and not any(summary in p.entered for p in others) for summary in call.entered)


def _before(calls: Sequence[ModuleCall], fed: ModuleCall) -> str:
    """After which call, in words."""
    earlier = [p for p in calls[: calls.index(fed)] if p.is_whole and not _is_sick(p.left)]
    return f", after {earlier[-1].title()} returned finite values" if earlier else ""


def _rows(call: ModuleCall) -> str:
    """Which rows of what went in hold NaN or Inf, in words."""
    for tensor in (kept() for kept in call.batch):
        if tensor is not None and tensor.ndim > 1 and not bool(torch.isfinite(tensor).all()):
            rows = torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1)).flatten().tolist()
            listed = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
            return f", in {len(rows)} of {len(tensor)} rows: {listed}"
    return ""


def _is_inside(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _parents(names: Iterable[str]) -> set[str]:
    """Names of all modules around those named; ``""`` is the model itself."""
    found = set()
    for name in names:
        while name:
            name = name.rpartition(".")[0]
            found.add(name)
    return found


def _is_sick(summaries: Sequence[TensorSummary]) -> bool:
    return any(summary.is_sick for summary in summaries)


def _has_nan(summaries: Sequence[TensorSummary]) -> bool:
    return any(summary.has_nan for summary in summaries)


def _turns_sick(summaries: Sequence[TensorSummary]) -> bool:
    return any(summary.turns_sick for summary in summaries)
