"""Add up figures over all ranks: one packed vector of fixed length, one ``all_reduce``.

Each rank sends a row of N numbers for each figure, one number for each parameter of an optimizer. A parameter may be
cut into parts, and each part may be held by several ranks. Its sum over the ranks then counts each part as often as it
is held, so the whole has

    sum over ranks · parts ÷ holders,

with ``parts`` from the tensor's own layout and ``holders`` counted along with the figures. An ordinary parameter that
every rank holds has one part and as many holders as there are ranks; a shard of FSDP2 as many parts as holders; one of
HSDP on a 2 × 2 mesh two parts and four holders; one of a pipeline stage one part and one holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from gradwatch.ranks.group import Group

__all__ = ["Reduction", "Sums", "scalars_of"]


class Sums(NamedTuple):
    """Figures of all ranks together.

    Attributes:
        rows: (R, N) of each parameter; 0 where no rank holds it.
        totals: (R,) of all parameters.
        holders: (N,) how many ranks hold each parameter.
        scalars: (S,) sums over the ranks.
    """

    rows: Tensor
    totals: Tensor
    holders: Tensor
    scalars: Tensor


class Reduction:
    """The sums over the ranks of one process group. Every rank calls its methods equally often, in the same order.

    Args:
        group: the process group.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    @torch.no_grad()
    def add_up(self, rows: Tensor, parts: Tensor, holds: Tensor, scalars: Tensor) -> Sums:
        """Return the sums over all ranks. Waits for the other ranks, and not for the device where that is a GPU.

        Args:
            rows: (R, N) float64.
            parts: (N,) of how many parts each parameter is made.
            holds: (N,) 1 where this rank holds one of them, else 0.
            scalars: (S,) float64.
        """
        count, length = rows.shape
        summed = self.add_up_plainly(torch.cat([scalars, holds, (rows * parts).reshape(-1)]))
        found, holders, flat = summed.split([len(scalars), length, count * length])
        whole = flat.reshape(count, length) / holders.clamp(min=1)
        return Sums(whole, whole.sum(dim=1), holders, found)

    @torch.no_grad()
    def add_up_plainly(self, vector: Tensor) -> Tensor:
        """Return the sum of ``vector`` over all ranks, on its device."""
        return self._reduce(vector, distributed.ReduceOp.SUM)

    @torch.no_grad()
    def largest(self, vector: Tensor) -> Tensor:
        """Return the largest of each number over all ranks, on the device of ``vector``."""
        return self._reduce(vector, distributed.ReduceOp.MAX)

    def _reduce(self, vector: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        there = self.group.device_for(vector.device)
        sent = vector.to(there, copy=True)
        distributed.all_reduce(sent, operation)
        return sent.to(vector.device)


def scalars_of(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Return (S,) float64 on ``device``, from numbers and () tensors."""
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)
    return torch.stack(
        [torch.as_tensor(value, dtype=torch.float64).to(device, non_blocking=True).reshape(()) for value in values]
    )
