"""Turn nested dicts and lists with numpy arrays into numbers, strings and tensors, and back.

``torch.load(weights_only=True)`` accepts those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["pack", "unpack"]

_ARRAY = "numpy array"  # marks what must become an array again, since clip policies keep real tensors


def pack(value: Any) -> Any:
    """Return ``value`` with marked tensors in place of arrays, copied, and Python's numbers in place of numpy's."""
    if isinstance(value, dict):
        return {name: pack(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [pack(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(value.copy())}
    return value.item() if isinstance(value, np.generic) else value


def unpack(value: Any) -> Any:
    """Return what ``pack`` was given; tuples come back as lists."""
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].numpy(force=True).copy()  # loaded onto a GPU, perhaps
        return {name: unpack(entry) for name, entry in value.items()}
    return [unpack(entry) for entry in value] if isinstance(value, list | tuple) else value
