"""Show the default process group of ``torch.distributed`` as gradwatch uses it: who am I, how many are we, a store.

A process without such a group, or alone in it, has no ``Group``: it shares nothing, and nothing is exchanged.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import distributed

from gradwatch import _torch

if TYPE_CHECKING:  # some builds of torch have none of these
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

__all__ = ["Group", "current_group", "has_process_group"]


@dataclass(frozen=True)
class Group:
    """The default process group of this process, which has more than one rank.

    Attributes:
        rank: this process's place in the group, from 0.
        size: how many processes the group has.
    """

    rank: int
    size: int
    _world: weakref.ref[ProcessGroup] = field(repr=False, compare=False)  # holding it would keep its threads running

    @property
    def is_alive(self) -> bool:
        """Return True as long as this very group is the default one: a program may destroy it, and make another."""
        return distributed.is_initialized() and self._world() is distributed.group.WORLD

    @property
    def world(self) -> ProcessGroup:
        """The group of torch.

        Raises:
            RuntimeError: where it was destroyed.
        """
        world = self._world()
        if world is None:
            raise RuntimeError("this process group was destroyed.")
        return world

    def store(self) -> Store:
        """Return the group's store of keys and values, under a prefix of gradwatch's own. It needs no collective.

        Raises:
            RuntimeError: where the group is not alive.
        """
        if not self.is_alive:
            raise RuntimeError("this process group was destroyed, so its store cannot be reached any more.")
        return distributed.distributed_c10d.PrefixStore("gradwatch", _torch.default_store())

    def device_for(self, device: torch.device) -> torch.device:
        """Return ``device`` if the group can reduce tensors there, else one where it can."""
        kinds = [part.partition(":")[0] for part in distributed.get_backend_config().split(",")]
        return device if device.type in kinds else torch.device(kinds[0])


def has_process_group() -> bool:
    """Return True in a process that has joined a default process group, be it alone in it."""
    return distributed.is_available() and distributed.is_initialized()


def current_group(known: Group | None = None) -> Group | None:
    """Return the default process group; None without one, or where this process is alone in it.

    Args:
        known: what this returned before, which is returned again as long as it is alive.
    """
    if not has_process_group():
        return None
    if known is not None and known.is_alive:
        return known
    world = distributed.group.WORLD
    if world is None or world.size() < 2:
        return None
    return Group(world.rank(), world.size(), weakref.ref(world))
