"""Look at the graphs of the losses of a step before their backward pass, which frees what they have saved.

A loss that is finite costs a walk over its first nodes at the first three losses of a run, and one after an update
whose gradients were all exactly zero; nothing else. A loss that is NaN or Inf is searched for the operation that made
it, and for a tensor that came with it: a target, a weight or an advantage, which needs no gradient, so that nobody
computes one for it and no module was given it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwatch.explain.flat import FlatOperation, flat_operation
from gradwatch.explain.operations import (
    FaultyOperation,
    loss_fault,
    loss_operations,
    unbounded_loss_operations,
)
from gradwatch.explain.recorded_call import OUTPUT
from gradwatch.hooks.graph import operation_of, saved_axis, saved_by, upstream_nodes

__all__ = ["LossGraph", "TakenTensor"]

MOST_LOSSES = 8
"""Losses whose graphs are held until the update. Of more micro-batches than that, only the last are looked at."""

FIRST_LOSSES = 3
"""Losses whose graphs are searched for what is flat by its shape. How a model is built does not change later."""

TARGET_LOOKS = 4
"""Losses from which on the targets are looked at again, at each power of 2."""

FURTHEST = 64
"""Nodes that are searched from each loss on: as far as ``operations`` looks."""

FLAT_SEARCHES = 3
"""Losses that are searched for a flat operation. Each search waits for the device."""

DISTANCES = ("mseloss", "l1loss", "smoothl1loss", "huberloss")
"""Losses of torch that measure a distance to targets, which their nodes save."""

GREW = 3.0
"""Times their size at first from which on targets count as growing, if they also grew before the latest look."""

_TAKEN_BY: dict[str, tuple[tuple[str, int | None], ...]] = {
    "mul": (("self", 0), ("other", 1)),
    "div": (("other", 1), ("self", 0)),
    "mseloss": (("target", 1), ("self", 0)),
    "l1loss": (("target", 1), ("self", 0)),
    "smoothl1loss": (("target", 1), ("self", 0)),
    "huberloss": (("target", 1), ("self", 0)),
    "binarycrossentropy": (("target", 1), ("weight", None), ("self", 0)),
    "binarycrossentropywithlogits": (("target", 1), ("weight", None), ("pos_weight", None)),
    "nllloss": (("weight", None),),
    "nllloss2d": (("weight", None),),
    "xlogy": (("self", 0), ("other", 1)),
    "pow": (("exponent", 1), ("self", 0)),
    "mm": (("self", 0), ("mat2", 1)),
    "bmm": (("self", 0), ("mat2", 1)),
    "dot": (("self", 0), ("tensor", 1)),
    "mv": (("self", 0), ("vec", 1)),
}
"""Operation to the tensors that its node saves, with their places among its inputs; None where none has a gradient."""

_KEEP_NOTHING = ("add", "sub", "rsub")
"""Operations of two operands whose nodes save neither."""


@dataclass(frozen=True)
class TakenTensor:
    """A tensor without a gradient that the loss takes beside the outputs of the model, and that holds NaN or Inf.

    Attributes:
        shape: of it.
        rows: that hold NaN or Inf; () for a single number.
        has_nan: NaN, not Inf only.
        is_result: ``shape`` and ``rows`` are those of what was computed of it by an addition or subtraction, which
            saves neither operand.
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    has_nan: bool
    is_result: bool = False


def _is_seen_sick(loss: Tensor) -> bool:
    """Return whether ``loss`` is NaN or Inf; False where looking would wait, or it is no single number."""
    return loss.is_cpu and loss.numel() == 1 and not math.isfinite(loss.item())


