"""Walk an autograd graph upstream: its nodes, their operations' names, and what they have saved.

Marks in a node's ``metadata`` tell where a walk ends, since whoever holds a node holds its whole graph.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from gradwatch import _torch

__all__ = [
    "MADE_BY",
    "inputs_first",
    "maker_of",
    "operation_of",
    "saved_axis",
    "saved_by",
    "takers_of",
    "upstream_nodes",
]

LEAF = "torch::autograd::AccumulateGrad"

MADE_BY = "gradwatch: made by the module"
"""Mark of a node in a replayed graph: the name of the innermost module that returned its result."""

NEAREST = 8
"""Nodes within which the module is looked for that made what an operation was given."""

MOST_NODES = 10_000
"""Nodes of a whole graph that is walked, in about a tenth of a second."""


def upstream_nodes(outputs: Iterable[Any], mark: str, most: int) -> list[Any]:
    """Return at most ``most`` nodes that ``outputs`` were made by, these among them, in the order in which they ran.

    The walk stops at nodes that bear ``mark``: neither they nor their inputs are returned.
    """
    found: set[Any] = set()
    ahead = deque(outputs)
    while ahead and len(found) < most:
        node = ahead.popleft()
        if node is not None and node not in found and mark not in node.metadata and node.name() != LEAF:
            found.add(node)
            ahead.extend(following for following, _ in node.next_functions)
    return sorted(found, key=_torch.sequence_number)


def maker_of(tensor: Tensor) -> str:
    """Return the name of the module that made ``tensor``, or nearby operands of it; "" where none is marked."""
    ahead: deque[Any] = deque([tensor.grad_fn])
    seen = 0
    while ahead and seen < NEAREST:
        node = ahead.popleft()
        if node is None:
            continue
        if MADE_BY in node.metadata:
            return str(node.metadata[MADE_BY])
        seen += 1
        ahead.extend(following for following, _ in node.next_functions)
    return ""


def inputs_first(root: Any) -> list[Any] | None:
    """Return all nodes upstream of ``root``, each after those that it leads to; None where they say nothing of paths.

    A compiled graph is one node that leads to every tensor at once. A graph of more than ``MOST_NODES`` takes too long.
    """
    found: set[Any] = set()
    order: list[Any] = []
    ahead: list[tuple[Any, bool]] = [(root, False)]
    while ahead:
        node, is_done = ahead.pop()
        if is_done:
            order.append(node)
        elif node not in found:
            found.add(node)
            if len(found) > MOST_NODES or "Compiled" in node.name():
                return None
            ahead.append((node, True))
            ahead.extend((each, False) for each, _ in node.next_functions if each is not None)
    return order


def takers_of(tensor: Tensor, outputs: Sequence[Tensor], most: int) -> list[tuple[Any, int]]:
    """Return (node, place among its inputs) of the operations between ``outputs`` and ``tensor`` that take ``tensor``.

    It is empty where ``tensor`` has no graph, where none of at most ``most`` nodes takes it, and where there are more.
    """
    if tensor.grad_fn is None:
        return []
    wanted = tensor.grad_fn, tensor.output_nr
    seen: set[Any] = {None, tensor.grad_fn}
    ahead: deque[Any] = deque(output.grad_fn for output in outputs)
    found: list[tuple[Any, int]] = []
    while ahead and len(seen) <= most:
        node = ahead.popleft()
        if node in seen:
            continue
        seen.add(node)
        found += [(node, place) for place, edge in enumerate(node.next_functions) if edge == wanted]
        ahead.extend(following for following, _ in node.next_functions)
    return [] if ahead else found


def saved_axis(node: Any, dimensions: int) -> int | None:
    """Return the axis that an operation has saved as ``dim``, from 0 on; None where it has saved none."""
    dim = saved_by(node, "dim")
    if not isinstance(dim, int):
        return None
    return dim if dim < dimensions else dim - 2**64 + dimensions  # −1 is saved as 2⁶⁴ − 1


def operation_of(node: Any) -> str:
    """Return the name of a node's operation: ``"logsoftmax"`` for ``LogSoftmaxBackward0``."""
    return str(node.name()).rstrip("0123456789").removesuffix("Backward").lower()


def saved_by(node: Any, name: str) -> Any:
    """Return what ``node`` keeps under ``name``; None where it keeps nothing there, or does no longer."""
    with contextlib.suppress(RuntimeError):  # freed, or changed in place since
        return _torch.saved_tensor(node, name)
    return None
