"""The memories of all optimizers of a loop."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from torch.optim import Optimizer

from gradwatch.watcher.optimizer_track import OptimizerTrack
from gradwatch.watcher.state import TrackState

__all__ = ["OptimizerTracks"]


class OptimizerTracks:
    """The memories of all optimizers of a loop, in the order of first sight.

    Iterating yields all of them, also those of optimizers that are gone, until they retire.

    Args:
        make: returns a new memory of a given index.
        follow: takes each one that is made.
        retire: takes the memory of an optimizer that is gone.

    Attributes:
        by_optimizer: those of living optimizers.
        by_hand: that of a loop without an optimizer; None before its first update.
    """

    def __init__(
        self,
        make: Callable[[int], OptimizerTrack],
        follow: Callable[[OptimizerTrack], object],
        retire: Callable[[OptimizerTrack], object],
    ) -> None:
        self.by_optimizer: weakref.WeakKeyDictionary[Optimizer, OptimizerTrack] = weakref.WeakKeyDictionary()
        self.by_hand: OptimizerTrack | None = None
        self._make, self._follow, self._retire = make, follow, retire
        self._all: list[OptimizerTrack] = []
        self._made = 0
        self._restored: deque[TrackState] = deque()

    def __iter__(self) -> Iterator[OptimizerTrack]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of(self, optimizer: Optimizer | None) -> OptimizerTrack:
        """Return the memory of ``optimizer``, None for a loop without one; made at first sight."""
        return self.get(optimizer) or self._add(optimizer)

    def get(self, optimizer: Optimizer | None) -> OptimizerTrack | None:
        """Return the same, None where it was not seen yet."""
        return self.by_hand if optimizer is None else self.by_optimizer.get(optimizer)

    def is_first(self, track: OptimizerTrack) -> bool:
        """Return whether ``track`` is that of the first optimizer: what concerns all is looked at once, with it."""
        return track is self._all[0]

    def state(self) -> tuple[TrackState, ...]:
        """Return what is known of each optimizer, in order of first sight; those that others replaced are forgotten."""
        return (*(track.state() for track in self._all), *self._restored)

    def restore(self, states: Sequence[TrackState]) -> None:
        """Go on from a cut run; optimizers take their own in the order of first sight.

        Raises:
            ValueError: where one of ``states`` cannot be read.
        """
        for state in states:  # some may be taken much later, and are refused now
            self._make(self._made).restore(state)
        self._restored = deque(states)
        for track in self._all:
            if self._restored:
                track.restore(self._restored.popleft())

    def _add(self, optimizer: Optimizer | None) -> OptimizerTrack:
        self._retire_gone()
        track = self._make(self._made)
        if self._restored:
            track.restore(self._restored.popleft())
        if optimizer is None:
            self.by_hand = track
        else:
            self.by_optimizer[optimizer] = track
        self._made += 1
        self._all.append(track)
        self._follow(track)
        return track

    def _retire_gone(self) -> None:
        """Let go of the memories of optimizers that are gone."""
        living = {id(track) for track in (*self.by_optimizer.values(), self.by_hand)}
        for track in [track for track in self._all if id(track) not in living]:
            self._retire(track)
            self._all.remove(track)
