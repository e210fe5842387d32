"""Draw the depth × time picture: a row of pixels per layer from input to output, a column per logged row.

Where there are more than pixels the largest shows, so that a spike of one step is never lost.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Run
from gradwatch.views.colours import NOT_MEASURED, ColourScale, palette
from gradwatch.views.profile import pooled

__all__ = ["picture_of", "png"]

MOST_COLUMNS, MOST_ROWS = 420, 400  # what two pages side by side have for it: a browser would drop pixels


def picture_of(run: Run, scale: ColourScale) -> NDArray[np.uint8]:
    """Return (rows, columns) colour numbers."""
    highest = run.packed["highest"].values[:, run.order]
    if not highest.size:
        return np.full((1, 1), NOT_MEASURED, dtype=np.uint8)
    optimizers = max(1, sum(name.startswith("grad_norm_total") for name in run.curves))  # they take turns at the steps
    across = pooled(highest, _starts(len(highest), min(MOST_COLUMNS, -(-len(highest) // optimizers))))
    return scale.numbers(pooled(across.T, _starts(highest.shape[1], MOST_ROWS)))


def png(numbers: NDArray[np.uint8]) -> bytes:
    """Return a PNG with a palette; what was not measured is transparent."""
    height, width = numbers.shape
    rows = np.pad(numbers, ((0, 0), (1, 0)))  # each begins with its filter, none
    opaque = bytes([255] * NOT_MEASURED + [0])
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette().tobytes()),
        (b"tRNS", opaque),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _starts(count: int, most: int) -> NDArray[np.int64]:
    """Return where each of at most ``most`` groups of ``count`` begins."""
    groups = min(count, most)
    return np.arange(groups) * count // groups
