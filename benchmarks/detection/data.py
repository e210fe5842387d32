"""Real data without a download: scikit-learn's digits, and the standard library's own text."""

from __future__ import annotations

import functools
import sysconfig
from pathlib import Path

import torch
from torch import Tensor


@functools.cache
def digits(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """(1797, 64) float32 grey levels from 0 to ``scale``, (1797,) classes 0 to 9."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return torch.tensor(loaded.data / 16 * scale, dtype=torch.float32), torch.tensor(loaded.target)


@functools.cache
def text(length: int = 200_000) -> Tensor:
    """(length,) int64 bytes below 128 of the standard library's source, files in alphabetical order."""
    parts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        part = path.read_bytes()
        parts.append(part)
        total += len(part)
        if total >= length:
            break
    return torch.tensor([byte & 127 for byte in b"".join(parts)[:length]])


def windows(batch: int, length: int, corpus: int = 200_000) -> tuple[Tensor, Tensor]:
    """(batch, length) random stretches of the text, and the same shifted by one."""
    source = text(corpus)
    starts = torch.randint(len(source) - length - 1, (batch,)).tolist()
    inputs = torch.stack([source[start : start + length] for start in starts])
    return inputs, torch.stack([source[start + 1 : start + length + 1] for start in starts])
