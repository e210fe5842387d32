"""Find every optimizer that is alive, whoever made it: what none of them holds is updated by nobody."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.living_objects import living

__all__ = ["held_by_living_optimizers"]


def held_by_living_optimizers() -> set[int]:
    """Return the ids of all tensors that an optimizer of this process holds. It takes some 50 ms: ask rarely."""
    return {id(tensor) for optimizer in living(Optimizer) for tensor in _held_by(optimizer)}


def _held_by(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in getattr(optimizer, "param_groups", ()):  # one that is still being made has none
        yield from group["params"]
