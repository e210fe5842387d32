"""Leave notes for the first rank in the store of the process group: no collective, and nobody waits.

A store holds keys and values for all ranks. Writing a note costs two short requests, and asking whether there are new
ones costs one. Only ranks with a finding write, so a healthy run has no notes.
"""

from __future__ import annotations

from gradwatch.ranks.group import Group

__all__ = ["NoteBoard"]

MOST_WRITTEN = 200
"""Notes of one rank: a run with more findings than that is told by the first of them."""

MOST_AT_ONCE = 64
"""Notes that are read at one time. 1,024 ranks that are all sick at one step then cost 16 steps a few milliseconds."""


class NoteBoard:
    """The notes of all ranks about one thing.

    Args:
        group: the process group.
        about: a name for it, the same on every rank.
    """

    def __init__(self, group: Group, about: str) -> None:
        self.group = group
        self._key = f"notes/{about}"
        self._written = self._seen = 0
        self._pending: list[int] = []  # numbers of notes that are known of and not read yet

    def write(self, note: str) -> None:
        """Leave ``note`` for the first rank.

        Raises:
            RuntimeError: where the store is gone.
        """
        if self._written >= MOST_WRITTEN:
            return
        self._written += 1
        store = self.group.store()
        number = store.add(self._key, 1)
        store.set(f"{self._key}/{number}", note)

    def read(self) -> list[str]:
        """Return the notes that were not read yet. A note that is being written is left for the next time.

        Raises:
            RuntimeError: where the store is gone.
        """
        store = self.group.store()
        count = store.add(self._key, 0)
        self._pending += range(self._seen + 1, count + 1)
        self._seen = max(self._seen, count)
        notes, left = [], self._pending[MOST_AT_ONCE:]
        for number in self._pending[:MOST_AT_ONCE]:
            key = f"{self._key}/{number}"
            if store.check([key]):
                notes.append(store.get(key).decode())
            else:
                left.append(number)
        self._pending = left
        return notes
