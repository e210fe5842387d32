"""Add up gradients of tensor parallelism that are still sums over ranks (``Partial``), before anybody measures them.

The optimizer would add them up in its step. Norms and clipping need the sums before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwatch.ranks.shards import is_distributed

__all__ = ["PartialGradient"]


@dataclass
class PartialGradient:
    """A gradient that ranks have not added up yet.

    Args:
        gradient: a ``DTensor`` with a ``Partial`` placement. Every rank of its mesh makes this object; it communicates.

    Attributes:
        entries: what this rank holds of the sum, as a copy.
    """

    gradient: Tensor

    def __post_init__(self) -> None:
        from torch.distributed.tensor import Replicate  # there is a DTensor, so it is loaded already

        assert is_distributed(self.gradient)
        placements = [Replicate() if each.is_partial() else each for each in self.gradient.placements]
        with torch.no_grad():
            part = self.gradient.redistribute(placements=placements).to_local()
        self.entries = part.wait() if hasattr(part, "wait") else part

    @torch.no_grad()
    def write_back(self) -> None:
        """Make the gradient sum up to ``entries``, which somebody has clipped. It does not communicate."""
        assert is_distributed(self.gradient)
        mesh, part = self.gradient.device_mesh, self.gradient.to_local()
        coordinates: Sequence[int] = mesh.get_coordinate() or []
        others = [
            coordinate
            for coordinate, placement in zip(coordinates, self.gradient.placements, strict=True)
            if placement.is_partial() and getattr(placement, "reduce_op", "sum") == "sum"
        ]
        if any(others):  # the first rank of each sum holds all of it
            part.zero_()
        else:
            part.copy_(self.entries)
