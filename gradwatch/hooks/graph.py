"""Nodes of an autograd graph: which there are, and what they have saved for the backward pass.

Enters: what a tensor was made by (``grad_fn``). Leaves: nodes in the order in which they ran, their operations' names
and saved tensors. Knows nothing of what is looked for. Marks in a node's ``metadata`` tell where a walk ends: whoever
holds a node holds its graph.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from gradwatch import _torch

__all__ = ["operation_of", "saved_by", "upstream_nodes"]

LEAF = "torch::autograd::AccumulateGrad"


def upstream_nodes(outputs: Iterable[Any], mark: str, most: int) -> list[Any]:
    """At most ``most`` nodes that ``outputs`` were made by, in the order in which they ran.

    None of ``outputs`` or behind them that bears ``mark`` is among them, nor what lies behind such a one.
    """
    found: set[Any] = set()
    ahead = deque(outputs)
    while ahead and len(found) < most:
        node = ahead.popleft()
        if node is not None and node not in found and mark not in node.metadata and node.name() != LEAF:
            found.add(node)
            ahead.extend(following for following, _ in node.next_functions)
    return sorted(found, key=_torch.sequence_number)


def operation_of(node: Any) -> str:
    """``"logsoftmax"`` for ``LogSoftmaxBackward0``."""
    return str(node.name()).rstrip("0123456789").removesuffix("Backward").lower()


def saved_by(node: Any, name: str) -> Any:
    """What ``node`` keeps under ``name``; None where nothing, or not any more."""
    with contextlib.suppress(RuntimeError):  # freed, or changed in place since
        return _torch.saved_tensor(node, name)
    return None
