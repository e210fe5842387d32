"""Encode what goes to the browser: JSON, and arrays as a JSON header before raw float32, since JSON has no NaN."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed_array", "plain_json"]


def packed_array(header: dict[str, Any], values: NDArray[np.float32]) -> bytes:
    """Return four bytes, the header's length (little-endian); the header, padded to a multiple of four; the entries."""
    text = plain_json({**header, "shape": values.shape})
    text += b" " * (-len(text) % 4)
    return len(text).to_bytes(4, "little") + text + np.ascontiguousarray(values, dtype="<f4").tobytes()


def plain_json(content: Any) -> bytes:
    """Return ``content`` as JSON.

    Raises:
        ValueError: for a number that JSON does not have.
    """
    return json.dumps(content, allow_nan=False).encode()
