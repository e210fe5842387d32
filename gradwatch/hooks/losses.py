"""Find the loss of an update: the scalars that ``backward()`` was called on since its gradients were empty.

Calls of ``torch.autograd.backward`` (``Tensor.backward`` calls it) tell the losses, and calls of ``GradScaler.scale``
(``scalers.py``) what they were before they were scaled. Losses of ``torch.autograd.grad`` stay unseen: compiled code
takes that function into its graphs, and a wrapper would keep it out.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.utils.weak import WeakIdKeyDictionary

from gradwatch import _torch
from gradwatch.fork_safety import ForkSafeLock
from gradwatch.hooks.clearing import GradientClearing, state_of
from gradwatch.hooks.followed_function import FollowedFunction
from gradwatch.hooks.graph import operation_of, saved_by

__all__ = ["FoundLoss", "LossFinder", "follow_backward", "roots_of_backward"]

MOST_LOSSES = 256
"""Losses of one update, more than most loops accumulate: a program that never updates must not fill memory."""

MOST_PRODUCTS = 4
"""Last products of a loss that are looked at: the Trainer of Hugging Face and Accelerate make three between them."""

follow_backward = FollowedFunction(torch.autograd, "backward").listen
"""Listen to the calls of ``backward()`` in this process; see ``FollowedFunction.listen``."""


def roots_of_backward(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Tensor], bool]:
    """Return the tensors that a call of ``backward()`` begins at, and whether they are a loss.

    They are none where one has several entries, or where the caller hands gradients over.
    """
    parts = _listed(args[0] if args else kwargs.get("tensors"))
    gradients = _listed(args[1] if len(args) > 1 else kwargs.get("grad_tensors"))
    roots = [part for part in parts if isinstance(part, Tensor)]  # others are edges of the graph
    are_scalars = bool(roots) and len(roots) == len(parts) and all(root.numel() == 1 for root in roots)
    return roots, are_scalars and all(gradient is None for gradient in gradients)


def _listed(tensors: Any) -> list[Any]:
    if tensors is None:
        return []
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


@dataclass(eq=False)
class FoundLoss:
    """A call of ``backward()``.

    Attributes:
        value: () the loss without its loss scale, detached; None where the call was made on no loss.
        factor: the number that the loop has multiplied it by at last: 1/4 for ``(loss / 4).backward()``.
        divisors: the tensors that the loop has divided it by at last.
        followed: how many of its losses were handed to whoever looks at graphs.
        reached: columns whose gradients it has added to, as far as they are listened to.
        thread: that it was made on. Gradients of what another thread trains must not even be read.
    """

    value: Tensor | None
    factor: float = 1.0
    divisors: tuple[Tensor, ...] = ()
    followed: int = 0
    reached: set[int] = field(default_factory=set)
    thread: int = field(default_factory=threading.get_ident)


class LossFinder:
    """The losses of the coming updates.

    An update has the losses whose backward passes its gradients are made of: those that have reached its parameters
    since these were without gradient, or since the last update where nobody clears gradients. So a loss of another
    model is none of its losses, and neither is a generator's, whose gradients in the critic are cleared. A few
    parameters of each optimizer stand for all. Where none of them was reached (their layers were not used, or their
    gradients come another way, as under FSDP), the losses count that have reached nobody since the last update.

    Losses that a loop has divided by the number of backward passes of an update are multiplied by it again, so that
    the figure does not depend on the accumulation. Losses that were divided by one and the same tensor, the number of
    items in the whole update, are shares of one mean, and count as their sum.

    Args:
        tensors: the watched tensors, by column.
        adds_up: the losses of an update are known to be shares of one: several count as their sum.

    Attributes:
        clearing: the order in which the loop clears its gradients, seen by the same parameters.
    """

    def __init__(self, tensors: Sequence[Tensor], *, adds_up: bool = False) -> None:
        self.clearing = GradientClearing(tensors)
        self._tensors, self._adds_up = tensors, adds_up
        self._calls: dict[int, FoundLoss] = {}  # by the thread that called
        self._lock = ForkSafeLock()  # no pass of another thread may replace gradients while they are read
        self._made_of: dict[int, deque[FoundLoss]] = {}  # column → what its gradient is made of
        self._left: dict[int, tuple[int, int]] = {}  # column → its gradient where the latest backward pass left it
        self._updated: set[int] = set()  # columns that were updated since the latest backward pass
        self._since: deque[FoundLoss] = deque(maxlen=MOST_LOSSES)
        self._took: set[int] = set()  # optimizers that were updated since the latest backward pass
        self._division: float | None = None  # the factor by which this loop accumulates, once it was seen to
        self._unscaled = WeakIdKeyDictionary()  # what a scaler returned → what it was given
        self._scaler: GradScaler | None = None  # has scaled something since the latest backward pass

    def note_scaled(self, scaler: GradScaler, given: Any, scaled: Any) -> None:
        """Note that ``scaler`` made ``scaled`` from ``given``."""
        if isinstance(scaled, Tensor) and isinstance(given, Tensor) and scaled is not given:
            self._unscaled[scaled] = given
            self._scaler = scaler

    def begin(self, roots: Sequence[Tensor], *, is_loss: bool) -> FoundLoss:
        """Note that a backward pass begins at ``roots``. Several losses at once count as their sum."""
        scaler, self._scaler = self._scaler, None
        with self._lock:  # first of all: a fault below must leave no loss of an earlier update in place of this one
            self.clearing.begin(is_alone=not self._calls)
            self._forget_cleared()
        found = self._found(roots, scaler) if is_loss else FoundLoss(None)
        with self._lock:
            self._calls[threading.get_ident()] = found
        self._since.append(found)
        return found

    def _forget_cleared(self) -> None:
        """Forget what gradients were made of that were cleared or used since the latest backward pass."""
        thread, is_alone = threading.get_ident(), not self._calls
        for column, made_of in list(self._made_of.items()):
            is_mine = is_alone and bool(made_of) and made_of[-1].thread == thread
            if column in self._updated or (is_mine and self._is_changed(column)):
                made_of.clear()
        if self._took:
            self._since.clear()
        self._updated.clear()
        self._took.clear()

    def arrive(self, column: int) -> None:
        """Note that the backward pass under way has added to the gradient of ``column``."""
        found = self._calls.get(threading.get_ident())
        if found is None and len(others := list(self._calls.values())) == 1:  # a thread of autograd's own, for a device
            found = others[0]
        self.clearing.arrive(column)
        if (state := state_of(self._tensors[column])) is not None:
            self._left[column] = state
        if found is not None and column not in found.reached:
            found.reached.add(column)
            self._made_of.setdefault(column, deque(maxlen=MOST_LOSSES)).append(found)

    def end(self, found: FoundLoss, *, has_failed: bool) -> None:
        """Note that a backward pass has ended; one that has failed has no loss."""
        if has_failed:
            found.value = None
        with self._lock:
            self._calls.pop(threading.get_ident(), None)
            reached = set() if self._calls else found.reached & self._made_of.keys()
            self.clearing.end(reached)
            for column in reached:
                if (state := state_of(self._tensors[column])) is not None:  # they may have been averaged since
                    self._left[column] = state

    def take(self, columns: Collection[int], optimizer: int) -> list[Tensor]:
        """Return the () losses of an update that is about to be made.

        Args:
            columns: the watched parameters of the optimizer.
            optimizer: a number of its own.
        """
        found = self._reaching(columns)
        if not found and optimizer not in self._took:
            found = [each for each in self._since if not each.reached]
        self._use(columns, optimizer)
        return self._undivided([each for each in found if each.value is not None])

    def leave(self, columns: Collection[int], optimizer: int) -> None:
        """Note that an update is made: whatever backward pass comes next, its losses are none of this update's."""
        self.clearing.leave(columns)
        self._use(columns, optimizer)

    def _use(self, columns: Collection[int], optimizer: int) -> None:
        self._updated.update(column for column in self._made_of if column in columns)
        self._took.add(optimizer)

    def choose(self, columns: Collection[int], arrived: Sequence[int]) -> set[int]:
        """Return the columns to listen to from now on, which stand for all of an optimizer; forget its others.

        Args:
            columns: all of the optimizer, after its first backward passes.
            arrived: those with a gradient, the one that arrived last first. Each pass is met by at least one that
                is chosen.
        """
        chosen = set(arrived[:1])
        for found in self._reaching(columns):
            if not chosen & found.reached:
                chosen.add(next(column for column in arrived if column in found.reached))
        self.clearing.forget(set(columns) - chosen)
        for column in set(columns) - chosen:
            self._made_of.pop(column, None)
            self._left.pop(column, None)
        return chosen

    def _reaching(self, columns: Collection[int]) -> list[FoundLoss]:
        """Return the passes that the gradients of ``columns`` are made of, in their order."""
        mine = [made_of for column, made_of in self._made_of.items() if column in columns]
        return list(dict.fromkeys(itertools.chain.from_iterable(mine)))

    def _is_changed(self, column: int) -> bool:
        """Return whether a gradient was cleared, or changed otherwise, since a backward pass left it."""
        return state_of(self._tensors[column]) != self._left.get(column)

    def _found(self, roots: Sequence[Tensor], scaler: GradScaler | None) -> FoundLoss:
        with torch.no_grad():
            values = [self._value(root, scaler) for root in roots]
            if len(values) > 1:
                return FoundLoss(torch.stack(values).sum())
        given = self._given(roots[0])
        unscaled = roots[0] if given is None else given
        return FoundLoss(values[0], factor_of(unscaled), divisors_of(unscaled))

    def _value(self, loss: Tensor, scaler: GradScaler | None) -> Tensor:
        """Return () ``loss`` without its scale: as it was before scaling, or divided where it was computed since."""
        value = loss.detach()
        if (given := self._given(loss)) is not None:
            value = given.detach()
        elif scaler is not None:
            value = value / _torch.scale_of(scaler)
        return value.reshape(())

    def _given(self, loss: Tensor) -> Tensor | None:
        """Return what a scaler was given for ``loss``; None where no scaler has returned it."""
        return self._unscaled.get(loss) if self._unscaled else None

    def _undivided(self, found: Sequence[FoundLoss]) -> list[Tensor]:
        """Return the losses as they were before they were divided; their mean is the loss of the update."""
        values = [each.value for each in found if each.value is not None]
        factor = self._factor_of_all(found)
        return values if factor == 1 else [value / factor for value in values]

    def _factor_of_all(self, found: Sequence[FoundLoss]) -> float:
        """Return what the losses were multiplied by because there are several; 1 where that is not so."""
        if len(found) > 1 and (self._adds_up or _are_shares(found)):
            return 1 / len(found)
        factors = {each.factor for each in found}
        factor = factors.pop() if len(factors) == 1 else 1.0
        if len(found) > 1 and abs(factor * len(found) - 1) < 1e-6:
            self._division = factor
        return factor if factor == self._division else 1.0  # an epoch may end with fewer passes, divided by the same


