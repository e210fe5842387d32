"""Clip by the size of the weights: gradients unit by unit before an update, or the update once it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.clip.policy import Policy, refuse_unless_positive
from gradwatch.measure import statistics

__all__ = ["adaptive", "by_update"]

_LEAST_NORM = 1e-6  # of a unit's gradient, as in the paper's own code: what is smaller is never clipped


def adaptive(clipping: float = 0.01, *, least_weight_norm: float = 1e-3) -> Policy:
    """Scale the gradient of each unit where its norm exceeds a share of the norm of its weights: AGC.

    G_i ← G_i · min(1, clipping · max(‖W_i‖, least_weight_norm) / ‖G_i‖) (Brock et al. 2021, arXiv:2102.06171, eq. 3).
    Unit i is row i of a weight of two dimensions or more, that is, one output of a linear or convolutional layer or one
    vector of an embedding. Biases and gains count as one unit each. The paper clips every layer but the last; here the
    last one is clipped as well. Gradients whose total is not finite stay as they are.

    It reads gradients and weights once more, layer by layer, and needs whole tensors: it is refused where they are
    sharded.

    Args:
        clipping: largest ratio of the two norms.
        least_weight_norm: taken for the weights of a unit that has smaller ones, so that zeros can grow.

    Raises:
        ValueError: where an argument is no positive number.
    """
    refuse_unless_positive("clipping", clipping)
    refuse_unless_positive("least_weight_norm", least_weight_norm)

    def clip_(
        gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, parameters: Sequence[Tensor], *_: object
    ) -> Tensor:
        total = magnitudes.total
        if not gradients or (total.is_cpu and not math.isfinite(total)):
            return total  # a look costs nothing here
        scale = 1.0 if magnitudes.scale is None else magnitudes.scale
        left = []
        for gradient, parameter in zip(gradients, parameters, strict=True):
            merged = gradient.coalesce() if gradient.is_sparse else gradient  # its entries are sums of stored ones
            units, weights = _units(merged, parameter.detach())
            norm, most = _norms(units), clipping * scale * _norms(weights).clamp(min=least_weight_norm)
            factor = (most / norm.clamp(min=_LEAST_NORM * scale)).clamp(max=1.0)
            factor = torch.where(torch.isfinite(total), factor, 1.0)
            units.mul_(factor)
            if merged is not gradient:
                gradient.copy_(merged)
            left.append(torch.linalg.vector_norm(norm * factor / scale).to(total))
        return torch.linalg.vector_norm(torch.stack(left))

    return Policy(
        clip_,
        f"adaptive({clipping})",
        lambda: adaptive(clipping, least_weight_norm=least_weight_norm),
        needs_whole=True,
    )


def by_update(max_ratio: float, *, least_weight_rms: float = 0.01) -> Policy:
    """Shorten the update of each tensor where its norm exceeds a share of the norm of the weights.

    w ← w₀ + (w₁ − w₀) · min(1, max_ratio · ‖w₀‖ / ‖w₁ − w₀‖), where w₀ are the weights before an update and w₁ those
    that the optimizer made of them. So it holds whatever the optimizer does with a gradient: under Adam a huge gradient
    makes a huge update where its second moment is small, and clipping the gradient does not help (Wortsman et al. 2023,
    arXiv:2304.13013, who bound the update of AdamW by its own size). The ratio is that of LARS (You et al. 2017,
    arXiv:1708.03888), as a bound. An update that is not finite stays as it is.

    It keeps a copy of the weights during an update. It is refused where tensors are sharded, where nobody says when an
    update is made, and for optimizers that would undo it: those that keep weights of their own (schedule-free) and
    those that evaluate a closure again (LBFGS).

    Args:
        max_ratio: largest ratio of the two norms. Healthy updates have some 0.001.
        least_weight_rms: taken for the root mean square of weights that are smaller, so that biases of 0 can grow.

    Raises:
        ValueError: where an argument is no positive number.
    """
    refuse_unless_positive("max_ratio", max_ratio)
    refuse_unless_positive("least_weight_rms", least_weight_rms)

    def clip_(_: Sequence[Tensor], magnitudes: statistics.Magnitudes, *__: object) -> Tensor:
        return magnitudes.total  # gradients stay as they are

    def limit_update_(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        for parameter, old in zip(parameters, before, strict=True):
            now = parameter.detach()
            norm, least = torch.linalg.vector_norm(now - old), least_weight_rms * math.sqrt(old.numel())
            factor = max_ratio * torch.linalg.vector_norm(old).clamp(min=least) / norm
            is_longer = (factor < 1) & torch.isfinite(norm)
            if not is_longer.is_cpu or is_longer:
                now.copy_(torch.where(is_longer, old + (now - old) * factor, now))

    return Policy(
        clip_,
        f"by_update({max_ratio})",
        lambda: by_update(max_ratio, least_weight_rms=least_weight_rms),
        needs_whole=True,
        limit_update_=limit_update_,
    )


def _units(gradient: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the units of ``gradient`` and of its ``weights``, (units, …) each; of a sparse gradient those that it has.

    Raises:
        ValueError: for a gradient that is sparse in more than its rows.
    """
    if not gradient.is_sparse:
        return gradient, weights
    if gradient.sparse_dim() != 1:
        raise ValueError(
            f"adaptive() knows gradients that are sparse in their rows, not in {gradient.sparse_dim()} axes."
        )
    return gradient.values(), weights[gradient.indices()[0]]


def _norms(units: Tensor) -> Tensor:
    """Return the norm of each unit, of a shape that ``units`` can be multiplied by: (units, 1, …), or () for one."""
    wide = torch.float32 if units.dtype in (torch.float16, torch.bfloat16) else None
    axes = tuple(range(1, units.ndim))
    if not axes:
        return torch.linalg.vector_norm(units, dtype=wide)
    return torch.linalg.vector_norm(units, dim=axes, keepdim=True, dtype=wide)
