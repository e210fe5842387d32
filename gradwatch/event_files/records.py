"""Read the records of an event file: length, checksum of the length, content, checksum of the content.

TensorBoard's own reader without TensorFlow sums one byte at a time in Python, 4 MB a second; here a block of bytes is
looked up at once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["Damage", "checksum", "records", "records_in"]

_BLOCK = 1024  # bytes looked up at once; the table of 1 MiB stays in a processor's cache
_SHORT = 64  # bytes that are sooner summed one by one
_ONES = 0xFFFFFFFF
_HEADER = struct.Struct("<QI")  # length, and its checksum
_SEARCHED = 1 << 20  # most bytes in which a header is sought at once
_NEARBY = 1 << 10  # bytes in which it is sought first: the next record is seldom far


@dataclass(frozen=True)
class Damage:
    """A place in a file that cannot be read.

    Attributes:
        at: the first byte.
        words: what is wrong, for people.
        is_end: the file ends within a record, as it does while a run is writing it.
    """

    at: int
    words: str
    is_end: bool = False


def records(path: Path) -> Iterator[bytes | Damage]:
    """Yield contents in the order they were written; after a damaged length, from the next length whose checksum holds.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        yield from records_in(file)


def records_in(file: BinaryIO) -> Iterator[bytes | Damage]:
    """Yield the records of an open ``file`` from where it is on, as far as it reaches by now.

    After the last one ``file`` is at its end; within a record that is still being written, ``Damage.at`` says where
    to go on.
    """
    size = os.fstat(file.fileno()).st_size
    while (at := file.tell()) < size:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            yield Damage(at, "ends within a record", is_end=True)
            return
        length, expected = _HEADER.unpack(header)
        if checksum(header[:8]) != expected:
            yield Damage(at, "a record's length is damaged")
            _find_header(file, at + 1, size)
        elif at + _HEADER.size + length + 4 > size:
            yield Damage(at, "ends within a record", is_end=True)
            return
        else:
            content, expected = file.read(length), int.from_bytes(file.read(4), "little")
            yield content if checksum(content) == expected else Damage(at, "a record is damaged")


def checksum(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of ``content``, masked as event files mask it.

    A checksum is linear: each byte leaves in the register the entry of the table for its value and its distance to
    the end of the block, and these are added without carry.
    """
    register = _ONES
    if len(content) < _SHORT:
        for byte in content:
            register = _BYTE[(register ^ byte) & 0xFF] ^ register >> 8
        return int(_masked(register ^ _ONES))
    blocks = np.zeros(-(-len(content) // _BLOCK) * _BLOCK, dtype=np.uint8)  # zeros in front leave nothing
    own = blocks[len(blocks) - len(content) :]
    own[:] = np.frombuffer(content, dtype=np.uint8)
    own[:4] ^= 0xFF  # the register begins with ones
    register = 0
    for left in _leave(blocks.reshape(-1, _BLOCK)).tolist():
        register = left ^ _carried(register)
    return int(_masked(register ^ _ONES))


def _find_header(file: BinaryIO, start: int, size: int) -> None:
    """Move to the next header whose checksum holds, or to the end."""
    begin, searched = start, _NEARBY
    while begin < size:
        file.seek(begin)
        found = np.frombuffer(file.read(searched + _HEADER.size - 1), dtype=np.uint8)
        if len(found) < _HEADER.size:
            break
        windows = sliding_window_view(found, _HEADER.size)
        places = np.flatnonzero((windows[:, 4:8] == 0).all(axis=1) & windows[:, 8:].any(axis=1))  # below 4 GiB
        expected = windows[places, 8:].copy().view("<u4")[:, 0]
        ones = np.array([0xFF] * 4 + [0] * 4, dtype=np.uint8)
        sound = places[_masked(_leave(windows[places, :8] ^ ones) ^ np.uint32(_ONES)) == expected]
        if len(sound):
            file.seek(begin + int(sound[0]))
            return
        begin, searched = begin + searched, min(2 * searched, _SEARCHED)
    file.seek(size)


def _leave(blocks: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return (N,) what each of (N, L ≤ block) rows leaves in an empty register."""
    places = np.arange(_BLOCK - blocks.shape[1], _BLOCK) * 256
    return np.bitwise_xor.reduce(_TABLE.reshape(-1).take(blocks + places), axis=1)


def _carried(register: int) -> int:
    """Return what ``register`` becomes over the bytes of a whole block: it is added to the first four."""
    low = _CARRY[0][register & 0xFF] ^ _CARRY[1][register >> 8 & 0xFF]
    return low ^ _CARRY[2][register >> 16 & 0xFF] ^ _CARRY[3][register >> 24]


def _masked(crc: Any) -> Any:  # one, or an array of them
    return ((crc >> 15 | crc << 17 & _ONES) + 0xA282EAD8) & _ONES


def _table() -> NDArray[np.uint32]:
    """Return (block, 256): what a byte leaves in the register, by its place in the block and its value."""
    table = np.empty((_BLOCK, 256), dtype=np.uint32)
    last: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> 1 ^ np.where(last & 1, 0x82F63B78, 0)).astype(np.uint32)
    table[-1] = last
    for place in range(_BLOCK - 2, -1, -1):  # one byte further from the end: one byte of nothing follows
        nearer = table[place + 1]
        table[place] = last[nearer & 0xFF] ^ nearer >> 8
    return table


_TABLE = _table()
_CARRY: list[list[int]] = _TABLE[:4].tolist()
_BYTE: list[int] = _TABLE[-1].tolist()
