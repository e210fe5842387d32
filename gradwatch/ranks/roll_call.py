"""Find out whether every rank watches the same model, without waiting for one that does not.

Each rank leaves its mark in the store of the process group. At its first step a rank counts the marks, and whoever is
first to count decides for all: either every rank takes part in what the ranks exchange, or none does. A rank that never
calls ``watch`` therefore leaves nobody waiting in a collective.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from gradwatch.ranks.group import Group

if TYPE_CHECKING:  # some builds of torch have none
    from torch.distributed import ProcessGroup

__all__ = ["PATIENCE", "RollCall"]

PATIENCE = timedelta(seconds=20)
"""For how long a rank waits for the others, once in a run. The gradients were added up over the ranks just before, so
that usual delays are those of a scheduler, and of a user's own lines between ``backward()`` and ``step()``."""

_TOGETHER = "together"
_next: weakref.WeakKeyDictionary[ProcessGroup, Counter[str]] = weakref.WeakKeyDictionary()
"""Of each process group and each model the first number that this process has not answered to. A group that is made
again has another store, and begins at 0."""


class RollCall:
    """The mark of this rank, and what was decided from the marks of all.

    Args:
        group: the process group.
        about: words that are the same on every rank that watches the same model in the same way.

    Attributes:
        key: a name in the store that is the same on these ranks, and no other watcher's.
    """

    def __init__(self, group: Group, about: Iterable[str]) -> None:
        digest = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
        self.group = group
        store = group.store()
        self._decided = f"watch/{digest}/decided"  # how many roll calls for this model are over, on whichever rank
        numbers = _next.setdefault(group.world, Counter())
        self._number = max(store.add(self._decided, 0), numbers[digest])
        numbers[digest] = self._number + 1
        self.key = f"watch/{digest}/{self._number}"
        store.set(f"{self.key}/{group.rank}", "here")
        if store.add(self.key, 1) == group.size:
            store.set(f"{self.key}/complete", "")

    def wait(self) -> None:
        """Wait a while until every rank is here."""
        with contextlib.suppress(RuntimeError):  # of the time that is up
            self.group.store().wait([f"{self.key}/complete"], PATIENCE)

    def missing(self) -> list[int]:
        """Return the ranks that do not watch this model in this way; none where all do. Every rank gets one answer."""
        store, group = self.group.store(), self.group
        is_complete = store.add(self.key, 0) == group.size
        absent = [] if is_complete else [rank for rank in range(group.size) if not self._is_here(rank)]
        mine = " ".join(map(str, absent)) or _TOGETHER
        decided = store.compare_set(f"{self.key}/decided", "", mine).decode()
        if store.add(f"{self.key}/asked", 1) == 1:  # ranks that were not here answer to the next one
            store.set(self._decided, str(self._number + 1))
        return [] if decided == _TOGETHER else [int(rank) for rank in decided.split()]

    def _is_here(self, rank: int) -> bool:
        return self.group.store().check([f"{self.key}/{rank}"])
