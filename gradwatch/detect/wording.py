"""The few words that depend on a number."""

from __future__ import annotations

__all__ = ["count_of", "times"]

LARGEST = 1e300  # a ratio of two finite norms that overflows is told as this


def count_of(count: int, one: str, many: str) -> str:
    """Return "1 step" or "1,200 steps".

    Examples:
        >>> count_of(1, "step", "steps"), count_of(1200, "step", "steps")
        ('1 step', '1,200 steps')
    """
    return f"{count:,} {one if count == 1 else many}"


def times(numerator: float, denominator: float) -> str:
    """Return how many times larger one positive number is, with three digits and never as "inf"."""
    ratio = numerator / denominator if denominator > 0 else LARGEST
    return f"{min(ratio, LARGEST):.3g} times"
