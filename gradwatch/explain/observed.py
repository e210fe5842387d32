"""Find where a NaN or Inf came from, by what each module was given and returned in that step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gradwatch.explain.call_summary import ModuleCall, TensorSummary
from gradwatch.explain.loss_graph import TakenTensor
from gradwatch.explain.operations import FaultyOperation
from gradwatch.measure.report import Where

__all__ = ["BadRows", "ModuleTitle", "ObservedOrigin", "Pattern", "input_origin", "observed_origin"]

Pattern = Literal[
    "forward",  # a module was given finite values and returned NaN or Inf
    "input",  # the model was given NaN or Inf
    "computed between",  # what a module was given was computed from parameters, outside of every module
    "loss",  # the model returned finite values, and the loss is not finite
    "backward",  # the backward pass of a module was given finite gradients and returned others
    "parameter",  # the same, where only the gradient of a parameter is not finite
    "gradient between",  # the gradient arrived at a module, while that of the next call was finite
    "gradient of the loss",  # the gradient of what the last call returned was not finite
]

_PART_OF_STEP: dict[Pattern, Where] = {
    "forward": "forward",
    "input": "input",
    "computed between": "between",
    "loss": "loss",
    "backward": "backward",
    "parameter": "backward",
    "gradient between": "between",
    "gradient of the loss": "loss",
}


@dataclass(frozen=True)
class ModuleTitle:
    """A module by its name, ``""`` for the model itself, and its class."""

    name: str
    type: str


@dataclass(frozen=True)
class BadRows:
    """The rows of a batch that hold NaN or Inf, and how many rows the batch has."""

    rows: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class ObservedOrigin:
    """The origin of a NaN or Inf, as the calls of the step show it. The pattern decides which fields are set.

    Attributes:
        pattern: what was seen.
        module: that made it, or was given it, or returned last.
        was_given_inf: the module was given Inf, not finite values only.
        has_nan: the module returned NaN, not Inf only.
        rows: which rows of the batch hold it.
        neighbour: the last call before the module that returned finite values; or the next call after the module.
        reach: smallest and largest entry of what the module returned.
        parameter: whose gradient is not finite.
        operation: that made it.
        taken: what the loss was given beside the outputs that held it already.
        corrupt: names of the module's buffers that held NaN or Inf.
        loss_operations: by which the loss was computed.
        unbounded: those of ``loss_operations`` whose derivative has no bound.
    """

    pattern: Pattern
    module: ModuleTitle
    was_given_inf: bool = False
    has_nan: bool = True
    rows: BadRows | None = None
    neighbour: ModuleTitle | None = None
    reach: tuple[float, float] | None = None
    parameter: str = ""
    operation: FaultyOperation | None = None
    taken: TakenTensor | None = None
    corrupt: tuple[str, ...] = ()
    loss_operations: tuple[str, ...] = ()
    unbounded: tuple[str, ...] = ()

    @property
    def where(self) -> Where:
        """The part of the step in which it was made."""
        return _PART_OF_STEP[self.pattern]


def observed_origin(
    calls: Sequence[ModuleCall], loss: float | None, layers_at_fault: Sequence[str]
) -> ObservedOrigin | None:
    """Return where a step's NaN or Inf came from; None where the calls do not show it. Waits for the device.

    Args:
        calls: of that step, in the order in which they ended: a module after its children.
        loss: of that step, if it was observed.
        layers_at_fault: names of the parameters whose gradients hold NaN or Inf.
    """
    if not calls:
        return None
    is_forward = not math.isfinite(loss) if loss is not None else calls[-1].returned_nonfinite
    return _forward_origin(calls) if is_forward else _backward_origin(calls, layers_at_fault)


def input_origin(calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    """Return what the loop gave a model that held NaN or Inf; None where it gave no such thing. Waits for the device.

    Args:
        calls: of models by the loop, in their order; what they returned need not be known.
    """
    return _computed_between(calls) or _bad_input(calls)


# The forward pass


def _forward_origin(calls: Sequence[ModuleCall]) -> ObservedOrigin:
    return _origin_in_modules(calls) or _made_by_loss(calls)


def _origin_in_modules(calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    return _made_inf(calls) or _computed_between(calls) or _made_nan(calls) or _bad_input(calls)


def _made_inf(calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    """The first call that made NaN or Inf of finite values, unless a NaN of another origin came before."""
    made = _first(calls, lambda call: call.returned_nonfinite and not call.was_given_nonfinite)
    nan = _first_nan(calls)
    if made is None or (nan is not None and not nan.was_given_nonfinite and not _came_first(made, nan, calls)):
        return None
    return ObservedOrigin("forward", _title(made), has_nan=made.returned_nan)


def _computed_between(calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    """The first call that was given something nonfinite which the loop itself had computed from parameters."""
    fed = _first(calls, lambda call: any(summary.is_nonfinite for summary in call.computed))
    nan = _first_nan(calls)
    if fed is None or (nan is not None and not _reaches(fed, nan, calls)):
        return None
    earlier = [call for call in calls[: calls.index(fed)] if call.is_outermost and not call.returned_nonfinite]
    neighbour = _title(earlier[-1]) if earlier else None
    return ObservedOrigin("computed between", _title(fed), rows=_bad_rows(fed), neighbour=neighbour)


def _made_nan(calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    """The first call that made NaN of numbers, unless what the model was given explains it."""
    nan = _first_nan(calls)
    fed = _first(calls, lambda call: call.is_outermost and _was_fed_nonfinite(call))
    if nan is None or (fed is not None and _reaches(fed, nan, calls)):
        return None
    return ObservedOrigin("forward", _title(nan), was_given_inf=nan.was_given_nonfinite)


def _bad_input(calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    fed = _first(calls, lambda call: call.is_outermost and _was_fed_nonfinite(call))
    fed = fed or _first(calls, _was_fed_nonfinite)
    return None if fed is None else ObservedOrigin("input", _title(fed), rows=_bad_rows(fed))


def _made_by_loss(calls: Sequence[ModuleCall]) -> ObservedOrigin:
    last = calls[-1]
    ends = [float(end) for summary in last.returned for end in summary.extremes]
    return ObservedOrigin("loss", _title(last), reach=(min(ends), max(ends)) if ends else None)


def _first_nan(calls: Sequence[ModuleCall]) -> ModuleCall | None:
    return _first(calls, lambda call: call.returned_nan and not call.was_given_nan)


def _first(calls: Sequence[ModuleCall], holds: Callable[[ModuleCall], bool]) -> ModuleCall | None:
    return next((call for call in calls if holds(call)), None)


def _was_fed_nonfinite(call: ModuleCall) -> bool:
    """Tell whether the loop gave ``call`` NaN or Inf. A mask does not count."""
    return any(_is_fed_nonfinite(call, place) for place in range(len(call.given)))


def _is_fed_nonfinite(call: ModuleCall, place: int) -> bool:
    """Tell whether what ``call`` was given at ``place`` is NaN or Inf, and no mask: no model is given a mask first."""
    summary, comes_first = call.given[place], place == 0 and not call.follows_others
    return summary.is_nonfinite and (comes_first or not summary.is_mask)


def _came_first(inf: ModuleCall, nan: ModuleCall, calls: Sequence[ModuleCall]) -> bool:
    """Tell whether an Inf that is no mask was there first: it may have come as a weight made by another module."""
    is_no_mask = any(summary.is_nonfinite and not summary.is_mask for summary in inf.returned)
    return inf is nan or (is_no_mask and calls.index(inf) < calls.index(nan))


def _reaches(fed: ModuleCall, other: ModuleCall, calls: Sequence[ModuleCall]) -> bool:
    """Tell whether ``other`` was called by ``fed`` or after it, and was given something nonfinite, too."""
    is_later = calls.index(fed) < calls.index(other) or _is_inside(other.module, fed.module) or fed is other
    return is_later and other.was_given_nonfinite


def _bad_rows(call: ModuleCall) -> BadRows | None:
    """Return which rows of the batch hold NaN or Inf; None where the batch is gone, or has no rows."""
    for place, kept in enumerate(call.batch):
        tensor = kept()
        if tensor is not None and tensor.ndim > 1 and _is_fed_nonfinite(call, place):
            rows = torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1)).flatten().tolist()
            return BadRows(tuple(rows), len(tensor))
    return None


# The backward pass


def _backward_origin(calls: Sequence[ModuleCall], layers_at_fault: Sequence[str]) -> ObservedOrigin | None:
    received = [call for call in calls if call.received_gradient]
    maker = _maker(received, layers_at_fault)
    if maker is None:
        return _gradient_from_outside(received)
    in_forward = _origin_of_value_left_out(maker, calls)
    if in_forward is not None:
        return in_forward
    if not maker.is_builtin or maker.passed_nonfinite_gradient:
        return ObservedOrigin("backward", _title(maker))
    parameters = (layer for layer in layers_at_fault if _is_inside(layer, maker.module))
    return ObservedOrigin("parameter", _title(maker), parameter=next(parameters))


def _origin_of_value_left_out(maker: ModuleCall, calls: Sequence[ModuleCall]) -> ObservedOrigin | None:
    """Return the origin of a value of the forward pass that the loss left out: its gradient is zero times NaN."""
    is_there = maker.was_given_nonfinite and any(call.returned_nonfinite for call in calls)
    return _origin_in_modules(calls) if is_there else None


def _maker(received: Sequence[ModuleCall], layers_at_fault: Sequence[str]) -> ModuleCall | None:
    """Return the innermost call that was given finite gradients and made others; None where there is none."""
    innermost = _innermost(_makers(received, layers_at_fault))
    certain = [call for call in innermost if call.passed_nonfinite_gradient or call.was_given_nonfinite]
    if not certain and any(call.is_outermost and call.received_nonfinite_gradient for call in received):
        return None  # of several micro-batches, one whose gradient was bad when it came from the loss
    candidates = certain or innermost
    return candidates[-1] if candidates else None


def _makers(received: Sequence[ModuleCall], layers_at_fault: Sequence[str]) -> list[ModuleCall]:
    """Return the calls that were given finite gradients and have a nonfinite gradient inside them or before them."""
    with_bad_gradient = {call.module for call in received if call.received_nonfinite_gradient}
    # a module that is called several times may have received the bad gradient at another call
    suspects = _parents([*layers_at_fault, *with_bad_gradient]) - with_bad_gradient
    healthy = [call for call in received if not call.received_nonfinite_gradient]
    return [call for call in healthy if call.module in suspects or _passes_on(call, received)]


def _innermost(calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """Return the calls of modules that contain none of the others."""
    parents = _parents(call.module for call in calls)
    return [call for call in calls if call.module not in parents]


def _gradient_from_outside(received: Sequence[ModuleCall]) -> ObservedOrigin | None:
    """The last call whose gradient was bad on arrival: the loss, or the loop after the call, made it."""
    bad = [place for place, call in enumerate(received) if call.received_nonfinite_gradient]
    if not bad:
        return None
    first, later = received[bad[-1]], received[bad[-1] + 1 :]
    if later:
        return ObservedOrigin("gradient between", _title(first), neighbour=_title(later[0]))
    return ObservedOrigin("gradient of the loss", _title(first))


def _passes_on(call: ModuleCall, received: Sequence[ModuleCall]) -> bool:
    """Tell whether ``call`` made the gradient of what it was given nonfinite.

    What it handed back decides, where that was seen; else the sum that arrived, unless another call explains it.
    """
    explained: list[TensorSummary] = []
    for other in received:
        if other.received_nonfinite_gradient and not _is_inside(other.module, call.module):
            explained += other.given
    return any(
        call.handed_back_nonfinite(place) and (call.saw_handed_back(place) is not None or summary not in explained)
        for place, summary in enumerate(call.given)
    )


def _title(call: ModuleCall) -> ModuleTitle:
    return ModuleTitle(call.module, call.type)


def _is_inside(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _parents(names: Iterable[str]) -> set[str]:
    """Return the names of all modules around those named; ``""`` is the model itself."""
    found = set()
    for name in names:
        while name:
            name = name.rpartition(".")[0]
            found.add(name)
    return found
