"""Compute log, exp, sqrt, norm, division and softmax with finite values and finite slopes everywhere.

Inside the domain each is the plain function; at its edge it is bounded.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "masked_softmax", "safe_acos", "safe_atanh", "safe_divide", "safe_exp", "safe_log", "safe_log1p", "safe_norm",
    "safe_pow", "safe_sqrt", "unmask_full_rows",
]  # fmt: skip

REACH = 0.9  # of the largest exponent: what is computed from the result, a sum say, has some room
JITTER = 1e-4  # the derivative of a decomposition is then at most about 1e8, which float32 holds
LEAST = 1e-6  # far above the float32 rounding of 1 (1e-7), far below what matters in a probability or a distance


def safe_log(x: Tensor) -> Tensor:
    """Return log(max(x, 1e-6)), whose slope is 0 below 1e-6: log′(x) = 1/x is ∞ at 0.

    Better where the argument comes from exp: ``logsumexp``, ``log_softmax``, ``logsigmoid``, ``cross_entropy``
    (Blanchard, Higham and Higham 2021).

    Examples:
        >>> safe_log(torch.tensor([0.0, 1.0]))
        tensor([-13.8155,   0.0000])
    """
    return above(x).log()


def safe_log1p(x: Tensor) -> Tensor:
    """Return log(1 + x) with x kept above −1 + 1e-6."""
    return x.clamp(min=-1 + LEAST).log1p()


def safe_exp(x: Tensor) -> Tensor:
    """Return eˣ with x kept below where it overflows: in float32 below 0.9 · 88.7.

    Examples:
        >>> safe_exp(torch.tensor(1000.0)).isfinite()
        tensor(True)
    """
    return x.clamp(max=REACH * math.log(torch.finfo(x.dtype).max)).exp() if x.is_floating_point() else x.exp()


def safe_sqrt(x: Tensor) -> Tensor:
    """Return √max(x, 1e-6): √′(x) = 1/(2√x) is ∞ at 0, and ∞ · 0 in the chain rule is NaN.

    ``safe_sqrt(x.var(0))`` takes the place of ``x.std(0)``.

    Examples:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> safe_sqrt(x).sum().backward()
        >>> x.grad
        tensor([0., 0., 0.])
    """
    return above(x).sqrt()


def safe_norm(x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """Return √(Σx² + 1e-12), whose slope at 0 is 0; other norms than the Euclidean one as torch has them.

    ``safe_norm(x[:, None] - y, dim=-1)`` takes the place of ``torch.cdist(x, y)``.

    Examples:
        >>> safe_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), dim=1)
        tensor([5.0000e+00, 1.0000e-06])
    """
    if p not in (2, 2.0, None, "fro"):
        return torch.norm(x, p, dim, keepdim)
    dims = tuple(range(x.ndim)) if dim is None else dim
    return (x.square().sum(dims, keepdim=keepdim) + LEAST**2).sqrt()


def safe_pow(x: Any, power: Any) -> Any:
    """Return xᵖ with x kept above 1e-6, unless p is a whole number above 0."""
    is_whole = isinstance(power, int) or (isinstance(power, float) and power.is_integer())
    return torch.pow(x if is_whole and power > 0 else above(x), power)


def safe_acos(x: Tensor) -> Tensor:
    """Return arccos(x) with x kept within ±(1 − 1e-6), since its slope is infinite at ±1."""
    return x.clamp(-1 + LEAST, 1 - LEAST).acos()


def safe_asin(x: Tensor) -> Tensor:
    """Return arcsin(x) with x kept within ±(1 − 1e-6)."""
    return x.clamp(-1 + LEAST, 1 - LEAST).asin()


def safe_acosh(x: Tensor) -> Tensor:
    """Return arcosh(x) with x kept above 1 + 1e-6."""
    return x.clamp(min=1 + LEAST).acosh()


def jittered(x: Tensor) -> Tensor:
    """Return x with noise of 1e-4 of its root mean square, so that no two singular values or eigenvalues are equal.

    The derivative of a decomposition divides by their differences. A matrix of zeros gets noise of 1e-4.

    Examples:
        >>> torch.linalg.svdvals(jittered(torch.eye(2))).diff().abs() > 0
        tensor([True])
    """
    with torch.no_grad():
        scale = x.abs().square().mean((-2, -1), keepdim=True).sqrt()
        noise = torch.randn_like(x) * JITTER * torch.where(scale > 0, scale, 1.0)
    return x + noise


def jittered_symmetric(x: Tensor) -> Tensor:
    """Return x plus a diagonal that rises from 1e-4 to 2e-4 of its root mean square, for symmetric matrices.

    It keeps a matrix symmetric and makes a semidefinite one definite.
    """
    with torch.no_grad():
        scale = x.abs().square().mean((-2, -1), keepdim=True).sqrt()
        rising = torch.linspace(1, 2, x.shape[-1], dtype=scale.dtype, device=x.device).diag()
        diagonal = JITTER * torch.where(scale > 0, scale, 1.0) * rising
    return x + diagonal


def softmax_over_classes(x: Tensor, dim: int | None = None) -> Tensor:
    """Return a softmax that depends on x: over the last axis where ``dim`` has one entry, a sigmoid where both have.

    A softmax over one entry is eˣ/eˣ = 1 whatever x is, and its derivative is 0.

    Examples:
        >>> softmax_over_classes(torch.zeros(2, 1), 1)
        tensor([[0.5000],
                [0.5000]])
    """
    axis = -1 if dim is None else dim
    if x.shape[axis] != 1:
        return x.softmax(axis)
    return x.softmax(-1) if x.shape[-1] > 1 else x.sigmoid()


def safe_atanh(x: Tensor) -> Tensor:
    """Return artanh(x) with x kept within ±(1 − 1e-6)."""
    return x.clamp(-1 + LEAST, 1 - LEAST).atanh()


def safe_divide(a: Any, b: Any, **named: Any) -> Tensor:
    """Return a / b with |b| at least 1e-6, on the side of 0 where b is.

    ``torch.where`` after a plain division hides the value, not the slope: ∞ · 0 is NaN (PyTorch issue 36923).

    Examples:
        >>> safe_divide(torch.zeros(2), torch.tensor([0.0, 2.0]))
        tensor([0., 0.])
    """
    return torch.div(a, away_from_zero(b), **named)


def masked_softmax(scores: Tensor, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """Return a softmax of scores that are −inf where they are masked; rows that are masked entirely become 0, not 0/0.

    Examples:
        >>> masked_softmax(torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]))
        tensor([[1., 0.],
                [0., 0.]])
    """
    hidden = fully_masked(scores, dim)
    return scores.masked_fill(hidden, 0.0).softmax(dim, dtype=dtype).masked_fill(hidden, 0.0)


def unmask_full_rows(mask: Tensor) -> Tensor:
    """Return a mask of 0 and −inf in which rows that are masked entirely are not masked at all.

    For ``nn.MultiheadAttention``; add a mask of padding to it first (PyTorch issue 41508).

    Examples:
        >>> unmask_full_rows(torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]))
        tensor([[0., -inf],
                [0., 0.]])
    """
    return mask.masked_fill(fully_masked(mask), 0.0)


def fully_masked(scores: Tensor, dim: int = -1) -> Tensor:
    """Return True for each row along ``dim`` that holds nothing but −inf, with that dimension kept."""
    return (scores == -torch.inf).all(dim, keepdim=True)


def above(x: Any) -> Any:
    """Return x kept above ``LEAST``; numbers that are no tensors as they are."""
    return x.clamp(min=LEAST) if isinstance(x, Tensor) else x


def away_from_zero(x: Any) -> Any:
    """Return x with a magnitude of at least ``LEAST``; complex tensors and plain numbers as they are."""
    if not isinstance(x, Tensor) or x.is_complex():
        return x
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())  # counts may be 0
    return torch.where(x.abs() < LEAST, torch.where(x < 0, -LEAST, LEAST).to(x.dtype), x)
