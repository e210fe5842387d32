"""Lay consecutive segments of a vector out in rows, to reduce them all in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Segments"]


class Segments:
    """P consecutive segments of a vector, of lengths that stay the same for many steps.

    ``torch.segment_reduce`` does the same in one call, but waits for the device, and does not exist on Apple's GPUs.

    Args:
        lengths: of each.
        device: where the vectors are. What is looked up once goes there without waiting.

    Attributes:
        lengths: as given.
        counts: (P,) the lengths, on the device.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        counts, total = torch.tensor(lengths, dtype=torch.int64, device="cpu"), sum(lengths)
        is_filled = torch.arange(max(lengths, default=0), device="cpu") < counts.unsqueeze(1)
        places = torch.full(is_filled.shape, total, device="cpu")
        places[is_filled] = torch.arange(total, device="cpu")
        self.lengths = tuple(lengths)
        self.counts = counts.to(device, non_blocking=True)
        self._shape = is_filled.shape
        self._places = places.flatten().to(device, non_blocking=True)

    def rows(self, values: Tensor) -> Tensor:
        """Return (…, P, longest) from (…, N + 1), where N is the sum of the lengths.

        The last of the values fills up what is left of shorter rows.
        """
        return values.index_select(-1, self._places).unflatten(-1, self._shape)