class LossGraph:
    """The graphs of the losses since the last update.

    Attributes:
        fault: the operation that made a loss NaN or Inf, of finite numbers.
        taken: what a loss was given that held NaN or Inf already.
        softmax_of_one: (shape, axis) of a softmax over an axis of one entry in the first losses of the run.
        flat: the operation that passed no gradient when it was looked for last.
        are_targets: ``target_size`` is that of targets, not of their difference from the outputs.
    """

    def __init__(self) -> None:
        self.fault: FaultyOperation | None = None
        self.taken: TakenTensor | None = None
        self.softmax_of_one: tuple[tuple[int, ...], int] | None = None
        self.flat: FlatOperation | None = None
        self.are_targets = False
        self._target_square: Tensor | None = None
        self._later_squares: list[Tensor] = []
        self._count = 0
        self._losses: deque[Any] = deque(maxlen=MOST_LOSSES)
        self._seen, self._flat_searches = 0, 0
        self._seeks_flat = False

    def observe(self, loss: Tensor) -> None:
        """Take a loss before its backward pass."""
        if loss.grad_fn is None:
            return
        self._losses.append(loss.grad_fn)
        if self._seen < FIRST_LOSSES:
            self._seen += 1
            self.softmax_of_one = self.softmax_of_one or _softmax_of_one(loss.grad_fn)
            self._take_targets(loss.grad_fn)
        self._follow_targets(loss.grad_fn)
        if self._seeks_flat:
            self._seeks_flat = False
            self.flat = flat_operation(loss.grad_fn)
        is_known = self.fault is not None or self.taken is not None
        if not is_known and _is_seen_sick(loss):
            self.fault = loss_fault(OUTPUT, loss.grad_fn)
            self.taken = _taken_tensor(loss.grad_fn) if self.fault is None else None

    def seek_flat(self) -> None:
        """Look for a flat operation in the next loss; the first few times only, since it waits for the device."""
        if self._flat_searches < FLAT_SEARCHES:
            self._flat_searches += 1
            self._seeks_flat = True

    def target_size(self) -> float | None:
        """Return the root mean square of what the first losses compared the outputs with; None where none was seen.

        Waits for the device.
        """
        return None if self._target_square is None else float(self._target_square) ** 0.5

    def target_growth(self) -> tuple[float, float] | None:
        """Return (first, latest) root mean square of the targets, where they have grown from look to look, else None.

        Waits for the device.
        """
        if self._target_square is None or not self.are_targets or len(self._later_squares) < 2:
            return None
        squares = (self._target_square, *self._later_squares)
        first, between, latest = (float(square) ** 0.5 for square in squares)
        return (first, latest) if 0 < GREW * first <= latest < math.inf and first < between < latest else None

    def forget(self) -> None:
        """Forget the losses of an update, which is now made."""
        self._losses.clear()
        self.fault = self.taken = None

    def leave_out(self, count: int) -> None:
        """Forget the last ``count`` losses, which are those of another model: their graphs are not held."""
        for _ in range(min(count, len(self._losses))):
            self._losses.pop()
        if not self._losses:
            self.fault = self.taken = None

    def _take_targets(self, loss: Any) -> None:
        """Keep the mean square of the targets of a loss, or of a difference that is squared; the first one counts."""
        if self._target_square is None:
            self._target_square, self.are_targets = _target_square(loss)

    def _follow_targets(self, loss: Any) -> None:
        """Keep the mean squares of the latest two looks at the targets, at each power of 2 of the losses."""
        self._count += 1
        if self._count < TARGET_LOOKS or self._count & (self._count - 1) or not self.are_targets:
            return
        square, are_targets = _target_square(loss)
        if square is not None and are_targets:
            self._later_squares = [*self._later_squares, square][-2:]

    def operations(self) -> tuple[str, ...]:
        """Return the names of the operations between the losses and what the models returned, each once."""
        return loss_operations(OUTPUT, self._losses)

    def unbounded_operations(self) -> tuple[str, ...]:
        """Return those of ``operations`` whose derivative has no bound."""
        return unbounded_loss_operations(OUTPUT, self._losses)


def _softmax_of_one(loss: Any) -> tuple[tuple[int, ...], int] | None:
    """Return the shape and the axis of a softmax over an axis of one entry."""
    for node in upstream_nodes([loss], "", FURTHEST):
        if operation_of(node) not in ("softmax", "logsoftmax"):
            continue
        result = saved_by(node, "result")
        if not isinstance(result, Tensor) or not result.ndim:
            continue
        axis = saved_axis(node, result.ndim)
        if axis is not None and result.shape[axis] == 1:
            return tuple(result.shape), axis
    return None


def _target_square(loss: Any) -> tuple[Tensor | None, bool]:
    """Return (the mean square of what a loss compares outputs with, whether that is the targets themselves)."""
    for node in reversed(upstream_nodes([loss], OUTPUT, FURTHEST)):
        compared, are_targets = _compared_with(node)
        if isinstance(compared, Tensor) and compared.is_floating_point() and compared.numel():
            return compared.detach().float().square().mean(), are_targets
    return None, False


def _compared_with(node: Any) -> tuple[Any, bool]:
    """Return (the targets, True), or (their difference from the outputs, False); (None, False) for other operations."""
    name = operation_of(node)
    if name in DISTANCES:
        return saved_by(node, "target"), True
    if name == "abs" or (name == "pow" and saved_by(node, "exponent") == 2):
        return saved_by(node, "self"), False
    return None, False


def _taken_tensor(loss: Any) -> TakenTensor | None:
    """Return the first tensor without a gradient, in the order of computation, that held NaN or Inf when it was taken.

    An operation that saves neither of its operands is at fault where one of them needs no gradient, what it was made of
    with a gradient is finite as far as it is known, and what was computed of it next is not.
    """
    suspect: Any = None
    for node in upstream_nodes([loss], OUTPUT, FURTHEST):
        sick = next((pair for pair in _held_by(node) if _is_sick(pair[0])), None)
        if sick is not None:
            held, made_by = sick[0], _maker_of(node, sick[1])
            if made_by is None:
                return _taken(held, is_result=False)
            return _taken(held, is_result=True) if made_by is suspect else None  # else an operation before made it
        if operation_of(node) in _KEEP_NOTHING and None in (_maker_of(node, 0), _maker_of(node, 1)):
            suspect = node
    return None


def _held_by(node: Any) -> Iterator[tuple[Tensor, int | None]]:
    """Yield the tensors that a node has saved of its inputs, with their places among them."""
    for attribute, place in _TAKEN_BY.get(operation_of(node), (("self", 0),)):
        held = saved_by(node, attribute)
        if isinstance(held, Tensor):
            yield held, place


def _maker_of(node: Any, place: int | None) -> Any:
    """Return the node that made the input at ``place``; None where it needs no gradient."""
    edges = node.next_functions
    return None if place is None or place >= len(edges) else edges[place][0]


def _is_sick(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and not bool(torch.isfinite(tensor).all())


def _taken(tensor: Tensor, *, is_result: bool) -> TakenTensor:
    rows: tuple[int, ...] = ()
    if tensor.ndim > 0:
        sick = ~torch.isfinite(tensor.detach()).reshape(len(tensor), -1).all(1)
        rows = tuple(torch.nonzero(sick).flatten().tolist())
    return TakenTensor(tuple(tensor.shape), rows, bool(tensor.isnan().any()), is_result)
