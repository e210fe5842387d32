"""Look at the part of a distributed tensor that this rank holds. Nothing here communicates.

A ``DTensor`` that is handed to an operation of torch may communicate by itself, at a place where other ranks do not.
So whatever measures, clips or samples is given local parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from gradwatch import _torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "any_is_part",
    "held_entries",
    "is_distributed",
    "is_partial",
    "layout_of",
    "local_part",
    "local_parts",
    "note_flat_shards",
    "parts_of",
    "size_of_whole",
]


def is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether ``tensor`` is a ``DTensor``. Its module takes long to import, and is loaded where one exists."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


class _FlatPart(NamedTuple):
    """A part of a parameter that FSDP1 has left here, as an ordinary tensor.

    Attributes:
        parts: of how many parts it is made.
        start: the place of its first entry in the whole, flattened; None where that is not known.
        size: entries of the whole.
    """

    parts: int
    start: int | None
    size: int


_flat = WeakIdKeyDictionary()  # parameters of FSDP1 → _FlatPart


def note_flat_shards(models: Iterable[nn.Module]) -> None:
    """Note the parameters of ``models`` of which FSDP1 has left this rank a part: nothing in them says so."""
    for model in models:
        for parameter, parts, start, size in _torch.flat_shards(model):
            _flat[parameter] = _FlatPart(parts, start, size)


def any_is_part(parameters: Iterable[Tensor]) -> bool:
    """Return whether this rank holds only a part of any of ``parameters``, or has it as a ``DTensor``."""
    if _flat and any(parameter in _flat for parameter in parameters):
        return True
    return "torch.distributed.tensor" in sys.modules and any(map(is_distributed, parameters))


@torch.no_grad()
def local_part(tensor: Tensor) -> Tensor:
    """Return the entries of ``tensor`` that this rank holds, in the same memory; ``tensor`` itself if that is all."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def local_parts(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the local part of each of ``tensors``."""
    return [local_part(tensor) for tensor in tensors]


def parts_of(parameter: Tensor, gradient: Tensor | None) -> int:
    """Return how many different parts make up the whole of a gradient; 1 where each rank holds all of it.

    It is 0 where this rank has none. FSDP1 leaves a rank an empty part, without a gradient.
    """
    if _flat and parameter in _flat:
        return int(_flat[parameter].parts)
    return 0 if gradient is None else _parts(gradient)


def _parts(tensor: Tensor) -> int:
    if not is_distributed(tensor):
        return 1
    parts = 1
    for dimension, placement in enumerate(tensor.placements):
        if not (placement.is_replicate() or placement.is_partial()):
            parts *= tensor.device_mesh.size(dimension)
    return parts


def size_of_whole(parameter: Tensor) -> int:
    """Return how many entries the whole of ``parameter`` has."""
    return int(_flat[parameter].size) if _flat and parameter in _flat else parameter.numel()


def held_entries(parameter: Tensor, places: Tensor) -> Tensor | None:
    """Return where this rank holds entries of the whole, in the order of its own part, flattened; those that it holds.

    Args:
        parameter: the whole.
        places: (k,) of the entries, in its order, flattened.

    Returns:
        (h,) of at most k; None where the layout is none that is known here.
    """
    if _flat and parameter in _flat:
        start = _flat[parameter].start
        if start is None:
            return None
        return (places - start)[(places >= start) & (places < start + parameter.numel())]
    if not is_distributed(parameter):
        return places
    ranges = _held_ranges(parameter)
    if ranges is None or [end - start for start, end in ranges] != list(local_part(parameter).shape):
        return None
    is_held, flat = torch.ones_like(places, dtype=torch.bool), torch.zeros_like(places)
    for (start, end), along in zip(ranges, torch.unravel_index(places, parameter.shape), strict=True):
        is_held &= (along >= start) & (along < end)
        flat = flat * (end - start) + (along - start)
    return flat[is_held]


def _held_ranges(tensor: DTensor) -> list[tuple[int, int]] | None:
    """Return the (start, end) that this rank holds along each dimension; None where it is no such block."""
    coordinates = tensor.device_mesh.get_coordinate()
    cuts = _cuts(tensor)
    if coordinates is None or not all(hasattr(cut, "dim") for _, cut in cuts):
        return None
    ranges = [(0, size) for size in tensor.shape]
    for place, cut in cuts:
        start, end = ranges[cut.dim]
        chunk = -(-(end - start) // tensor.device_mesh.size(place))
        begin = min(end, start + chunk * coordinates[place])
        ranges[cut.dim] = begin, min(end, begin + chunk)
    return ranges


def _cuts(tensor: DTensor) -> list[tuple[int, Any]]:
    """Return (dimension of the mesh, placement) of those that cut ``tensor``, in the order in which they cut it."""
    cuts = [(place, cut) for place, cut in enumerate(tensor.placements) if not (cut.is_replicate() or cut.is_partial())]
    # those with a split factor cut what the later dimensions of the mesh have left (FSDP2 over tensor parallelism)
    plain = [each for each in cuts if not hasattr(each[1], "split_factor")]
    return plain + [each for each in reversed(cuts) if hasattr(each[1], "split_factor")]


def is_partial(tensor: Tensor) -> bool:
    """Return whether the whole of ``tensor`` is a sum over ranks that nobody has computed yet."""
    return is_distributed(tensor) and any(placement.is_partial() for placement in tensor.placements)


def layout_of(tensor: Tensor) -> str:
    """Return how ``tensor`` is spread over ranks, in words that are equal on all of them; "" for an ordinary tensor."""
    return f"{tensor.placements} over {tuple(tensor.device_mesh.shape)}" if is_distributed(tensor) else ""
