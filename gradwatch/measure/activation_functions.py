"""Find the activation functions in an autograd graph, and the entries at which they are flat.

A function is seen whoever called it: a module, the forward of one, or the loop. Its node tells its settings, and holds
its inputs or its results until the backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradwatch import _torch
from gradwatch.hooks.graph import operation_of, saved_axis, saved_by
from gradwatch.measure import slopes
from gradwatch.measure.samples import coprime_stride
from gradwatch.measure.slopes import SATURATED_SHARE, SteepRange
from gradwatch.ranks.shards import local_part

__all__ = ["FlatEntries", "flat_entries", "is_softmax_of_one", "may_be_activation", "may_shut_the_loss"]

MASKING = ("maskedfill", "where", "add")  # operations that write −Inf into logits

SOFTMAX_ROWS = 256
"""Distributions of each softmax that are examined."""

TOGETHER = 2**20
"""Entries that are examined in one call. With many small tensors the calls cost more than the comparisons."""

_LOGISTIC = ("logsigmoid", "binarycrossentropywithlogits")  # losses that are flat where a discriminator is sure

Rows = Callable[[Tensor], Tensor]
"""From what a function has saved to (rows..., units), the part of it that is examined."""

FunctionKind = Literal["rectifier", "squashing", "softmax"]


@dataclass(frozen=True)
class FlatEntries:
    """The entries at which k calls of one kind of activation function pass hardly any gradient.

    Attributes:
        kind: a rectifier is judged by units, a squashing function by entries, a softmax by rows.
        places: (k,) indices of the calls among those asked about.
        joined: bool, (rows..., N), the entries of all calls side by side. NaN is not flat.
        units: (k,) how many of the N belong to each call; 1 for a softmax, of which a row counts as one entry.
    """

    kind: FunctionKind
    places: Sequence[int]
    joined: Tensor
    units: Sequence[int]

    def silent_units(self) -> Sequence[Tensor]:
        """Return for each call (units,) which units are flat on all rows."""
        return self.joined.all(dim=_all_but_last(self.joined)).split([*self.units])

    def shares(self) -> Sequence[Tensor]:
        """Return for each call () the share of flat entries."""
        of_units = self.joined.mean(dim=_all_but_last(self.joined), dtype=torch.float32)
        sums = _torch.foreach_norm([*of_units.split([*self.units])], 1)  # of numbers that are not negative
        return _torch.foreach_div(sums, self.units)


@dataclass(frozen=True)
class _ActivationFunction:
    """One function of torch: ``steep_range(*settings)`` is an interval of what its node saves.

    Attributes:
        steep_range: of ``gradwatch.measure.slopes``.
        settings: names under which the node saves the settings.
        saves: whether the node saves the input or the result.
        is_rectifier: else it is a squashing function.
    """

    steep_range: Callable[..., SteepRange]
    settings: tuple[str, ...] = ()
    saves: Literal["self", "result"] = "self"
    is_rectifier: bool = True


ACTIVATION_FUNCTIONS: Mapping[str, _ActivationFunction] = {
    "relu": _ActivationFunction(slopes.relu, saves="result"),
    "gelu": _ActivationFunction(slopes.gelu, ("approximate",)),
    "silu": _ActivationFunction(slopes.silu),
    "mish": _ActivationFunction(slopes.mish),
    "elu": _ActivationFunction(slopes.elu, ("alpha", "scale", "input_scale")),
    "celu": _ActivationFunction(slopes.celu, ("alpha",)),
    "hardswish": _ActivationFunction(slopes.hardswish),
    "softplus": _ActivationFunction(slopes.softplus, ("beta", "threshold")),
    "leakyrelu": _ActivationFunction(slopes.leaky_relu, ("negative_slope",)),
    "hardtanh": _ActivationFunction(slopes.hardtanh, ("min_val", "max_val"), is_rectifier=False),
    "hardsigmoid": _ActivationFunction(slopes.hardsigmoid, is_rectifier=False),
    "sigmoid": _ActivationFunction(slopes.sigmoid_results, saves="result", is_rectifier=False),
    "tanh": _ActivationFunction(slopes.tanh_results, saves="result", is_rectifier=False),
}
"""By the names of their nodes. SELU is an ELU. ReLU6 is a hardtanh that begins at 0, and counts as a rectifier."""


@dataclass(frozen=True)
class _SavedTensor:
    """The tensor that the node of an activation function has saved.

    Attributes:
        kind: of the function.
        steep: where the function is steep, in terms of the tensor; not used for a softmax.
        tensor: as saved; of a softmax (rows, n) some distributions.
        is_masked: whether some entries of a softmax may be masked.
    """

    kind: FunctionKind
    steep: SteepRange
    tensor: Tensor
    is_masked: bool = False


def may_be_activation(node: Any) -> bool:
    """Tell by its name alone whether ``node`` may be an activation function."""
    name = operation_of(node)
    return name in ACTIVATION_FUNCTIONS or name in ("softmax", "div")


def may_shut_the_loss(node: Any) -> bool:
    """Tell by its name alone whether ``node`` may be a function before the loss that passes no gradient."""
    return may_be_activation(node) or operation_of(node) in _LOGISTIC


@torch.no_grad()
def flat_entries(asked: Sequence[tuple[Any, Rows]]) -> Iterator[FlatEntries]:
    """Yield the flat entries of those nodes that are activation functions and still hold what they saved.

    Functions with the same steep range and as many rows are examined together.

    Args:
        asked: pairs of a node and what to examine of it.
    """
    alike: defaultdict[Any, list[tuple[int, Tensor]]] = defaultdict(list)
    for place, (node, rows) in enumerate(asked):
        saved = _saved_by_function(node)
        if saved is not None:
            is_softmax = saved.kind == "softmax"
            part = saved.tensor if is_softmax else rows(saved.tensor)
            shape = part.shape if is_softmax else part.shape[:-1]
            alike[saved.kind, saved.steep, saved.is_masked, shape, part.dtype, part.device].append((place, part))
    for (kind, steep, is_masked, *_), parts in alike.items():
        for batch in _batches(parts):
            places, tensors = zip(*batch, strict=True)
            if kind == "softmax":
                yield _flat_softmaxes(places, tensors, is_masked=is_masked)
            else:
                yield _flat_functions(kind, places, tensors, steep)


def _flat_softmaxes(places: Sequence[int], distributions: Sequence[Tensor], *, is_masked: bool) -> FlatEntries:
    """Return the rows of k softmaxes in which one entry takes nearly all; each of ``distributions`` is (rows, n)."""
    sure = _sure_rows(torch.stack([*distributions], -2), is_masked=is_masked)
    return FlatEntries("softmax", places, sure, [1] * len(places))


def _flat_functions(
    kind: FunctionKind, places: Sequence[int], parts: Sequence[Tensor], steep: SteepRange
) -> FlatEntries:
    """Return where k functions that are steep inside ``steep`` are flat; each of ``parts`` is (rows..., units)."""
    units = [part.shape[-1] for part in parts]
    if steep == slopes.EVERYWHERE:  # as a leaky ReLU: nothing need be read
        return FlatEntries(kind, places, parts[0].new_zeros((1, sum(units)), dtype=torch.bool), units)
    joined = torch.cat([*parts], -1) if len(parts) > 1 else parts[0]
    return FlatEntries(kind, places, steep.is_outside(joined), units)


def _saved_by_function(node: Any) -> _SavedTensor | None:
    """Return what the node of an activation function holds; None for other nodes, or where it was freed."""
    name = operation_of(node)
    if name in _SAVED_BY:
        return _SAVED_BY[name](node)
    function = ACTIVATION_FUNCTIONS.get(name)
    if function is None:
        return None
    saved = saved_by(node, function.saves)
    if saved is None or saved.layout is not torch.strided or saved.numel() == 0:
        return None
    settings = [saved_by(node, setting) for setting in function.settings]
    is_relu6 = name == "hardtanh" and settings[0] == 0
    kind: FunctionKind = "rectifier" if function.is_rectifier or is_relu6 else "squashing"
    return _SavedTensor(kind, function.steep_range(*settings), local_part(saved))


def _saved_by_logistic_loss(node: Any) -> _SavedTensor | None:
    """Return the absolute slopes of a logistic loss, at most 1: of log σ(x) 1 − σ(x), with a target t σ(x) − t."""
    logits, target = saved_by(node, "self"), saved_by(node, "target")
    if logits is None or logits.numel() == 0:
        return None
    slope = 1 - logits.sigmoid() if target is None else (logits.sigmoid() - target).abs()
    return _SavedTensor("squashing", SteepRange(low=SATURATED_SHARE), local_part(slope))


def _saved_by_division(node: Any) -> _SavedTensor | None:
    """Return what the node of a softsign holds; None for other divisions, or where it was freed."""
    divisor = saved_by(node, "other") if _is_softsign(node) else None
    return None if divisor is None else _SavedTensor("squashing", slopes.softsign_divisors(), divisor)


def _batches(parts: Sequence[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield ``parts`` in lists of at most ``TOGETHER`` entries, or of one part."""
    batch: list[tuple[int, Tensor]] = []
    entries = 0
    for place, part in parts:
        if batch and entries + part.numel() > TOGETHER:
            yield batch
            batch, entries = [], 0
        batch.append((place, part))
        entries += part.numel()
    yield batch


