"""The few words that depend on a number."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["count_of", "names_of", "times"]

NAMED = 3  # names that a sentence lists
LARGEST = 1e300  # a ratio of two finite norms that overflows is told as this


def count_of(count: int, one: str, many: str) -> str:
    """Return "1 step" or "1,200 steps".

    Examples:
        >>> count_of(1, "step", "steps"), count_of(1200, "step", "steps")
        ('1 step', '1,200 steps')
    """
    return f"{count:,} {one if count == 1 else many}"


def names_of(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are.

    Examples:
        >>> names_of(["a", "b"]), names_of(["a", "b", "c", "d"])
        ('a, b', 'a, b, c and 1 more')
    """
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def times(numerator: float, denominator: float) -> str:
    """Return how many times larger one positive number is, with three digits and never as "inf"."""
    ratio = numerator / denominator if denominator > 0 else LARGEST
    return f"{min(ratio, LARGEST):.3g} times"
