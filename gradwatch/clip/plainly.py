"""Clip with little more than torch itself, where measuring or the policy has failed.

Clipping that was asked for always happens. These ways may wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwatch.clip.policy import Policy, plain_norms, stored_entries
from gradwatch.measure import statistics

__all__ = ["clip_plainly_"]


@torch.no_grad()
def clip_plainly_(
    policy: Policy,
    gradients: Sequence[Tensor],
    scale: Tensor | None,
    norms: Tensor | None = None,
    parameters: Sequence[Tensor] = (),
) -> None:
    """Clip ``gradients`` in place with little more than torch itself, where measuring or ``policy.clip_`` has failed.

    ``by_norm`` clips as ``torch.nn.utils.clip_grad_norm_`` does, bit for bit; ``by_value`` and ``by_layer_norm`` do the
    same as ever; ``auto`` and ``percentile`` clip by what they knew last, and learn nothing. Other policies are given
    magnitudes that were measured plainly. May wait for the device.

    Args:
        policy: the one that was asked for.
        gradients: P tensors.
        scale: () a loss scale that they still hold, or None.
        norms: (P,) their norms without it, where they are known; of the whole gradients if the tensors are parts.
        parameters: P, of each gradient its own.
    """
    if not gradients:
        return
    if policy.plain_ is not None:
        policy.plain_(gradients, scale, norms, parameters)
        return
    norms = plain_norms(gradients, scale) if norms is None else norms
    nonfinite = torch.stack([(~torch.isfinite(stored_entries(each))).sum().to(norms.device) for each in gradients])
    total = torch.linalg.vector_norm(norms, dtype=torch.float64)
    policy.clip_(gradients, statistics.Magnitudes(norms, nonfinite, total, scale), parameters, None)
