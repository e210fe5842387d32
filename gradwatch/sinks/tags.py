"""Name the scalars of each layer, and say which of them somebody asks for. Loads no TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LAYER_TAGS", "layer_tags", "logged_figures"]

LAYER_TAGS = (
    "grad_norm",
    "weight_norm",
    "update_ratio",
    "grad_max",
    "grad_mean",
    "grad_std",
    "grad_zero_fraction",
    "weight_std",
)
"""Per-layer scalars that ``layer_scalars`` may name."""


def layer_tags(layer_scalars: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the tags that ``layer_scalars`` names.

    Raises:
        ValueError: for a name that is not in ``LAYER_TAGS``.
    """
    if isinstance(layer_scalars, bool):
        return LAYER_TAGS if layer_scalars else ()
    named = (layer_scalars,) if isinstance(layer_scalars, str) else tuple(layer_scalars)
    if unknown := [name for name in named if name not in LAYER_TAGS]:
        raise ValueError(f"layer_scalars: {unknown[0]!r} is none of {', '.join(LAYER_TAGS)}; True writes all of them.")
    return named


def logged_figures(layer_scalars: bool | Sequence[str]) -> frozenset[str]:
    """Return the figures to measure at every logged step: those that ``layer_scalars`` names, and those of packed rows.

    Raises:
        ValueError: for a name that is not in ``LAYER_TAGS``.
    """
    return frozenset(layer_tags(layer_scalars)) - {"grad_norm"} | {"weight_norm", "update_ratio"}
