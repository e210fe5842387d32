"""Agree before each exchange that every rank takes part, so that none waits in a collective for one that never comes.

A rank may skip an update that the others make, run out of data, or be watched no longer. It then makes no collective
of ours, and whoever waited there would wait for ever. A collective with a time limit is no way out. After the limit
gloo has sent what it had to send, so the next collective of the rank that did not come, one of the user's own, is added
to it (tried with torch 2.13: 1 + 10 = 11), and fails on the others; NCCL ends the process. So the ranks meet in the
store of the process group first.

The last one to come decides that the exchange takes place. A rank that has waited for ``PATIENCE`` decides that it does
not, and so does one that leaves. Whichever decides first decides for all, so either every rank goes on to the
collective, or none does. There are no more meetings afterwards.

A meeting costs each rank three short requests: it says that it is here, waits for the decision, and reads it. They all
go to one store, so its work grows with the number of ranks (``benchmarks/scale.py`` measures it). Two requests would
do if ranks waited for a decision in favour alone. They would then have to look now and again for one against it, and
each wait of a ``TCPStore`` that times out prints two warnings of torch.
"""

from __future__ import annotations

import contextlib

from gradwatch.ranks.group import Group
from gradwatch.ranks.roll_call import PATIENCE

__all__ = ["Meetings"]

_ALL = "all"


class Meetings:
    """The meetings of the ranks of one process group, one before each exchange.

    Args:
        group: the process group.
        about: a name for them, the same on every rank.

    Attributes:
        reason: why there are no more, in words; "" as long as there are.
    """

    def __init__(self, group: Group, about: str) -> None:
        self.group, self.reason = group, ""
        self._key, self._next = f"{about}/meetings", 0

    def come(self, what: str) -> bool:
        """Return whether every rank takes part in the coming exchange; all get the same answer.

        Args:
            what: the exchange in a few letters. Ranks that mean to make different ones do not meet.
        """
        if not self.reason:
            try:
                self.reason = self._come(what)
            except RuntimeError as error:  # the store is gone, or the group
                self.reason = f"the store of the process group does not answer ({error})"
        return not self.reason

    def _come(self, what: str) -> str:
        store, number = self.group.store(), self._next
        self._next += 1
        if store.add(f"{self._key}/{what}", 1) % self.group.size:
            with contextlib.suppress(RuntimeError):  # of the time that is up
                store.wait([self._decision(number)], PATIENCE)
            return self._decide(number, f"not every rank came to an update within {PATIENCE.seconds} s")
        reason = self._decide(number, _ALL)
        if number:  # every rank has read what was decided before
            with contextlib.suppress(RuntimeError):  # a store that cannot remove keys keeps them
                store.delete_key(self._decision(number - 1))
        return reason

    def _decide(self, number: int, mine: str) -> str:
        """Return why there is no exchange; "" where it takes place. Whoever asks first decides, by ``mine``."""
        store, key = self.group.store(), self._decision(number)
        decided = store.compare_set(key, "", mine).decode()
        if decided == mine:
            store.set(key, mine)  # wakes those that wait; compare_set does so in a TCPStore with libuv alone
        return "" if decided == _ALL else decided

    def _decision(self, number: int) -> str:
        return f"{self._key}/{number}"

    def leave(self) -> None:
        """Let the others know that this rank comes to no more meetings. It waits for nobody."""
        if self.reason or not self._next or not self.group.is_alive:
            return
        self.reason = f"rank {self.group.rank} is watched no longer"
        with contextlib.suppress(RuntimeError):
            self._decide(self._next, self.reason)
