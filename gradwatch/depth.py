"""How deep each watched tensor lies, read off the first backward pass.

Enters: the table, in order of registration. Leaves: the same table, its ``depth`` in order of use. Knows nothing of
modules: hooks stay off them, so that scripting, exporting, pickling and compiling a watched model do what they always
did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradwatch.layers import Layers

__all__ = ["Depths"]


class Depths:
    """Notes in which order gradients arrive until the first update, and orders the table by it.

    Autograd runs the backward pass of an eager model in the reverse order of its forward pass, so a gradient that
    arrives first belongs nearest the output. A compiled graph delivers its gradients all at once, in an order that
    means nothing: where anything was compiled by then, the order of registration stays.

    Args:
        layers: the table to put in order.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._arrived: dict[int, None] = {}  # columns, as an ordered set
        self._handles: dict[int, RemovableHandle] = {}
        for column, tensor in enumerate(layers.tensors):
            if tensor.requires_grad and tensor.is_leaf:
                hook = self._hook_of(column)
                self._handles[column] = tensor.register_post_accumulate_grad_hook(hook)

    def settle(self, columns: Iterable[int]) -> None:
        """The backward pass of ``columns`` is over: puts them in order and takes their hooks off."""
        if not self._handles:
            return
        mine = {column for column in columns if column in self._handles}
        ran = [column for column in reversed(self._arrived) if column in mine]
        if not _anything_is_compiled():
            # those that ran take the places that they already hold among all, in the order in which they ran
            self._layers.depth[ran] = np.sort(self._layers.depth[ran])
        for column in mine:
            self._handles.pop(column).remove()

    def remove(self) -> None:
        """Takes every hook off; twice is fine."""
        while self._handles:
            self._handles.popitem()[1].remove()

    def _hook_of(self, column: int) -> Callable[[Tensor], None]:
        arrived = self._arrived

        def note(_tensor: Tensor) -> None:
            arrived.setdefault(column)

        return note


def _anything_is_compiled() -> bool:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["stats"]["unique_graphs"])