def _all_but_last(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(tensor.ndim - 1))


def _saved_by_softmax(node: Any) -> _SavedTensor | None:
    """Return (rows, n), some distributions that a softmax has given; None where they were freed.

    A softmax over a single entry always gives 1: there is nothing that lies far out.
    """
    probabilities = saved_by(node, "result")
    if probabilities is None or probabilities.numel() == 0:
        return None
    axis = saved_axis(node, probabilities.ndim)
    if axis is None or probabilities.shape[axis] == 1:
        return None
    last = local_part(probabilities).movedim(axis, -1)
    rows = last.reshape(-1, last.shape[-1])
    positions = last.shape[-2] if last.ndim > 2 else 1  # of a sequence; the first ones see little of it
    some = rows[:: coprime_stride(len(rows), SOFTMAX_ROWS, positions)]
    return _SavedTensor("softmax", slopes.EVERYWHERE, some, _is_masked(node))


_SAVED_BY: Mapping[str, Callable[[Any], _SavedTensor | None]] = {
    "div": _saved_by_division,
    "softmax": _saved_by_softmax,
    **dict.fromkeys(_LOGISTIC, _saved_by_logistic_loss),
}
"""By the names of nodes whose slope is not a function of one saved tensor alone."""


def _sure_rows(probabilities: Tensor, *, is_masked: bool) -> Tensor:
    """Return (rows, k) where one of (rows, k, n) probabilities takes nearly all, and is not the only one unmasked."""
    largest = probabilities.amax(-1).float()
    flat = (4 * largest * (1 - largest) < SATURATED_SHARE) & (largest > 0.5)
    return flat & ((probabilities > 0).sum(-1) > 1) if is_masked else flat


def is_softmax_of_one(node: Any) -> bool:
    """Return True for a softmax over an axis of one entry, while another axis than the first has several.

    Its results are 1, and its slope is 0, whatever it is given. Rows of a matrix do not tell whether one expert, or one
    component, is meant.
    """
    if operation_of(node) != "softmax" or (probabilities := saved_by(node, "result")) is None:
        return False
    axis, shape = saved_axis(node, probabilities.ndim), probabilities.shape
    if axis is None or shape[axis] != 1:
        return False
    return any(length > 1 for place, length in enumerate(shape) if place not in (0, axis))


def _is_masked(node: Any) -> bool:
    """Tell whether the logits of a softmax may hold −Inf for entries that are masked."""
    (logits, _) = node.next_functions[0]
    return logits is not None and operation_of(logits) in MASKING


def _is_softsign(node: Any) -> bool:
    """Tell whether ``node`` divides x by 1 + |x|; torch has no node of its own for a softsign."""
    (x, _), *others = node.next_functions
    divisor = others[0][0] if others else None
    if divisor is None or operation_of(divisor) != "add":
        return False
    inner = divisor.next_functions[0][0]
    return inner is not None and operation_of(inner) == "abs" and inner.next_functions[0][0] is x