def factor_of(loss: Tensor) -> float:
    """Return the number that ``loss`` was multiplied by at last, products by 1 left out; 1 where there was none.

    Accelerate divides by 1 what the Trainer of Hugging Face has divided by the number of passes.
    """
    node: Any = loss.grad_fn
    for _ in range(MOST_PRODUCTS):
        operation = None if node is None else operation_of(node)
        number = _number(saved_by(node, "other")) if operation in ("mul", "div") else None
        if not number:
            break
        if number != 1:
            return 1 / number if operation == "div" else number
        node = node.next_functions[0][0]
    return 1.0


def divisors_of(loss: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors without gradient that ``loss`` was divided by in its last products, as far as they are kept.

    Numbers are among them on the CPU, where torch keeps each as a tensor of its own.
    """
    found: list[Tensor] = []
    node: Any = loss.grad_fn
    for _ in range(MOST_PRODUCTS):
        if node is None or (operation := operation_of(node)) not in ("mul", "div"):
            break
        other = saved_by(node, "other") if operation == "div" else None
        if isinstance(other, Tensor) and not other.requires_grad and other.numel() == 1:
            found.append(other)
        node = node.next_functions[0][0]
    return tuple(found)


def _are_shares(found: Sequence[FoundLoss]) -> bool:
    """Return True if all were divided by one tensor; as long as it is kept, no other lies where it lies."""
    places = [{divisor.data_ptr() for divisor in each.divisors} for each in found]
    return bool(set.intersection(*places))


def _number(other: Any) -> float | None:
    """Return a factor that is no tensor to wait for; torch keeps numbers as tensors on the CPU."""
    if isinstance(other, Tensor):
        is_at_hand = other.is_cpu and other.numel() == 1 and not (other.requires_grad or other.is_complex())
        return float(other) if is_at_hand else None
    return float(other) if isinstance(other, int | float) else None
