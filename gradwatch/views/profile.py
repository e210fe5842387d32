"""Take the profile along depth: what each layer's gradient, activation and update were like at last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Floats, Run
from gradwatch.views.groups import groups_of

__all__ = ["Profile", "latest_finite", "lengths", "pooled", "profile_of"]


@dataclass(frozen=True)
class Profile:
    """P layers, or modules where there are more than fit, from input to output.

    Attributes:
        names: of each.
        sick: whether a finding covers it.
        columns: title → (P,) figures, NaN where none was measured.
    """

    names: list[str]
    sick: NDArray[np.bool_]
    columns: Mapping[str, Floats]


def profile_of(run: Run, most: int) -> Profile:
    """Return the last finite figure of each layer; of a group the largest."""
    groups = groups_of([run.layers[column] for column in run.order.tolist()], most)
    columns = [run.order[group.places] for group in groups]
    sick = run.sick
    return Profile(
        names=[group.name for group in groups],
        sick=np.array([sick[each].any() for each in columns], dtype=bool),
        columns={
            title: np.array([np.fmax.reduce(values[each]) for each in columns])
            for title, values in (_columns(run) if groups else {}).items()
        },
    )


def latest_finite(values: Floats) -> Floats:
    """Return (S, P) → (P,) each column's last finite entry, NaN where it has none."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    finite = np.isfinite(values)
    last = len(values) - 1 - finite[::-1].argmax(axis=0)
    latest = values[last, np.arange(values.shape[1])].astype(float)
    return np.where(finite.any(axis=0), latest, np.nan)


def pooled(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Return the largest of each group of rows that begins at ``starts``; Inf is the largest, NaN is nothing."""
    return np.fmax.reduceat(values, starts, axis=0)


def lengths(values: Floats) -> Floats:
    """Return magnitudes as shares of a bar from 0 to 1, by their logarithm; NaN for NaN, 0 for 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(values)
    finite = decades[np.isfinite(decades)]
    if not len(finite):
        return np.where(np.isnan(values), np.nan, 0.0)
    low, high = finite.min(), finite.max()
    shares = 0.1 + 0.9 * (decades - low) / max(high - low, 1.0)  # less than a decade apart looks alike
    return np.where(np.isneginf(decades), 0.0, shares)


def _columns(run: Run) -> dict[str, Floats]:
    """Return title → (P,) the last finite figure of each layer, for the figures that the run has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        entries = np.where(run.size > 0, np.sqrt(run.size), np.nan)
    columns: dict[str, Floats] = {"gradient RMS": latest_finite(run.packed["grad_norm"].values) / entries}
    for title, name in (("activation RMS", "activation_rms"), ("update ratio", "update_ratio")):
        if name in run.packed:
            columns[title] = latest_finite(run.packed[name].values)
    return columns
