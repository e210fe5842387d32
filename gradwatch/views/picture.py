"""Draw the depth × time picture: a row of pixels per layer from input to output, a column per span of steps.

Where there are more than pixels the largest shows, so that a spike of one step is never lost.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Floats, Run
from gradwatch.views.colours import NOT_MEASURED, ColourScale, palette
from gradwatch.views.profile import pooled
from gradwatch.views.time_columns import largest_in_columns

__all__ = ["highest_norms", "picture_of", "png", "row_starts"]

MOST_COLUMNS, MOST_ROWS = 420, 400  # what two pages side by side have for it: a browser would drop pixels


def picture_of(run: Run, scale: ColourScale) -> NDArray[np.uint8]:
    """Return (rows, columns) colour numbers."""
    highest = highest_norms(run)
    return scale.numbers(highest) if highest.size else np.full((1, 1), NOT_MEASURED, dtype=np.uint8)


def highest_norms(run: Run) -> Floats:
    """Return (rows, columns) the largest norm in each pixel: columns are equal spans of steps, rows are layers."""
    highest = run.packed["highest"].values[:, run.order]
    if not highest.size:
        return highest.T
    optimizers = max(1, sum(name.startswith("grad_norm_total") for name in run.curves))
    most = MOST_COLUMNS if optimizers == 1 else -(-len(highest) // optimizers)  # they take turns at the steps
    across = largest_in_columns(run.packed["highest"].steps, highest, min(MOST_COLUMNS, most))
    return pooled(across.T, row_starts(highest.shape[1]))


def row_starts(layers: int) -> NDArray[np.int64]:
    """Return which layer, from input to output, each row of pixels begins with."""
    rows = min(layers, MOST_ROWS)
    return np.arange(rows) * layers // rows


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
