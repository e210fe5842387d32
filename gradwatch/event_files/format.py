"""What stands in event files under ``gradwatch/``: the tags and the order of their figures, for writers and readers.

Knows nothing of files. A reader of an older file finds its ``VERSION`` in the metadata of the tags.
"""

from __future__ import annotations

__all__ = ["BAND", "FIGURES", "NORMS", "PLUGIN", "TOTALS", "VERSION"]

PLUGIN = "gradwatch"
VERSION = 1

NORMS = ("grad_norm", "highest", "lowest")
"""Rows of ``gradwatch/grad_norm``: each layer's norm at that step, and the extremes since the row before."""

BAND = ("floor", "ceiling")
"""Rows of ``gradwatch/band``: each layer's norm is faint below the one, and outgrows its level above the other."""

FIGURES = ("update_ratio", "weight_norm", "activation_rms", "dead_share", "saturated_share")
"""Figures of all layers in one tensor each, beside the norms."""

TOTALS = (
    "grad_norm_total",
    "highest_total",
    "lowest_total",
    "grad_norm_clipped_total",
    "clipped_steps",
    "skipped_steps",
    "loss",
    "optimizer",
)
"""Entries of ``gradwatch/totals``; the two counts are of steps since the row before, a loss not observed is NaN."""
