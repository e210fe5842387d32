"""Measure how far the targets of a loss lie beyond what the function at the output of the model can give.

A sigmoid gives 0 to 1. Where a squared error asks it for 50, no weights bring that error below 49². Both numbers are
facts of one forward pass: the graph of the loss holds the targets, or their differences from the outputs, until the
backward pass.

Only plain errors are read: from the loss back, means, sums, factors and weight penalties, then one squared, absolute
or Huber error, then at most changes of shape, then the function. Masks and weights of single entries end the walk,
since what they leave out of the loss may lie anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradwatch.hooks.graph import LEAF, operation_of, saved_by, upstream_nodes

__all__ = ["TargetReach", "target_reach"]

FURTHEST = 32
"""Nodes that are followed from a loss to its error, and from there to the function at the output."""

PENALTY = 256
"""Nodes of a term of the loss that is searched for outputs of the model; a penalty on all weights may have as many."""

MOST = 2**16
"""Targets that are examined, evenly spaced."""

_REDUCTIONS = (
    "mean",
    "sum",
    "sqrt",
    "view",
    "reshape",
    "unsafeview",
    "alias",
    "squeeze",
    "unsqueeze",
    "tocopy",
    "clone",
)
_FACTORS = ("mul", "div")
_ERRORS = {"mseloss": 2, "l1loss": 1, "smoothl1loss": 1, "huberloss": 1}
_DIFFERENCES = ("sub", "rsub")
_LAYERS = ("mm", "addmm", "bmm", "convolution", "embedding", "mseloss", "l1loss")
_SAME_ENTRIES = ("view", "reshape", "unsafeview", "alias", "squeeze", "unsqueeze", "tocopy", "clone")


@dataclass(frozen=True)
class TargetReach:
    """The targets of one loss, and the range of the function at the output.

    Attributes:
        node: of the function.
        output: (lowest, highest) value that it can give; Inf where it has no bound.
        figures: () floor: the least mean error that any outputs can have; error: the mean error as it is; size: the
            mean error of outputs that are all zero; low, high: of the targets.
    """

    node: Any
    output: tuple[float, float]
    figures: Mapping[str, Tensor]


@torch.no_grad()
def target_reach(loss: Any) -> TargetReach | None:
    """Return how far the targets of a loss lie out of reach; None where the loss or its output are of another kind.

    Args:
        loss: the node of the loss, before its backward pass.
    """
    error = _error_of(loss)
    function = None if error is None else _function_before(error.outputs)
    output = None if function is None else _range_of(function)
    if error is None or output is None:
        return None
    targets = _targets_of(error, function, output)
    return None if targets is None else TargetReach(function, output, _figures(error, targets, output))


def _targets_of(error: _Error, function: Any, output: tuple[float, float]) -> Tensor | None:
    """Return some of the targets, flat; None where they are not known."""
    if error.targets is not None:
        return _some(error.targets)
    result = _result_of(function, output)
    if result is None or result.numel() != error.difference.numel():
        return None
    return _some(result.reshape(error.difference.shape)) + error.sign * _some(error.difference)


def _figures(error: _Error, targets: Tensor, output: tuple[float, float]) -> dict[str, Tensor]:
    targets, difference = targets.float(), _some(error.difference).float()
    beyond = targets - targets.clamp(*output)
    return {
        "target_floor": beyond.abs().pow(error.power).mean(),
        "target_error": difference.abs().pow(error.power).mean(),
        "target_size": targets.abs().pow(error.power).mean(),
        "target_low": targets.min(),
        "target_high": targets.max(),
    }


@dataclass(frozen=True)
class _Error:
    """An error between outputs and targets, before its mean is taken.

    Attributes:
        outputs: the node that made them.
        power: to which the difference is raised.
        difference: outputs − targets, or targets − outputs.
        sign: by which the difference is added to the outputs to give the targets.
        targets: where the graph holds them; None where the error was computed by hand, which saves the difference.
    """

    outputs: Any
    power: int
    difference: Tensor
    sign: int
    targets: Tensor | None = None


def _error_of(loss: Any) -> _Error | None:
    """Return the one error that a loss is made of; None where it is made of something else."""
    node = loss
    for _ in range(FURTHEST):
        if node is None:
            return None
        found = _error_by_function(node) or _error_by_hand(node)
        if found is not None or not _is_passed(node):
            return found
        node = _only_input(node)
    return None


def _error_by_function(node: Any) -> _Error | None:
    """Return the error of a function of torch; None where both of its operands are learned, or neither is."""
    power = _ERRORS.get(operation_of(node))
    first, second = saved_by(node, "self"), saved_by(node, "target")
    if power is None or not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return None
    (one, _), (other, _) = node.next_functions[:2]
    if (one is None) is (other is None):
        return None
    outputs, targets = (first, second) if other is None else (second, first)
    return _Error(one or other, power, outputs - targets, -1, targets)


def _error_by_hand(node: Any) -> _Error | None:
    """Return the error that a node makes of a difference, one operand of which needs no gradient."""
    power, difference = _power_at(node), saved_by(node, "self")
    if power is None or not isinstance(difference, Tensor):
        return None
    before = node.next_functions[0][0]
    if before is None or operation_of(before) not in _DIFFERENCES:
        return None
    inputs = [made_by for made_by, _ in before.next_functions]
    known = [made_by for made_by in inputs if made_by is not None]
    if len(known) != 1:
        return None
    is_turned = (known[0] is not inputs[0]) is not (operation_of(before) == "rsub")
    return _Error(known[0], power, difference, 1 if is_turned else -1)


def _power_at(node: Any) -> int | None:
    """Return the power to which a node raises what it has saved; None where it does something else."""
    name = operation_of(node)
    if name == "abs":
        return 1
    if name == "pow":
        return 2 if saved_by(node, "exponent") == 2 else None
    if name != "mul":
        return None
    (one, _), (other, _) = node.next_functions
    return 2 if one is not None and one is other else None


def _is_passed(node: Any) -> bool:
    """Return True for an operation that does no more than sum up, scale as a whole, or add a term.

    A factor that is a number is saved as a number, or as a tensor of one entry; the other operand is not saved.
    """
    name = operation_of(node)
    if name == "where":
        return _is_one_number(saved_by(node, "condition"))
    if name in _FACTORS:
        return _is_one_number(saved_by(node, "self")) and _is_one_number(saved_by(node, "other"))
    return name in _REDUCTIONS or name == "add"


def _is_one_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


def _only_input(node: Any) -> Any:
    """Return the one input of a node that depends on what the model was given; None where there are more."""
    inputs = [made_by for made_by, _ in node.next_functions if made_by is not None]
    if len(inputs) > 1:
        inputs = [made_by for made_by in inputs if not _is_of_weights_alone(made_by)]
    return inputs[0] if len(inputs) == 1 else None


def _is_of_weights_alone(node: Any) -> bool:
    """Return True if a term of the loss is made of weights alone: a penalty on them."""
    if node.name() == LEAF:
        return True
    found = upstream_nodes([node], "", PENALTY)
    if len(found) >= PENALTY:
        return False
    return not any(each.metadata or operation_of(each) in _LAYERS for each in found)  # marks are on outputs of modules


def _function_before(node: Any) -> Any:
    """Return the operation that computed the outputs of a model, whatever their shape became afterwards."""
    for _ in range(FURTHEST):
        if node is None or operation_of(node) not in _SAME_ENTRIES:
            return node
        node = node.next_functions[0][0]
    return None


def _result_of(node: Any, output: tuple[float, float]) -> Tensor | None:
    """Return what a function has returned; some save only what they were given."""
    name = operation_of(node)
    given, result = saved_by(node, "self"), saved_by(node, "result")
    if isinstance(result, Tensor):
        return result
    if not isinstance(given, Tensor):
        return None
    if name in ("hardtanh", "clamp"):
        return given.clamp(*output)
    return _COMPUTED[name](given) if name in _COMPUTED else None


def _range_of(node: Any) -> tuple[float, float] | None:
    """Return the lowest and the highest value that a function can give; None where both are unbounded."""
    name = operation_of(node)
    if name in ("hardtanh", "clamp"):
        names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
        low, high = (saved_by(node, each) for each in names)
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return None
        low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
        return None if low == -high == -math.inf else (low, high)
    return _RANGES.get(name)


_RANGES: Mapping[str, tuple[float, float]] = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf),
    "logsigmoid": (-math.inf, 0.0),
    "logsoftmax": (-math.inf, 0.0),
}
"""By the names of the nodes."""

_COMPUTED: Mapping[str, Callable[[Tensor], Tensor]] = {"hardsigmoid": F.hardsigmoid, "logsigmoid": F.logsigmoid}
"""Functions without settings whose nodes save what they were given."""


def _some(tensor: Tensor) -> Tensor:
    """Return at most about ``MOST`` evenly spaced entries, flat."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // MOST)]
