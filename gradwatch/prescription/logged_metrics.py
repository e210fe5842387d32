"""Keep what a ``LightningModule`` logs in its updates, as Lightning would hand it to schedulers that wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradwatch import _torch

__all__ = ["LoggedMetrics"]


@dataclass
class _Mean:
    """A mean that is weighted by the sizes of batches."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float) -> None:
        self.total += value * weight
        self.weight += weight


class LoggedMetrics:
    """The metrics of one trial. Those that a module logs outside of its updates, on held-out batches, are left out.

    Nothing is kept unless somebody waits for it: to read a value waits for the device.
    """

    def __init__(self) -> None:
        self._wanted: frozenset[str] = frozenset()
        self._latest: dict[str, float] = {}
        self._means: dict[str, _Mean] = {}
        self._loss = _Mean()
        self._size = 1
        self._is_update = False

    def begin(self, wanted: Iterable[str]) -> None:
        """Forget everything: a trial begins, in which somebody waits for metrics of these names."""
        self._wanted = frozenset(wanted)
        self._latest.clear()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Let means begin anew; the latest values stay, as they do in Lightning."""
        self._means.clear()
        self._loss = _Mean()

    @contextlib.contextmanager
    def of(self, batch: Any, *, is_update: bool) -> Iterator[None]:
        """Return a context in which ``log`` is called about ``batch``."""
        tensors = (leaf for leaf in _torch.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
        self._size, self._is_update = next((len(tensor) for tensor in tensors), 1), is_update
        try:
            yield
        finally:
            self._is_update = False

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Take what a module logs: ``on_epoch=True`` asks for the mean of an epoch, else the latest value counts."""
        names = {name, "_".join((name, "epoch"))} if options.get("on_epoch") else {name}
        if not (self._is_update and names & self._wanted) or (number := _number_of(value)) is None:
            return
        if not options.get("on_epoch"):
            self._latest[name] = number
            return
        for each in names:
            self._means.setdefault(each, _Mean()).add(number, options.get("batch_size") or self._size)

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **options: Any) -> None:
        """Take several at once."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **options)

    def note_loss(self, returned: Any) -> None:
        """Take what ``training_step`` has returned."""
        if not (self._is_update and self._wanted):
            return
        number = _number_of(returned.get("loss") if isinstance(returned, Mapping) else returned)
        if number is not None:
            self._loss.add(number, self._size)

    def value_of(self, name: str) -> float | None:
        """Return the metric of this name; None where none was logged."""
        if (mean := self._means.get(name)) is not None:
            return mean.total / mean.weight
        return self._latest.get(name)

    @property
    def mean_loss(self) -> float | None:
        """Return the mean loss of the updates of this epoch; None where there was none."""
        return self._loss.total / self._loss.weight if self._loss.weight else None


def _number_of(value: Any) -> float | None:
    """Return a logged value as a number; None for what has none yet, such as a metric object."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
