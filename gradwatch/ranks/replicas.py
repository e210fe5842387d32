"""Compare the replicas of a model without a collective: the first rank leaves its figures, the others look for them.

The figures lie in the process group's store. Each rank pays one or two short requests for a comparison, however many
ranks there are, and nobody waits for a rank that is late, has left or never comes.
"""

from __future__ import annotations

import base64
import contextlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import distributed

from gradwatch.ranks.group import Group

__all__ = ["MOST_ROWS", "ReplicaBoard", "members_of", "stretches"]

MOST_ROWS = 256
"""Rows of figures in one comparison, 3 kB: models of more parameters are compared in as many stretches of them."""

KEPT = 4
"""Comparisons whose figures are kept. Ranks that average their gradients are never further apart."""


class ReplicaBoard:
    """The figures of replicas that should be equal.

    Args:
        group: the process group.
        members: the ranks that have a replica; the first of them is the one that others compare with.
        about: a name for the model, the same on all of them.
    """

    def __init__(self, group: Group, members: Sequence[int], about: str) -> None:
        self.group, self.reference = group, members[0]
        which = zlib.crc32(" ".join(map(str, members)).encode())
        self._about = f"replicas/{about}/{which}"
        self._keys: list[str] = []

    @property
    def is_reference(self) -> bool:
        """Return True on the rank that others compare with."""
        return self.group.rank == self.reference

    def leave(self, update: int, figures: NDArray[np.float32]) -> None:
        """Leave the figures of this rank for the others.

        Args:
            update: the same on every rank when its weights should be equal.
            figures: (G, 2), at most ``MOST_ROWS`` rows.

        Raises:
            RuntimeError: where the store is gone.
        """
        store, key = self.group.store(), f"{self._about}/{update}"
        store.set(key, base64.b64encode(figures.tobytes()).decode())
        self._keys.append(key)
        if len(self._keys) > KEPT:
            with contextlib.suppress(RuntimeError):  # a store that cannot remove keys keeps them
                store.delete_key(self._keys.pop(0))

    def find(self, update: int) -> NDArray[np.float32] | None:
        """Return the (G, 2) figures that ``leave`` was given on the other rank; None where they are not there.

        Raises:
            RuntimeError: where the store is gone.
        """
        store, key = self.group.store(), f"{self._about}/{update}"
        if not store.check([key]):
            return None
        return np.frombuffer(base64.b64decode(store.get(key)), dtype=np.float32).reshape(-1, 2)


def members_of(process_group: distributed.ProcessGroup) -> tuple[int, ...]:
    """Return the ranks of ``process_group`` by their numbers in the default one."""
    return tuple(distributed.get_process_group_ranks(process_group))


def stretches(count: int) -> Sequence[NDArray[np.intp]]:
    """Return which of ``count`` parameters go into each row: each has its own, as long as there are enough."""
    return np.array_split(np.arange(count), min(count, MOST_ROWS))
