"""Damage files and states: bits, blocks and lengths, and plain values beneath checksums that hold."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch import Tensor

__all__ = ["damaged_bytes", "damaged_records", "damaged_text", "damaged_tree", "framed"]


def framed(content: bytes) -> bytes:
    """Return ``content`` as one record of an event file, with sound checksums."""
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + sums[0] + content + sums[1]


def damaged_bytes(draws: random.Random, content: bytes) -> bytes:
    """Return ``content`` with one kind of damage that no checksum was mended for."""
    made = bytearray(content)
    if not made:
        return bytes(made)
    kind = draws.randrange(7)
    at, size = draws.randrange(len(made)), draws.choice([1, 4, 100, 5000])
    if kind == 0:
        for _ in range(draws.randint(1, 20)):
            made[draws.randrange(len(made))] ^= 1 << draws.randrange(8)
    elif kind == 1:
        del made[at:]
    elif kind == 2:
        made[at:at] = made[at : at + size] * draws.choice([1, 3, 50])
    elif kind == 3:
        other = draws.randrange(len(made))
        made[at : at + size], made[other : other + size] = made[other : other + size], made[at : at + size]
    elif kind == 4:
        made[at : at + size] = draws.choice([b"\0", b"\xff", b"\n"]) * size
    elif kind == 5:
        return bytes(made).replace(b"\n", b"\r\n")
    else:
        made[at : at + size] = draws.randbytes(size)
    return bytes(made)


def damaged_records(draws: random.Random, contents: Sequence[bytes]) -> bytes:
    """Return an event file of ``contents``, some of them damaged beneath checksums that hold, or out of order."""
    made = list(contents)
    for _ in range(draws.randint(1, 4)):
        at, other = draws.randrange(len(made)), draws.randrange(len(made))
        kind = draws.randrange(6)
        if kind == 0:
            made[at], made[other] = made[other], made[at]
        elif kind == 1:
            made[at:at] = [made[other]] * draws.choice([1, 2, 30])
        elif kind == 2:
            made[at] = damaged_bytes(draws, made[at])
        elif kind == 3 and len(made) > 1:
            del made[at]
        else:
            made[at] = damaged_event(draws, made[at])
    return b"".join(map(framed, made))


def damaged_event(draws: random.Random, content: bytes) -> bytes:
    """Return an event with another step, other shapes, or other values in what it holds as JSON."""
    try:
        event = Event.FromString(content)
    except Exception:
        return content
    if draws.random() < 0.3:
        event.step = draws.choice([-1, 0, 2**31, 2**53, 2**62, event.step + 1])
    for value in event.summary.value:
        if value.tensor.string_val and draws.random() < 0.8:
            value.tensor.string_val[0] = damaged_text(draws, value.tensor.string_val[0])
        elif value.tensor.tensor_content and draws.random() < 0.5:
            value.tensor.tensor_content = damaged_bytes(draws, value.tensor.tensor_content)
        for dimension in value.tensor.tensor_shape.dim if draws.random() < 0.2 else ():
            dimension.size = draws.choice([-1, 0, 1, 2**31, 2**62, dimension.size + 1])
        if draws.random() < 0.05:
            value.tensor.dtype = draws.choice([0, 1, 2, 3, 7, 19])
    return event.SerializeToString()


def damaged_text(draws: random.Random, text: bytes) -> bytes:
    """Return JSON with values of other types, sizes and depths in it."""
    try:
        tree = json.loads(text)
    except ValueError:
        return damaged_bytes(draws, text)
    for _ in range(draws.randint(1, 3)):
        tree = damaged_tree(draws, tree, HOSTILE)
    return json.dumps(tree).encode()


HOSTILE: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 2**31, lambda: 2**53, lambda: 2**63, lambda: -(2**64),
    lambda: 10**400, lambda: 1.5, lambda: 1e308, lambda: math.nan, lambda: math.inf, lambda: -math.inf, lambda: "",
    lambda: "x" * 3000, lambda: "\ud800", lambda: "\x1b[31m\u202e\0\n", lambda: "</script><b>", lambda: "9" * 50,
    lambda: [], lambda: {}, lambda: [[]], lambda: nested(60), lambda: ["a"] * 5000, lambda: {"a": {"b": [None]}},
    lambda: [0] * 1000, lambda: "nonfinite", lambda: "\U0001f600" * 700,
)  # fmt: skip
"""Values that nobody expects in JSON."""

HOSTILE_TO_STATES: tuple[Callable[[], Any], ...] = (
    *HOSTILE,
    lambda: torch.tensor(math.nan), lambda: torch.zeros(3), lambda: torch.zeros(0),
    lambda: torch.ones(2, 2).to_sparse(),
    lambda: torch.zeros(2, dtype=torch.complex64), lambda: torch.full((4,), math.inf), lambda: torch.tensor([True]),
    lambda: torch.tensor(-5), lambda: torch.zeros(2, device="meta"), lambda: b"bytes", lambda: object(), lambda: {1: 2},
    lambda: (1, 2), lambda: {"__array__": torch.zeros(2)},
)  # fmt: skip


def nested(depth: int) -> list[Any]:
    """Return lists within lists."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def damaged_tree(draws: random.Random, tree: Any, hostile: Sequence[Callable[[], Any]]) -> Any:
    """Return plain values with one of them replaced, left out, doubled, or put in the place of another."""
    made = copy.deepcopy(tree)
    places = list(_places(made))
    if not places:
        return draws.choice(hostile)()
    holder, key = draws.choice(places)
    other_holder, other_key = draws.choice(places)
    kind = draws.random()
    if kind < 0.55:
        holder[key] = draws.choice(hostile)()
    elif kind < 0.65 and isinstance(holder, dict):
        del holder[key]
    elif kind < 0.75:
        holder[key] = copy.deepcopy(other_holder[other_key])
    elif kind < 0.8 and isinstance(holder, dict):
        holder[draws.choice(["unheard of", 7, "version"])] = holder[key]
    else:
        holder[key] = _changed(draws, holder[key], hostile)
    return made


def _changed(draws: random.Random, value: Any, hostile: Sequence[Callable[[], Any]]) -> Any:
    """Return something of the kind of ``value``, and nearly the same."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int) and value.bit_length() > sys.float_info.max_exp:
        return draws.choice([value + 1, -value, str(value)[:-1]])
    if isinstance(value, int | float):
        return draws.choice([value + 1, -value, value * 1e3, float(value), value * 2**40, str(value)])
    if isinstance(value, str):
        return draws.choice([value + "x", value[:-1], value.upper(), value * 100])
    if isinstance(value, Tensor):
        return draws.choice([value * 2, value.flatten()[:-1], value.double(), value.unsqueeze(0), value * math.nan])
    if isinstance(value, list):
        return draws.choice([value * 2, value[:-1], value[::-1], [*value, draws.choice(hostile)()]])
    return value


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of plain values: what holds it, and its key there."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
