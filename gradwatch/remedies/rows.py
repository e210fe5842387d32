"""Find the rows of a batch, the items that all its tensors begin with, and leave out those that are broken.

A batch is (inputs, targets), each of any structure. One whose tensors do not begin with the same number of items counts
as a single row: it stays whole, or goes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradwatch import _torch

__all__ = ["Batch", "keep_rows", "largest_entries", "length_of"]

Batch = tuple[Any, Any]
"""(inputs, targets), each a tensor or a structure of tensors."""


def length_of(batch: Batch) -> int | None:
    """Return how many items each leaf of (inputs, targets) begins with.

    None where they differ, or one is a number or no tensor. None, too, where one of several inputs is square: it
    relates the items to each other, as the adjacency matrix of a graph does beside the nodes.
    """
    lengths = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in _torch.tree_leaves(batch)}
    length = lengths.pop() if len(lengths) == 1 else None
    return None if length is None or _has_relations(batch, length) else length


def largest_entries(batch: Batch) -> Tensor:
    """Return the largest magnitude among each row's real numbers, (rows,) float64 on the CPU; 0 for a row without any.

    An entry is not finite iff one of the row's numbers is not.
    """
    length = length_of(batch)
    rows = 1 if length is None else length
    real = [leaf for leaf in _torch.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    sizes = [leaf.detach().reshape(rows, -1).abs().amax(1).cpu().double() for leaf in real if leaf.numel()]
    return torch.stack(sizes).amax(0) if sizes else torch.zeros(rows, dtype=torch.float64)


def keep_rows(batch: Batch, sound: Tensor) -> Any | None:
    """Return ``batch`` with the rows that are ``sound``: the same object if all are, None if none is."""
    if sound.all():
        return batch
    return _torch.tree_map(lambda leaf: leaf[sound], batch) if sound.any() else None


def _has_relations(batch: Batch, length: int) -> bool:
    """Return whether one of several inputs relates ``length`` items to each other.

    Integers alone do not: 16 sequences of 16 tokens have a square mask. Of a batch that is given whole, without targets
    of its own, the first part does not either: 16 items of 16 features have a label each.
    """
    inputs = _torch.tree_leaves(batch[0])
    candidates = inputs if _torch.tree_leaves(batch[1]) else inputs[1:]
    has_numbers = any(leaf.is_floating_point() for leaf in inputs)
    return len(inputs) > 1 and has_numbers and any(leaf.shape[1:2] == (length,) for leaf in candidates)
