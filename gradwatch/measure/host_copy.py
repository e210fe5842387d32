"""Copy vectors from the device to the host, all at once and without waiting."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """Vectors on their way to the host, packed into one copy of float64 (float32 on devices without float64).

    The constructor never syncs: off the CPU the copy goes to pinned memory and runs beside the training. ``read`` waits
    for it.

    Args:
        vectors: 0-dim or 1-dim tensors on ``device``; integers up to 2**24 stay exact.
        device: where they are.
    """

    def __init__(self, vectors: Sequence[Tensor], device: torch.device) -> None:
        self._lengths = [vector.numel() for vector in vectors]
        self._arrived: torch.Event | None = None
        if device.type == "cpu":
            self._host = np.concatenate([_as_row(vector) for vector in vectors], dtype=np.float64)
            return
        wide = torch.float32 if device.type == "mps" else torch.float64
        packed = _packed([vector.reshape(-1) for vector in vectors], device, wide)
        pinned = torch.empty(packed.shape, dtype=wide, pin_memory=device.type == "cuda")
        self._pinned = pinned.copy_(packed, non_blocking=True)
        self._arrived = torch.Event(device)
        self._arrived.record()

    @property
    def is_ready(self) -> bool:
        """Return True if reading waits for nothing."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> list[NDArray[np.floating]]:
        """Return the vectors as numpy arrays, in their order. Waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._host, self._arrived = self._pinned.numpy().astype(np.float64), None
        parts: list[NDArray[np.floating]] = []
        begin = 0
        for length in self._lengths:
            parts.append(self._host[begin : begin + length])
            begin += length
        return parts


def _packed(rows: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return all rows in one, in their order; those of each type that follow one another are converted together."""
    together = [
        torch.cat([*alike]) if len(alike) > 1 else alike[0]
        for alike in (list(group) for _, group in itertools.groupby(rows, key=lambda row: (row.device, row.dtype)))
    ]
    return torch.cat([row.to(device=device, dtype=dtype, non_blocking=True) for row in together])


def _as_row(vector: Tensor) -> NDArray[np.generic]:
    """Return (n,) from a tensor on the CPU."""
    # numpy has no bfloat16
    row = vector.detach().float() if vector.dtype is torch.bfloat16 else vector.detach()
    return row.numpy().reshape(-1)
