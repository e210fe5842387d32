"""Clip by a limit that the user sets: on the total norm, on the norm of each layer, or on every entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradwatch.clip.policy import (
    EPSILON,
    Policy,
    all_finite,
    plain_norms,
    refuse_unless_positive,
    scale_by_,
    scale_plainly_,
    stored_entries,
    widened,
)
from gradwatch.measure import statistics

__all__ = ["by_layer_norm", "by_norm", "by_value"]

_CLEARLY_BELOW = 0.999  # a total of so much of the limit stays below it however its sum is rounded


def by_norm(max_norm: float) -> Policy:
    """Scale all gradients by one factor where their total L2 norm exceeds ``max_norm``.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)): ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al. 2013,
    arXiv:1211.5063), from norms that are measured anyway, and bit for bit where all gradients are of one device and
    of float32 or float64. Gradients whose total is not finite stay as they are.

    Raises:
        ValueError: where ``max_norm`` is no positive number.
    """
    refuse_unless_positive("max_norm", max_norm)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, *_: object) -> Tensor:
        total = magnitudes.total
        if total.is_cpu and not _CLEARLY_BELOW * max_norm < float(total) < math.inf:
            return total  # a look costs nothing here, each operation does
        norm = torch.linalg.vector_norm(magnitudes.l2)  # in the gradients' own precision, as torch does
        if magnitudes.of_whole:  # other ranks may have layers of their own
            norm = total.to(norm.dtype)
        if total.is_cpu and not math.isfinite(norm):
            norm = total
        return scale_by_(gradients, magnitudes, max_norm / (norm + EPSILON))

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None, _: Sequence[Tensor]) -> None:
        if norms is None:
            norm = nn.utils.get_total_norm(map(widened, map(stored_entries, gradients)))
            norm = norm if scale is None else norm / scale.to(norm.device)
        else:
            norm = torch.linalg.vector_norm(norms)
        if not math.isfinite(norm):  # the squares of finite entries may be too large
            norm = torch.linalg.vector_norm(plain_norms(gradients, scale) if norms is None else norms)
        if math.isfinite(norm):
            scale_plainly_(gradients, [norm] * len(gradients), max_norm)

    return Policy(clip_, f"by_norm({max_norm})", lambda: by_norm(max_norm), plain_)


def by_value(limit: float) -> Policy:
    """Clamp every entry to [−limit, limit], as ``torch.nn.utils.clip_grad_value_`` does.

    It reads and writes every gradient once more, and once more to measure the total afterwards.

    Raises:
        ValueError: where ``limit`` is no positive number.
    """
    refuse_unless_positive("limit", limit)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, *_: object) -> Tensor:
        scale = magnitudes.scale
        scaled_limit = limit if scale is None else limit * scale
        statistics.clamp_(gradients, scaled_limit, when=~magnitudes.nonfinite.any())
        if magnitudes.of_whole:  # what is left of the parts of other ranks is not known here
            return torch.full_like(magnitudes.total, torch.nan)
        return statistics.measure(gradients, scale).total

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None, _: Sequence[Tensor]) -> None:
        if not all_finite(plain_norms(gradients, scale) if norms is None else norms):
            return
        bound = limit if scale is None else limit * float(scale)
        for gradient in gradients:
            merged = gradient.coalesce() if gradient.is_sparse else gradient  # its entries are sums of stored ones
            entries = stored_entries(merged)
            most = min(bound, torch.finfo(entries.dtype).max)  # a bound beyond it is refused
            entries.clamp_(-most, most)
            if merged is not gradient:
                gradient.copy_(merged)

    return Policy(clip_, f"by_value({limit})", lambda: by_value(limit), plain_, clamps=True)


def by_layer_norm(max_norm: float) -> Policy:
    """Scale each gradient by a factor of its own where its L2 norm exceeds ``max_norm``.

    Raises:
        ValueError: where ``max_norm`` is no positive number.
    """
    refuse_unless_positive("max_norm", max_norm)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, *_: object) -> Tensor:
        scales = (max_norm / (magnitudes.l2 + EPSILON)).clamp(max=1.0)
        scales = torch.where(magnitudes.nonfinite.any(), 1.0, scales)
        total = torch.linalg.vector_norm((magnitudes.l2 * scales).to(magnitudes.total.dtype))
        statistics.scale_(gradients, scales, magnitudes.groups)
        return total

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None, _: Sequence[Tensor]) -> None:
        norms = plain_norms(gradients, scale) if norms is None else norms
        if all_finite(norms):
            scale_plainly_(gradients, norms.unbind(), max_norm)

    return Policy(clip_, f"by_layer_norm({max_norm})", lambda: by_layer_norm(max_norm), plain_)
