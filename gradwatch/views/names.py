"""Shorten names of layers to what tells them apart."""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["labels"]

_MOST = 24  # characters of a label


def labels(names: Sequence[str], most: int = _MOST) -> list[str]:
    """Return ``names``, each of at most ``most`` characters: without the parents that all share, then without a middle.

    Args:
        names: of layers.
        most: characters of a label.
    """
    shared = 0
    if any(len(name) > most for name in names):
        shared = os.path.commonprefix(list(names)).rfind(".") + 1  # noqa: RUF071 (names, not paths)
    cut = ["…" + name[shared:] if shared else name for name in names]
    half = (most - 1) // 2
    return [name if len(name) <= most else f"{name[:half]}…{name[-half:]}" for name in cut]
