"""Tell weights that were never trained from trained ones, by what initialisation leaves behind and training destroys.

An encoder that gets no gradient may be a trained one that is to stay as it is. One that is as it was initialised
computes random features, which nobody wants for ever.

- Uniform weights (torch's default, Xavier, Kaiming): the largest is √3 times the root mean square. Training leaves a
  few large ones and makes that 3 and more.
- Biases that are all 0, and scales that are all 1, do not stay so.
- Biases beyond 1/√n of a layer with n inputs, torch's limit, and vectors of a normalisation that differ, were trained.

Normal weights look alike before and after, and say nothing: one witness is asked for, and nothing that speaks against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["are_new_layers", "are_untrained"]

FEWEST = 64
"""Entries of a matrix from which on the ratio of its largest entry says something."""

ENTRIES = 4096
"""Entries of a matrix that are compared with each other, evenly spaced."""

DISTINCT = 0.99
"""Share of them whose sizes differ where they were drawn: of 4,096 with 24 random bits about one is another's."""


@torch.no_grad()
def are_untrained(layers: Iterable[Sequence[Tensor]]) -> bool:
    """Return True if the parameters are as an initialisation leaves them. Waits for the device.

    Args:
        layers: for each layer, its parameters.
    """
    verdicts = [verdict for parameters in layers for verdict in _verdicts(parameters)]
    return True in verdicts and False not in verdicts


@torch.no_grad()
def are_new_layers(matrices: Iterable[Tensor]) -> bool:
    """Return True if all matrices are as torch makes those of linear and convolutional layers. Waits for the device.

    Their entries are spread evenly over ±1/√n, n inputs, and no two are of the same size. A trained matrix has entries
    beyond these bounds, and filters that are set by hand repeat their entries or have other bounds. One matrix must be
    large enough to be sure of.
    """
    known = [matrix.float() for matrix in matrices if matrix.numel() > 0]
    return all(map(_is_new, known)) and any(matrix.numel() >= FEWEST for matrix in known)


def _is_new(matrix: Tensor) -> bool:
    bound, count = matrix[0].numel() ** -0.5, matrix.numel()
    size = matrix.square().mean().sqrt().item()
    is_even = abs(size / bound * math.sqrt(3) - 1) < 3 / math.sqrt(5 * count)  # three deviations, see ``_of_matrix``
    if not is_even or matrix.abs().max().item() > bound * (1 + 1e-6):
        return False
    some = matrix.flatten()[:: -(-count // ENTRIES)].abs()
    return len(some.unique()) > DISTINCT * len(some)


def _verdicts(parameters: Sequence[Tensor]) -> list[bool | None]:
    """Return for each parameter of one layer: True if it was never trained, False if it was, None if it cannot say."""
    full = [tensor.float() for tensor in parameters if tensor.is_floating_point() and tensor.numel() > 0]
    matrices = [tensor for tensor in full if tensor.ndim > 1]
    limit = max((tensor[0].numel() ** -0.5 for tensor in matrices), default=None)
    vectors = [_of_vector(tensor, limit) for tensor in full if tensor.ndim <= 1]
    return [*map(_of_matrix, matrices), *vectors]


def _of_matrix(weight: Tensor) -> bool | None:
    count = weight.numel()
    if count < FEWEST:
        return None
    size = weight.square().mean().sqrt().item()
    # the root mean square of n uniform numbers is off by 1/√(5 n) of itself; twice that, and one per cent
    limit = math.sqrt(3) * max(1.01, 1 + 2 / math.sqrt(5 * count))
    return True if weight.abs().max().item() <= limit * size else None


def _of_vector(vector: Tensor, limit: float | None) -> bool | None:
    low, high = (each.item() for each in vector.aminmax())
    if low == high:
        return True if vector.numel() > 1 and low in (0.0, 1.0) else None
    if limit is None:
        return False
    return False if max(-low, high) > 1.001 * limit else None
