"""Measure the size of what modules return, of many modules in one batched call.

On a GPU a call for each module would cost more than the numbers are worth. So outputs are held for a moment and
measured together: when enough are held, or when somebody takes the figures.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

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

HELD = 2**24
"""Bytes of outputs that are held at most. They may be all that keeps this memory from being used again."""


class _Output(NamedTuple):
    """A tensor that a module has returned, or a copy of some entries where the model is known to change it in place.

    Attributes:
        tensor: without a graph.
        version: of the tensor when it was returned; None for a copy.
    """

    tensor: Tensor
    version: int | None


class _Measured(NamedTuple):
    """The norm of some entries of an output.

    Attributes:
        norms: (n,) of all outputs that were measured together.
        place: of this one among them.
        entries: how many.
    """

    norms: Tensor
    place: int
    entries: int


class OutputNorms:
    """The root mean square of the latest output of each layer."""

    def __init__(self) -> None:
        self._held: dict[int, _Output] = {}  # by column
        self._held_bytes = 0
        self._measured: dict[int, _Measured] = {}  # by column
        self._are_changed: set[int] = set()  # columns whose outputs the model has changed in place

    def add(self, column: int, output: Tensor) -> None:
        """Take what a layer has returned: a dense tensor with entries, without a graph.

        An output that the model changes in place before it is measured has no figure. Of that layer the entries are
        copied at once from then on.
        """
        if column in self._are_changed or output.is_inference():
            self._held[column] = _Output(_some_entries(output).clone(), None)
            return
        size = _bytes_held_by(output)
        if self._held_bytes + size > HELD:
            self._measure()
        self._held[column] = _Output(output, _torch.version_of(output))
        self._held_bytes += size
        if self._held_bytes > HELD:
            self._measure()

    def take(self, columns: Collection[int]) -> LayerValues | None:
        """Return the figure of these columns and forget it; None where none of them has returned anything."""
        self._measure()
        taken = {column: self._measured.pop(column) for column in [*self._measured] if column in columns}
        if not taken:
            return None
        together = _together([*taken.values()])
        return LayerValues([*taken], together, np.sqrt([each.entries for each in taken.values()]))

    def clear(self) -> None:
        """Forget everything but which layers are measured at once."""
        self._held, self._held_bytes, self._measured = {}, 0, {}

    @torch.no_grad()
    def _measure(self) -> None:
        """Measure what is held, and hold it no longer."""
        held, self._held, self._held_bytes = self._held, {}, 0
        known = {column: _some_entries(each.tensor) for column, each in held.items() if _is_as_returned(each)}
        self._are_changed |= held.keys() - known.keys()
        norms = statistics.norms(_without_gaps([*known.values()]))
        self._measured |= {
            column: _Measured(norms, place, part.numel()) for place, (column, part) in enumerate(known.items())
        }


def _together(measured: Sequence[_Measured]) -> Tensor:
    """Return (n,) float32 the norms of n outputs, on the device of the first."""
    norms = measured[0].norms
    if [each.place for each in measured if each.norms is norms] == [*range(len(norms))] and len(measured) == len(norms):
        return norms.float()
    return torch.stack([each.norms[each.place].to(norms.device, torch.float32, non_blocking=True) for each in measured])


def _is_as_returned(output: _Output) -> bool:
    return output.version is None or _torch.version_of(output.tensor) == output.version


def _some_entries(tensor: Tensor) -> Tensor:
    """Return a small tensor as it is, and (n,) some entries of a larger one, from all columns of its last dimension."""
    size = tensor.numel()
    if size <= ENTRIES:
        return tensor
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
        flat = [parts[place].reshape(-1) for place in places]
        for place, piece in zip(places, torch.cat(flat).split([len(part) for part in flat]), strict=True):
            found[place] = piece
    return found


def _bytes_held_by(output: Tensor) -> int:
    """Return how much memory a view of ``output`` keeps; the tensors within ``torch.func.grad`` have no storage."""
    try:
        return output.untyped_storage().nbytes()
    except NotImplementedError:
        return output.numel() * output.element_size()
