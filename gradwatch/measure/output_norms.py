"""Measure the size of what modules return, of many modules in one batched call.

On a GPU a call for each module would cost more than the numbers are worth. So outputs are held for a moment and
measured together: when enough are held, or when somebody takes the figures.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradwatch import _torch
from gradwatch.measure import statistics
from gradwatch.measure.layer_figures import LayerValues
from gradwatch.measure.samples import coprime_stride

__all__ = ["OutputNorms"]

ENTRIES = 2**13
"""Entries of an output that are read: their norm is then known to about 1 %."""

HELD = 2**25
"""Bytes of outputs that are held at most. They may be all that keeps this memory from being used again."""


@dataclass(frozen=True)
class _Output:
    """Some entries of a tensor that a module has returned.

    Attributes:
        entries: (n,) some entries: a view, or a copy where the model is known to change the tensor in place.
        version: of the tensor when it was returned; None for a copy.
    """

    entries: Tensor
    version: int | None

    @property
    def is_as_returned(self) -> bool:
        return self.version is None or _torch.version_of(self.entries) == self.version


class OutputNorms:
    """The root mean square of the latest output of each layer."""

    def __init__(self) -> None:
        self._held: dict[int, _Output] = {}  # by column
        self._held_bytes = 0
        self._measured: dict[int, tuple[Tensor, int]] = {}  # column → () norm of some entries, and how many
        self._are_changed: set[int] = set()  # columns whose outputs the model has changed in place

    @torch.no_grad()
    def add(self, column: int, output: Tensor) -> None:
        """Take what a layer has returned: a dense tensor with entries, without a graph.

        An output that the model changes in place before it is measured has no figure. Of that layer the entries are
        copied at once from then on.
        """
        entries = _some_entries(output)
        if column in self._are_changed or output.is_inference():
            self._held[column] = _Output(entries.clone(), None)
            return
        self._held[column] = _Output(entries, _torch.version_of(output))
        self._held_bytes += output.untyped_storage().nbytes()
        if self._held_bytes > HELD:
            self._measure()

    @torch.no_grad()
    def take(self, columns: Collection[int]) -> LayerValues | None:
        """Return the figure of these columns and forget it; None where none of them has returned anything."""
        self._measure()
        taken = {column: self._measured.pop(column) for column in [*self._measured] if column in columns}
        if not taken:
            return None
        norms, counts = zip(*taken.values(), strict=True)
        home = norms[0].device
        together = torch.stack([norm.to(home, torch.float32, non_blocking=True) for norm in norms])
        return LayerValues([*taken], together, np.sqrt(counts))

    def clear(self) -> None:
        """Forget everything but which layers are measured at once."""
        self._held, self._held_bytes, self._measured = {}, 0, {}

    def _measure(self) -> None:
        """Measure what is held, and hold it no longer."""
        held, self._held, self._held_bytes = self._held, {}, 0
        known = {column: each.entries for column, each in held.items() if each.is_as_returned}
        self._are_changed |= held.keys() - known.keys()
        norms = statistics.norms(_without_gaps([*known.values()])).unbind()
        self._measured |= {column: (norm, len(part)) for (column, part), norm in zip(known.items(), norms, strict=True)}


def _some_entries(tensor: Tensor) -> Tensor:
    """Return (n,) at most ``ENTRIES`` evenly spaced entries, which lie in all columns of the last dimension."""
    size = tensor.numel()
    flat = tensor.as_strided((size,), (1,)) if _is_dense(tensor) else tensor.reshape(-1)
    return flat[:: coprime_stride(size, ENTRIES, tensor.shape[-1])]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _without_gaps(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return parts off the CPU as copies without gaps, made by one call for each (device, dtype).

    A GPU reduces tensors with gaps one by one.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, part in enumerate(parts):
        if not (part.is_cpu or part.is_contiguous()):
            alike.setdefault((part.device, part.dtype), []).append(place)
    found = [*parts]
    for places in alike.values():
        copy = torch.cat([parts[place] for place in places])
        for place, piece in zip(places, copy.split([len(parts[place]) for place in places]), strict=True):
            found[place] = piece
    return found
