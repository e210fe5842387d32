"""Bring one layer's histograms over time onto one axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.decode import UnreadableError, floats
from gradwatch.event_files.run import Floats

__all__ = ["BINS", "on_one_axis"]

BINS = 64
_MOST_BUCKETS = 10_000
_LARGEST = 1e300  # differences of such edges are still finite


def on_one_axis(events: list[tuple[int, Any]], what: str) -> tuple[list[int], tuple[float, float], NDArray[np.float32]]:
    """Return (steps, (low, high), (S, ``BINS``) shares of the entries between low and high).

    The axis spans the widest histogram but for outliers: the middle 98 % of all steps' outermost edges.

    Raises:
        UnreadableError: for an event that is no histogram.
    """
    if not events:
        return [], (0.0, 1.0), np.zeros((0, BINS), dtype=np.float32)
    buckets = [_buckets(tensor, f"{what} at step {step}") for step, tensor in events]
    low = float(np.percentile([each[:, :2].min() for each in buckets], 1))
    high = float(np.percentile([each[:, :2].max() for each in buckets], 99))
    if not low < high:
        low, high = low - 1e-6, low + 1e-6
    edges = np.linspace(low, high, BINS + 1)
    return (
        [step for step, _ in events],
        (low, high),
        np.array([_shares(each, edges) for each in buckets], dtype=np.float32),
    )


def _buckets(tensor: Any, what: str) -> Floats:
    buckets = floats(tensor, (None, 3), what, wide=True).astype(float)
    is_filled = 0 < len(buckets) <= _MOST_BUCKETS and np.isfinite(buckets).all()
    if not is_filled or (buckets[:, 2] < 0).any() or np.abs(buckets).max() > _LARGEST:
        raise UnreadableError(f"{what}: expected finite buckets of left edge, right edge and count.")
    return buckets


def _shares(buckets: Floats, edges: Floats) -> Floats:
    """Return which share of the entries lies between each two edges; those of a bucket are spread evenly."""
    known = np.maximum.accumulate(np.append(buckets[:, 0], buckets[-1, 1]))  # the data server's outermost may cross
    summed = np.append(0.0, np.cumsum(buckets[:, 2]))
    strictly = known + np.arange(len(known)) * np.spacing(np.abs(known).max() or 1.0)  # buckets of no width
    return np.diff(np.interp(edges, strictly, summed)) / max(summed[-1], 1.0)
