"""Read weights as they are now, where that costs little: plain tensors on the CPU.

A finding opens at a step that need not be a sampled one. On an accelerator this would wait for the device, and a part
of a sharded tensor is not the tensor, so there the latest sample has to do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats

__all__ = ["current_norms", "spectral_radius"]

LARGEST_MATRIX = 1024
"""Rows of a matrix whose eigenvalues are computed: a second at most."""


def current_norms(layers: Layers) -> Floats:
    """Return (P,) L2 norms of the watched tensors; NaN where a tensor is not read."""
    return np.array([_norm(tensor) for tensor in layers.tensors], dtype=np.float64)


def spectral_radius(tensor: Tensor) -> float | None:
    """Return the largest absolute eigenvalue of a square matrix; None where it is not read.

    Examples:
        >>> round(spectral_radius(2 * torch.eye(3)), 6)
        2.0
    """
    if not _is_plain(tensor) or tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
        return None
    matrix = tensor.detach().double()
    if not 0 < len(matrix) <= LARGEST_MATRIX or not bool(torch.isfinite(matrix).all()):
        return None
    return float(torch.linalg.eigvals(matrix).abs().max())


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) if _is_plain(tensor) else np.nan


def _is_plain(tensor: Tensor) -> bool:
    is_dense = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return is_dense and tensor.is_cpu and tensor.is_floating_point()
