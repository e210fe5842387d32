"""Notice whether a loop clears its gradients, and when: before a backward pass, never, or between it and the update.

Clipping is noticed, too, where it comes at a time at which the gradients of the coming update are not there.

A gradient that is the same object in the same version at the beginning of a backward pass as after the update before
was not cleared by ``zero_grad``, by ``p.grad = None`` or by anything else that torch counts. What torch does not count
(``p.grad.data.zero_()``) shows in its norm, which is looked at until one look has proved it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gradwatch import _torch
from gradwatch.ranks.shards import local_part

__all__ = ["GradientClearing", "LoopOrder", "state_of"]

Time = Literal["in time", "before backward", "after step"]

PROVE_FROM = 2
"""Updates in a row without clearing after which norms are looked at: healthy loops never pay for it."""


class LoopOrder(NamedTuple):
    """The way in which the loop clears gradients around its updates.

    Attributes:
        uncleared: updates in a row, this one included, whose gradients still held those of the update before.
        emptied: updates in a row before which, after their backward pass, gradients were cleared or changed.
        misplaced: updates in a row for which the loop has clipped, but never between their backward pass and them.
        is_late: it has clipped what the update before had used already; otherwise gradients that were cleared.
    """

    uncleared: int = 0
    emptied: int = 0
    misplaced: int = 0
    is_late: bool = False


def state_of(tensor: Tensor) -> tuple[int, int] | None:
    """Return what changes where the gradient of ``tensor`` is replaced, or changed in place; None without one."""
    gradient = tensor.grad
    return None if gradient is None else (id(gradient), _torch.version_of(gradient))


@dataclass
class _Gradient:
    """One gradient since the update before.

    Attributes:
        left: its state where the latest backward pass or update left it.
        thread: on which backward passes reach it; no other may read it.
        has_arrived: a backward pass has reached it.
        is_kept: it was seen at the beginning of a backward pass, and as it was left each time; None where unseen.
        norms: at those times, as far as they were looked at.
        clipped: when the loop has clipped it since the update before, as far as it has.
    """

    left: tuple[int, int] | None = None
    thread: int = 0
    has_arrived: bool = False
    is_kept: bool | None = None
    norms: tuple[Tensor, ...] = ()
    clipped: frozenset[Time] = frozenset()


class GradientClearing:
    """The order of backward passes, clearing and updates of each optimizer.

    Args:
        tensors: the watched tensors, by column.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._gradients: dict[int, _Gradient] = {}
        self._orders: dict[int, LoopOrder] = {}
        self._proved: dict[int, bool] = {}  # optimizer → whether a norm has proved that gradients were kept

    def begin(self, *, is_alone: bool) -> None:
        """Look at the gradients before a backward pass adds to them.

        Args:
            is_alone: no other thread runs a backward pass, which may replace what is looked at.
        """
        thread = threading.get_ident()
        for column, gradient in list(self._gradients.items()):
            if gradient.thread != thread or gradient.is_kept is False:
                continue
            tensor = self._tensors[column]
            gradient.is_kept = is_alone and gradient.left is not None and state_of(tensor) == gradient.left
            if gradient.is_kept and self._needs_proof and tensor.grad is not None:
                norm = torch.linalg.vector_norm(local_part(tensor.grad).detach().to_dense())
                gradient.norms = (*gradient.norms[-7:], norm)

    def arrive(self, column: int) -> None:
        """Note that a backward pass has added to the gradient of ``column``."""
        gradient = self._gradients.setdefault(column, _Gradient(is_kept=False))
        gradient.thread, gradient.has_arrived = threading.get_ident(), True
        gradient.is_kept = gradient.is_kept or False
        gradient.left = state_of(self._tensors[column])

    def end(self, columns: Iterable[int]) -> None:
        """Note how a backward pass has left the gradients of ``columns``: they may have been averaged at its end."""
        for column in columns:
            if column in self._gradients:
                self._gradients[column].left = state_of(self._tensors[column])

    def note_clipping(self, parameters: Iterable[Tensor]) -> None:
        """Note that the loop clips the gradients of ``parameters``; is the coming update to be made of them?"""
        clipped, thread = set(map(id, parameters)), threading.get_ident()
        for column, gradient in list(self._gradients.items()):
            tensor = self._tensors[column]
            if gradient.thread != thread or id(tensor) not in clipped:
                continue
            state = state_of(tensor)
            is_used = state is not None and state == gradient.left
            time: Time = "in time" if gradient.has_arrived else ("after step" if is_used else "before backward")
            gradient.clipped |= {time}

    def judge(self, columns: Collection[int], optimizer: int) -> LoopOrder:
        """Return what the loop did before the update that is about to be made."""
        mine = {column: each for column, each in self._gradients.items() if column in columns and each.has_arrived}
        before = self._orders.get(optimizer, LoopOrder())
        order = LoopOrder()
        if mine:
            is_kept = all(each.is_kept for each in mine.values())
            is_emptied = all(state_of(self._tensors[column]) != each.left for column, each in mine.items())
            misplaced, is_late = _misplaced(mine.values(), before)
            order = LoopOrder((before.uncleared + 1) * is_kept, (before.emptied + 1) * is_emptied, misplaced, is_late)
        self._orders[optimizer] = order
        if order.uncleared > PROVE_FROM and optimizer not in self._proved:
            self._prove(optimizer, mine.values())
        return order if self._proved.get(optimizer) else LoopOrder(0, *order[1:])

    def misplaced_now(self) -> LoopOrder:
        """Return the order before the latest update of the optimizer whose clipping is misplaced for longest."""
        return max(self._orders.values(), key=lambda order: order.misplaced, default=LoopOrder())

    def leave(self, columns: Collection[int]) -> None:
        """Note that an update was made of the gradients of ``columns``."""
        for column, gradient in list(self._gradients.items()):
            if column in columns:
                thread = gradient.thread
                self._gradients[column] = _Gradient(state_of(self._tensors[column]), thread)

    def forget(self, columns: Iterable[int]) -> None:
        """Look at ``columns`` no longer."""
        for column in columns:
            self._gradients.pop(column, None)

    @property
    def _needs_proof(self) -> bool:
        return any(
            order.uncleared >= PROVE_FROM and optimizer not in self._proved for optimizer, order in self._orders.items()
        )

    def _prove(self, optimizer: int, gradients: Iterable[_Gradient]) -> None:
        """Read the norms, once in a run; one of 0 means that the loop clears in a way that torch does not count."""
        norms = [norm for gradient in gradients for norm in gradient.norms]
        if norms:
            self._proved[optimizer] = all(float(norm) > 0 for norm in norms)


def _misplaced(gradients: Iterable[_Gradient], before: LoopOrder) -> tuple[int, bool]:
    """Return ``misplaced`` and ``is_late`` of an update that is made of ``gradients``."""
    times: set[Time] = set().union(*(gradient.clipped for gradient in gradients))
    if not times or "in time" in times:
        return 0, False
    return before.misplaced + 1, "after step" in times
