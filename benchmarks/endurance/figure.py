"""What an attack reached, beside what was asked of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Attack", "Figure", "at_least_one", "draws_of"]


@dataclass(frozen=True)
class Figure:
    """One row of docs/reliability.md."""

    what: str
    """What was done, and how often: "200 runs killed"."""
    asked: str
    reached: str
    holds: bool
    """Whether what was reached is what was asked."""


Attack = Callable[[float, int], Iterator[Figure]]
"""An attack is made at a share of its whole size, from 0 to 1, with a seed from which all that it draws comes."""


def at_least_one(share: float, whole: int) -> int:
    """Return the share of a whole size, and never nothing."""
    return max(1, round(share * whole))


def draws_of(seed: int, number: int) -> random.Random:
    """Return the random numbers of one of the tries of an attack, so that it can be made again by itself."""
    return random.Random(f"{seed} {number}")
