"""The depth × time picture: a row of pixels per layer from input to output, a column per logged row.

Enters: runs. Leaves: colour numbers, and a PNG. Where there are more than pixels the largest shows, so that a spike of
one step is never lost.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Run
from gradwatch.views.profile import pooled

__all__ = ["NOT_FINITE", "VIRIDIS", "Scale", "colours", "picture_of", "png", "scale_of"]

MOST_COLUMNS, MOST_ROWS = 420, 400  # what two pages side by side have for it: a browser would drop pixels
_NOT_MEASURED, _NOT_FINITE = 254, 255  # colour numbers after the 254 of the scale
NOT_FINITE = "#e8112d"  # no colour of the scale is red; told apart by its lightness, too, where red is not seen
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
"""Ten steps of viridis (Smith and van der Walt 2015): even in lightness, for the colour-blind and in print."""


@dataclass(frozen=True)
class Scale:
    """The decades between which colours run; beyond them the last colour stands.

    Attributes:
        low, high: log10 of a gradient's L2 norm.
    """

    low: float
    high: float


def scale_of(runs: Sequence[Run]) -> Scale:
    """One for all of ``runs``, from their 1st to their 99th percentile: one overflow does not bleach the rest."""
    found = np.concatenate([_decades(run.packed["highest"].values).ravel() for run in runs])
    finite = found[np.isfinite(found)]
    if not len(finite):
        return Scale(-1.0, 1.0)
    low, high = np.percentile(finite, [1, 99])
    return Scale(float(low), float(max(high, low + 1)))  # less than a decade is no difference


def picture_of(run: Run, scale: Scale) -> NDArray[np.uint8]:
    """(rows, columns) colour numbers."""
    highest = run.packed["highest"].values[:, run.order]
    if not highest.size:
        return np.full((1, 1), _NOT_MEASURED, dtype=np.uint8)
    optimizers = max(1, sum(name.startswith("grad_norm_total") for name in run.curves))  # they take turns at the steps
    across = pooled(highest, _starts(len(highest), min(MOST_COLUMNS, -(-len(highest) // optimizers))))
    decades = _decades(pooled(across.T, _starts(highest.shape[1], MOST_ROWS)))
    shares = np.clip((decades - scale.low) / (scale.high - scale.low), 0, 1)
    numbers = np.where(np.isnan(shares), _NOT_MEASURED, np.rint(np.nan_to_num(shares) * 253))
    return np.where(np.isposinf(decades), _NOT_FINITE, numbers).astype(np.uint8)


def png(numbers: NDArray[np.uint8]) -> bytes:
    """A PNG with a palette; what was not measured is transparent."""
    height, width = numbers.shape
    rows = np.pad(numbers, ((0, 0), (1, 0)))  # each begins with its filter, none
    opaque = bytes([255] * _NOT_MEASURED + [0])
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", colours().tobytes()),
        (b"tRNS", opaque),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def colours() -> NDArray[np.uint8]:
    """(256, 3) red, green and blue of every colour number."""
    anchors = np.array([_rgb(colour) for colour in VIRIDIS], dtype=float)
    at = np.linspace(0, len(anchors) - 1, _NOT_MEASURED)
    mixed = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.vstack([np.rint(np.stack(mixed, axis=1)), [_rgb("#808080"), _rgb(NOT_FINITE)]]).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _decades(values: NDArray[np.floating]) -> NDArray[np.floating]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def _starts(count: int, most: int) -> NDArray[np.int64]:
    """Where each of at most ``most`` groups of ``count`` begins."""
    groups = min(count, most)
    return np.arange(groups) * count // groups
