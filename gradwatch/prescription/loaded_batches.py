"""Take from a loader the batches that trials can use, and no more."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from gradwatch import _torch
from gradwatch.explain.replica import as_it_was
from gradwatch.prescription.argument_errors import ArgumentTypeError

__all__ = ["ENOUGH", "LoadedBatches", "is_a", "load"]

ENOUGH = 320  # batches: a trial makes 300 updates at most, and 20 are held out at most
FEWEST = 25  # batches that are taken in any case: 20 to train on, 5 to judge by
LARGEST = 2**30  # bytes: more than this is not held in memory, unless the fewest need it


@dataclass(frozen=True)
class LoadedBatches:
    """The batches of a problem.

    Attributes:
        batches: in their order. A mapping that is no ``dict``, such as a ``BatchEncoding``, has become one.
        per_epoch: how many batches the loader gives in one pass; infinity if it does not say.
        mapping_type: of the batches that became a ``dict``; None if none did.
        data_module: the ``LightningDataModule`` that they come from, if they do.
    """

    batches: list[Any]
    per_epoch: float
    mapping_type: type | None = None
    data_module: Any = None


def load(given: object, until: float = math.inf) -> LoadedBatches:
    """Return the batches that were given as a sequence, a loader or a ``LightningDataModule``.

    All of a sequence are taken. Of a loader ``ENOUGH`` are, fewer if they are large or slow. The generators of torch,
    numpy and random are put back.

    Args:
        given: the argument ``batches``.
        until: on ``time.perf_counter``: no more are loaded then, once there are ``FEWEST``.

    Raises:
        ArgumentTypeError: for anything else.
    """
    loader = _loader_of(given)
    with as_it_was():
        taken = list(loader) if isinstance(loader, Sequence) else list(_first_of(loader, until))
    foreign = [type(batch) for batch in taken if isinstance(batch, Mapping) and not isinstance(batch, dict)]
    plain = [dict(batch) if isinstance(batch, Mapping) else batch for batch in taken]
    data_module = given if is_a(given, "LightningDataModule") else None
    return LoadedBatches(plain, _length_of(loader), foreign[0] if foreign else None, data_module)


def is_a(thing: object, *names: str) -> bool:
    """Return whether a class of one of these names is among the bases: to import a framework would cost seconds."""
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def _loader_of(given: Any) -> Iterable[Any]:
    if is_a(given, "LightningDataModule"):
        given.prepare_data()
        given.setup("fit")
        given = given.train_dataloader()
        if isinstance(given, (Sequence, Mapping)):
            raise ArgumentTypeError(
                f"batches: expected a data module with one loader, found {len(given)} in train_dataloader(). Give the "
                "loader whose batches training_step is to be given."
            )
    if isinstance(given, Dataset) or is_a(given, "Dataset"):
        raise ArgumentTypeError(
            f"batches: expected a loader, found a dataset ({type(given).__name__}), which holds single items. Write "
            "torch.utils.data.DataLoader(dataset, batch_size=…, collate_fn=…)."
        )
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping, Tensor)):
        raise ArgumentTypeError(
            f"batches: expected a sequence of batches, a DataLoader or a LightningDataModule, found "
            f"{type(given).__name__}."
        )
    return given


def _first_of(loader: Iterable[Any], until: float) -> Iterator[Any]:
    size = 0
    for number, batch in enumerate(loader, 1):
        yield batch
        size += _size_of(batch)
        is_full = size > LARGEST or time.perf_counter() > until
        if number >= ENOUGH or (number >= FEWEST and is_full):
            return


def _size_of(batch: Any) -> int:
    """Return the bytes of its tensors."""
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    tensors = (leaf for leaf in _torch.tree_leaves(plain) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _length_of(loader: Iterable[Any]) -> float:
    """Return how many batches one pass has; infinity for a loader that does not know."""
    try:
        return len(loader) if isinstance(loader, Sized) else math.inf
    except TypeError:  # of a dataset that is iterable only
        return math.inf
