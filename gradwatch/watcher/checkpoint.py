"""States as numbers, strings and tensors, which ``torch.load(weights_only=True)`` accepts, and back.

Enters: nested dicts and lists with numpy arrays in them. Leaves: the same with tensors. Knows nothing of what they
mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["pack", "unpack"]

_ARRAY = "numpy array"  # marks what must become an array again, since clip policies keep real tensors


def pack(value: Any) -> Any:
    """Arrays → marked tensors, copied; numpy numbers → Python's."""
    if isinstance(value, dict):
        return {name: pack(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [pack(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(value.copy())}
    return value.item() if isinstance(value, np.generic) else value


def unpack(value: Any) -> Any:
    """The reverse of ``pack``; tuples come back as lists."""
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].numpy(force=True).copy()  # loaded onto a GPU, perhaps
        return {name: unpack(entry) for name, entry in value.items()}
    return [unpack(entry) for entry in value] if isinstance(value, list | tuple) else value
