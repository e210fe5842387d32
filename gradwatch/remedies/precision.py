"""Mixed precision in place of weights in half precision."""

from __future__ import annotations

import torch
from torch import nn

from gradwatch.remedies.forward_pass import run_within_
from gradwatch.remedies.remedy import NotApplicableError

__all__ = ["use_mixed_precision_"]

HALF = (torch.float16, torch.bfloat16)


def use_mixed_precision_(model: nn.Module, dtype: torch.dtype | None = None) -> torch.amp.GradScaler:
    """Hold weights in float32, compute the forward pass in half precision, and return a scaler of the loss.

    ∇(S·l) = S·∇l: what lies below float16's smallest number, 6·10⁻⁸, is lifted above it, and divided by S in float32.
    Micikevicius et al. 2017, arXiv:1710.03740. The scaler of a bfloat16 model does nothing, since bfloat16 has the
    range of float32.

    Args:
        model: is changed in place, before its optimizer is made.
        dtype: of the forward pass; None keeps that of the weights.

    Raises:
        NotApplicableError: if no weight is in half precision.

    Examples:
        >>> model = torch.nn.Linear(4, 2).half()
        >>> scaler = use_mixed_precision_(model)
        >>> model.weight.dtype, model(torch.randn(3, 4)).dtype, scaler.is_enabled()
        (torch.float32, torch.float16, True)
    """
    held = [(each.device.type, each.dtype) for each in model.parameters() if each.dtype in HALF]
    if not held:
        raise NotApplicableError("no weight is in half precision")
    device, half = held[0]
    model.float()
    run_within_(model, torch.autocast(device, dtype or half))
    return torch.amp.GradScaler(device, enabled=(dtype or half) == torch.float16)
