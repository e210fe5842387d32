"""Name the tags below ``gradwatch/`` in event files, and the order of their figures, for writers and readers.

A reader finds the ``VERSION`` of a file in the metadata of its tags.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["BAND", "LOST", "NORMS", "PACKED_FIGURES", "PLUGIN", "PREFIX", "ROW_NAMES", "TOTALS", "VERSION"]

PLUGIN = "gradwatch"
PREFIX = "gradwatch/"
VERSION = 1

NORMS = ("grad_norm", "highest", "lowest")
"""Rows of ``gradwatch/grad_norm``: each layer's norm at that step, and the extremes since the row before."""

BAND = ("floor", "ceiling")
"""Rows of ``gradwatch/band``: each layer's norm is faint below the one, and outgrows its level above the other."""

PACKED_FIGURES = ("update_ratio", "weight_norm", "activation_rms", "dead_share", "saturated_share")
"""Figures of all layers in one tensor each, beside the norms."""

ROW_NAMES: Mapping[str, tuple[str, ...]] = {
    "grad_norm": NORMS,
    "band": BAND,
    **{name: (name,) for name in PACKED_FIGURES},
}
"""Tags whose tensors have a column per layer, without the prefix → the names of their rows."""

TOTALS = (
    "grad_norm_total",
    "highest_total",
    "lowest_total",
    "grad_norm_clipped_total",
    "clipped_steps",
    "skipped_steps",
    "loss",
    "optimizer",
    "learning_rate",
)
"""Entries of ``gradwatch/totals``; the two counts are of steps since the row before, what was not observed is NaN."""

LOST = ("row", "finding", "coverage")
"""What ``gradwatch/end`` counts where it could not be written; the last says how many steps were measured."""
