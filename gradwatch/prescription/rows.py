"""The rows of a batch: what all its tensors begin with, which of them are broken, and the batch without those.

Enters: a batch, (inputs, targets), each of any structure. Leaves: how large each row is; the same of fewer rows. Knows
nothing of models. A batch whose tensors do not begin with the same number of items counts as one row: it stays whole,
or goes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradwatch import _torch

__all__ = ["kept", "largest_entries", "length_of"]


def length_of(batch: tuple[Any, Any]) -> int | None:
    """How many items each leaf of (inputs, targets) begins with.

    None where they differ, or one is a number or no tensor. None, too, where one of several inputs is square: it
    relates the items to each other, as the adjacency matrix of a graph beside its nodes.
    """
    lengths = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in _torch.tree_leaves(batch)}
    length = lengths.pop() if len(lengths) == 1 else None
    inputs = _torch.tree_leaves(batch[0])
    relates = length is not None and len(inputs) > 1 and any(leaf.shape[1:2] == (length,) for leaf in inputs)
    return None if relates else length


def largest_entries(batch: tuple[Any, Any]) -> Tensor:
    """(rows,) float64, on the CPU: the largest magnitude among each row's real numbers, 0 where it has none.

    Not finite iff one of them is not.
    """
    length = length_of(batch)
    rows = 1 if length is None else length
    real = [leaf for leaf in _torch.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    sizes = [leaf.detach().reshape(rows, -1).abs().amax(1).cpu().double() for leaf in real if leaf.numel()]
    return torch.stack(sizes).amax(0) if sizes else torch.zeros(rows, dtype=torch.float64)


def kept(batch: Any, sound: Tensor) -> Any | None:
    """``batch`` with those rows alone that are ``sound``; itself where all are, None where none is."""
    if sound.all():
        return batch
    return _torch.tree_map(lambda leaf: leaf[sound], batch) if sound.any() else None
