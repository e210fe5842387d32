"""A loader that can go back within an epoch, while a ``for`` loop runs over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gradwatch.recover.random_state import RandomState, random_state

__all__ = ["RewindableLoader"]

Batch_co = TypeVar("Batch_co", covariant=True)


class RewindableLoader(Generic[Batch_co]):
    """A loader around another one, that goes back to any of its batches and can leave some out.

    The batches of an epoch must be the same whenever it begins with the same random state: that holds for a
    ``DataLoader`` over a map-style data set. Going back begins the epoch once more and passes over the batches that
    come before, which are loaded and dropped. The epoch that was gone back to ends the running ``for`` loop.

    Args:
        loader: a ``DataLoader``, or any iterable that can be iterated several times.

    Attributes:
        loader: as given.
        drawn: batches that were handed out or left out, over all epochs.

    Examples:
        >>> loader = RewindableLoader([1, 2, 3])
        >>> batches = iter(loader)
        >>> next(batches)
        1
        >>> state = loader.state_dict()
        >>> next(batches), next(batches)
        (2, 3)
        >>> loader.load_state_dict(state)
        >>> list(batches)
        [2, 3]
    """

    def __init__(self, loader: Iterable[Batch_co]) -> None:
        self.loader = loader
        self.drawn = 0
        self._place = 0  # batches of this epoch that were handed out or left out
        self._begun_with: RandomState | None = None
        self._generator: Tensor | None = None  # the state of the loader's own generator when the epoch began
        self._left_out: tuple[int, int] = (0, 0)  # places of this epoch, the second one excluded
        self._has_gone_back = False

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # raises as it does

    def __iter__(self) -> Iterator[Batch_co]:
        if not self._has_gone_back:  # a state that was restored before the epoch begins is where it goes on
            self._begin_epoch()
        batches = self._batches()
        while True:
            if self._has_gone_back:
                batches = self._batches()
            while self._left_out[0] <= self._place < self._left_out[1]:
                if next(batches, _END) is _END:
                    break
                self._place += 1
                self.drawn += 1
            batch = next(batches, _END)
            if batch is _END:
                return
            self._place += 1
            self.drawn += 1
            yield batch  # type: ignore[misc]

    def leave_out(self, count: int, *, after: int = 0) -> None:
        """Leave out ``count`` batches of this epoch, once ``after`` more were handed out."""
        start = self._place + after
        self._left_out = start, start + count

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is: the random state with which its epoch began, and the batches since."""
        return {
            "drawn": self.drawn,
            "place": self._place,
            "begun_with": None if self._begun_with is None else self._begun_with.as_plain(),
            "generator": self._generator,
            "left_out": list(self._left_out),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go back to where ``state_dict`` was called, also within a ``for`` loop that is running."""
        begun_with = state["begun_with"]
        self.drawn, self._place = state["drawn"], state["place"]
        self._begun_with = None if begun_with is None else RandomState.from_plain(begun_with)
        self._generator = state["generator"]
        first, end = state["left_out"]
        self._left_out = first, end
        self._has_gone_back = begun_with is not None

    def _begin_epoch(self) -> None:
        self._place, self._left_out = 0, (0, 0)
        self._begun_with = random_state()
        generator = getattr(self.loader, "generator", None)
        self._generator = generator.get_state() if isinstance(generator, torch.Generator) else None

    def _batches(self) -> Iterator[Any]:
        """Return the batches of this epoch from the present place on."""
        if not self._has_gone_back:
            return iter(self.loader)
        self._has_gone_back = False
        assert self._begun_with is not None
        present = random_state()
        self._begun_with.restore()
        if self._generator is not None:
            self.loader.generator.set_state(self._generator)  # type: ignore[attr-defined]
        batches = iter(self.loader)
        for _ in range(self._place):
            next(batches, None)
        present.restore()
        return batches


_END = object()
