"""The rows of a batch: what all its tensors begin with, which of them are broken, and the batch without those.

Enters: a batch, inputs or targets, of any structure. Leaves: how large each row is; the same structure of fewer rows.
Knows nothing of models. A batch whose tensors do not begin with the same number of items counts as one row: it stays
whole, or goes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["kept", "largest_entries", "length_of"]


def length_of(batch: Any) -> int | None:
    """How many items each leaf begins with; None where they differ, or one is a number or no tensor.

    None, too, where one of three leaves or more is square: it relates the items to each other, as the adjacency matrix
    of a graph beside its nodes and their labels.
    """
    leaves = tree_leaves(batch)
    lengths = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
    length = lengths.pop() if len(lengths) == 1 else None
    relates = length is not None and len(leaves) > 2 and any(leaf.shape[1:2] == (length,) for leaf in leaves)
    return None if relates else length


def largest_entries(batch: Any) -> Tensor:
    """(rows,) float64, on the CPU: the largest magnitude among each row's real numbers, 0 where it has none.

    Not finite iff one of them is not.
    """
    length = length_of(batch)
    rows = 1 if length is None else length
    real = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    sizes = [leaf.detach().reshape(rows, -1).abs().amax(1).cpu().double() for leaf in real if leaf.numel()]
    return torch.stack(sizes).amax(0) if sizes else torch.zeros(rows, dtype=torch.float64)


def kept(batch: Any, sound: Tensor) -> Any | None:
    """``batch`` with those rows alone that are ``sound``; itself where all are, None where none is."""
    if sound.all():
        return batch
    return tree_map(lambda leaf: leaf[sound], batch) if sound.any() else None
