"""One tensor of an event file → an array or a text, or a refusal: files are written by anyone.

A declared shape is compared with the bytes that are there before any memory is taken for it. TensorBoard's own
``make_ndarray`` repeats a single value over whatever shape is declared, which a hostile file turns into any amount.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.report import Floats

__all__ = ["LARGEST", "UnreadableError", "array", "json_object"]

LARGEST = 1 << 28  # entries of one array: 1 GiB of float32, more than any run that can be looked at
_LONGEST_TEXT = 1 << 26
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f8")}  # DT_FLOAT and DT_DOUBLE


class UnreadableError(Exception):
    """An event file holds something that no version of gradwatch wrote; the message is shown in the tab."""


def array(tensor: Any, shape: tuple[int | None, ...], what: str) -> Floats:
    """The entries of ``tensor``; None in ``shape`` stands for any length.

    Raises:
        UnreadableError: where type, shape or number of entries are others.
    """
    found = tuple([dimension.size for dimension in tensor.tensor_shape.dim])
    if found != shape and not _fits(found, shape):
        raise UnreadableError(f"{what}: expected the shape {_words(shape)}, found {_words(found)}.")
    if tensor.dtype not in _DTYPES:
        raise UnreadableError(f"{what}: expected floats, found the data type {int(tensor.dtype)}.")
    entries = _entries(tensor, _DTYPES[tensor.dtype])
    if entries is None or len(entries) != math.prod(found):
        carried = "a broken buffer" if entries is None else f"{len(entries)} entries"
        raise UnreadableError(f"{what}: the shape {_words(found)} is declared, but {carried} found.")
    return entries.reshape(found)


def json_object(tensor: Any, what: str) -> dict[str, Any]:
    """The JSON object that ``tensor`` holds.

    Raises:
        UnreadableError: where it holds none.
    """
    text = tensor.string_val[0] if len(tensor.string_val) == 1 else tensor.tensor_content
    if not 0 < len(text) <= _LONGEST_TEXT:
        raise UnreadableError(f"{what}: expected one JSON text, found {len(text)} bytes.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{what}: this is no JSON ({type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{what}: expected a JSON object, found {type(content).__name__}.")
    return content


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    if len(found) != len(shape):
        return False
    return all(size >= 0 and want in (None, size) for want, size in zip(shape, found, strict=True))


def _entries(tensor: Any, dtype: np.dtype[Any]) -> Floats | None:
    if not tensor.tensor_content:
        return np.array(tensor.float_val if dtype.itemsize == 4 else tensor.double_val, dtype=dtype)
    if len(tensor.tensor_content) % dtype.itemsize:
        return None
    entries: NDArray[np.floating] = np.frombuffer(tensor.tensor_content, dtype=dtype)
    return entries


def _words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
