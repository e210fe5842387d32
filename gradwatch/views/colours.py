"""Define the one colour scale of pages, notebooks and the tab: viridis for what is finite, red for what is not.

Colours are looked up by number: 0 to 253 run along the scale, then come "not measured" and "not finite". The tab's
``static/colours.js`` has the same colours; a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Floats, Run

__all__ = ["NOT_FINITE", "NOT_FINITE_COLOUR", "NOT_MEASURED", "VIRIDIS", "ColourScale", "palette", "scale_of"]

SHADES = 254
NOT_MEASURED, NOT_FINITE = 254, 255
NOT_FINITE_COLOUR = "#ff0000"  # furthest from viridis under each kind of colour blindness (tests/js/colours.test.mjs)
_NOT_MEASURED_COLOUR = "#808080"  # drawn transparent where that is possible
VIRIDIS = (
    "#440154", "#48186a", "#472d7b", "#424086", "#3b528b", "#33638d", "#2c728e", "#26828e", "#21918c",
    "#1fa088", "#28ae80", "#3fbc73", "#5ec962", "#84d44b", "#addc30", "#d8e219", "#fde725",
)  # fmt: skip
"""Steps of viridis (Smith and van der Walt 2015): even in lightness, for the colour-blind and in print."""


@dataclass(frozen=True)
class ColourScale:
    """The decades between which colours run; beyond them the colour of the end holds.

    Attributes:
        low, high: log10 of a gradient's L2 norm.
    """

    low: float
    high: float

    def numbers(self, norms: Floats) -> NDArray[np.uint8]:
        """Return the colour number of each of ``norms``; NaN was not measured."""
        with np.errstate(divide="ignore", invalid="ignore"):
            decades = np.log10(norms)
        shares = np.clip((decades - self.low) / (self.high - self.low), 0, 1)
        numbers = np.where(np.isnan(shares), NOT_MEASURED, np.rint(np.nan_to_num(shares) * (SHADES - 1)))
        return np.where(np.isposinf(decades), NOT_FINITE, numbers).astype(np.uint8)


def scale_of(runs: Sequence[Run]) -> ColourScale:
    """Return one scale for all of ``runs``, from their 1st to their 99th percentile.

    The outermost values are left out so that one overflow does not bleach the rest.
    """
    norms = np.concatenate([run.packed["highest"].values.ravel() for run in runs])
    shown = norms[np.isfinite(norms) & (norms > 0)]
    if not len(shown):
        return ColourScale(-1.0, 1.0)
    low, high = np.percentile(np.log10(shown), [1, 99])
    return ColourScale(float(low), float(max(high, low + 1)))  # less than a decade is no difference


def palette() -> NDArray[np.uint8]:
    """Return (256, 3) red, green and blue of every colour number."""
    anchors = np.array([_rgb(colour) for colour in VIRIDIS], dtype=float)
    at = np.linspace(0, len(anchors) - 1, SHADES)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    shades = np.rint(np.stack(channels, axis=1))
    return np.vstack([shades, [_rgb(_NOT_MEASURED_COLOUR), _rgb(NOT_FINITE_COLOUR)]]).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
