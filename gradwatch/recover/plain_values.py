"""Turn a batch into what a file can hold that executes nothing when it is loaded, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwatch.ranks.shards import local_part

__all__ = ["LEFT_OUT", "as_plain", "holds_everything", "rebuild", "without_paths"]

LEFT_OUT = "gradwatch: left out"
"""The key of a dict in place of an object that no such file can hold; its value is the object's class."""

_ARRAY = "gradwatch: numpy array"
_ATOMS = (bool, int, float, complex, bytes, type(None), torch.dtype, torch.device)
_MOST_DEEP = 32  # levels of containers: a batch that holds itself would never end

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:|~)?(?:[/\\][^\s/\\:'\"]+)*[/\\](?=[^\s/\\:'\"]+)")


def as_plain(value: Any, *, depth: int = 0) -> Any:
    """Return ``value`` with tensors copied to the CPU where that is needed, and containers made plain.

    A view is copied, for a file holds the whole memory that a tensor is part of: a slice of a data set would bring the
    data set along. Mappings become dicts, named tuples become tuples. An object of any other class is left out.
    """
    if isinstance(value, Mapping | list | tuple) and depth < _MOST_DEEP:
        return _container(value, depth + 1)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value).copy())}
    if isinstance(value, str):
        return str(value)  # of a subclass, too
    return value if isinstance(value, _ATOMS) else {LEFT_OUT: f"{type(value).__module__}.{type(value).__qualname__}"}


def _container(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): as_plain(entry, depth=depth) for key, entry in value.items()}
    parts = [as_plain(entry, depth=depth) for entry in value]
    return tuple(parts) if isinstance(value, tuple) else parts


def rebuild(plain: Any) -> Any:
    """Return what ``as_plain`` was given, as far as it held it."""
    if isinstance(plain, dict):
        if set(plain) == {_ARRAY}:
            return plain[_ARRAY].numpy()
        return {key: rebuild(entry) for key, entry in plain.items()}
    return type(plain)(rebuild(entry) for entry in plain) if isinstance(plain, list | tuple) else plain


def holds_everything(plain: Any) -> bool:
    """Return whether nothing was left out of ``plain``."""
    if isinstance(plain, dict):
        return LEFT_OUT not in plain and all(map(holds_everything, plain.values()))
    return all(map(holds_everything, plain)) if isinstance(plain, list | tuple) else True


def without_paths(text: str) -> str:
    """Return ``text`` with every path cut down to its last part: folders hold the names of people and machines."""
    return _PATH.sub("", text)


def _tensor(tensor: Tensor) -> Tensor:
    part = local_part(tensor.detach())
    part = part.as_subclass(Tensor) if type(part) is not Tensor else part
    if part.device.type != "cpu":
        return part.cpu()
    if part.layout is not torch.strided:
        return part
    is_whole = part.untyped_storage().nbytes() == part.numel() * part.element_size()
    return part if is_whole and part.is_contiguous() else part.contiguous().clone()


def _key(key: Any) -> Any:
    return key if isinstance(key, bool | int | float | str) else str(key)
