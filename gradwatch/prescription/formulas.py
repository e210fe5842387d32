"""Formulas kept inside their domain: what log, sqrt, division and softmax mean in a trial.

Enters: calls of torch functions. Leaves: the same values inside the domain, finite ones with finite slopes at its edge.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["SafeDivision", "SafeForm", "SafeLog", "SafeSoftmax", "SafeSqrt"]

REACH = 0.9  # of the largest exponent: what is computed of it, a sum say, has some room
LEAST = 1e-6  # far above the float32 rounding of 1 (1e-7), far below what matters in a probability or a distance


class SafeForm(TorchFunctionMode):
    """Answers some torch functions by others.

    Attributes:
        answers: function → what answers it.
        called: whether any of them was called so far.
    """

    answers: ClassVar[dict[Any, Callable[..., Any]]]

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = self.answers.get(function)
        if answer is None or sys._getframe(1).f_globals.get("__name__", "").startswith("gradwatch."):
            return function(*args, **(kwargs or {}))  # the watcher measures by norms and roots of its own
        self.called = True
        return answer(*args, **(kwargs or {}))


def _above(x: Any) -> Any:
    return x.clamp(min=LEAST) if isinstance(x, Tensor) else x


def _away(x: Any) -> Any:
    """``x`` kept at least ``LEAST`` from 0, on its side."""
    if not isinstance(x, Tensor) or x.is_complex():
        return x
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())  # counts of 0
    return torch.where(x.abs() < LEAST, torch.where(x < 0, -LEAST, LEAST).to(x.dtype), x)


def _exp(x: Tensor) -> Tensor:
    return x.clamp(max=REACH * math.log(torch.finfo(x.dtype).max)).exp() if x.is_floating_point() else x.exp()


def _xlogy(x: Any, y: Any) -> Tensor:
    return torch.xlogy(x, _above(y))


class SafeLog(SafeForm):
    """log(max(x, ε)), whose slope is 0 below ε; eˣ with x kept below where it overflows."""

    answers: ClassVar = {
        torch.log: lambda x: _above(x).log(),
        Tensor.log: lambda x: _above(x).log(),
        torch.log2: lambda x: _above(x).log2(),
        Tensor.log2: lambda x: _above(x).log2(),
        torch.log10: lambda x: _above(x).log10(),
        Tensor.log10: lambda x: _above(x).log10(),
        torch.log1p: lambda x: x.clamp(min=-1 + LEAST).log1p(),
        Tensor.log1p: lambda x: x.clamp(min=-1 + LEAST).log1p(),
        torch.xlogy: _xlogy,
        Tensor.xlogy: _xlogy,
        torch.special.xlogy: _xlogy,
        torch.exp: _exp,
        Tensor.exp: _exp,
    }


def _norm(x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    if p not in (2, 2.0, None, "fro"):
        return torch.norm(x, p, dim, keepdim)
    dims = tuple(range(x.ndim)) if dim is None else dim
    return (x.square().sum(dims, keepdim=keepdim) + LEAST**2).sqrt()


def _deviation(x: Tensor, *args: Any, **named: Any) -> Tensor:
    return _above(torch.var(x, *args, **named)).sqrt()


class SafeSqrt(SafeForm):
    """√max(x, ε), hence slopes of at most 1 / (2√ε); norms likewise; powers of numbers that are not negative."""

    answers: ClassVar = {
        torch.sqrt: lambda x: _above(x).sqrt(),
        Tensor.sqrt: lambda x: _above(x).sqrt(),
        torch.rsqrt: lambda x: _above(x).rsqrt(),
        Tensor.rsqrt: lambda x: _above(x).rsqrt(),
        torch.norm: _norm,
        Tensor.norm: _norm,
        torch.linalg.vector_norm: lambda x, ord=2, dim=None, keepdim=False, **_: _norm(x, ord, dim, keepdim),
        torch.linalg.norm: lambda x, ord=None, dim=None, keepdim=False, **_: (
            torch.linalg.norm(x, ord, dim, keepdim) if isinstance(dim, tuple) else _norm(x, ord, dim, keepdim)
        ),
        torch.cdist: lambda x, y, p=2.0, **_: _norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1),
        torch.std: _deviation,
        Tensor.std: _deviation,
        torch.pow: lambda x, power: _power(x, power),
        Tensor.pow: lambda x, power: _power(x, power),
        Tensor.__pow__: lambda x, power: _power(x, power),
        torch.acos: lambda x: x.clamp(-1 + LEAST, 1 - LEAST).acos(),
        Tensor.acos: lambda x: x.clamp(-1 + LEAST, 1 - LEAST).acos(),
        torch.atanh: lambda x: x.clamp(-1 + LEAST, 1 - LEAST).atanh(),
        Tensor.atanh: lambda x: x.clamp(-1 + LEAST, 1 - LEAST).atanh(),
    }


def _power(x: Any, power: Any) -> Any:
    whole = isinstance(power, int) or (isinstance(power, float) and power.is_integer())
    return torch.pow(x if whole and power > 0 else _above(x), power)


class SafeDivision(SafeForm):
    """a / b with |b| at least ε."""

    answers: ClassVar = {
        torch.div: lambda a, b, **named: torch.div(a, _away(b), **named),
        torch.true_divide: lambda a, b: torch.true_divide(a, _away(b)),
        Tensor.div: lambda a, b, **named: torch.div(a, _away(b), **named),
        Tensor.__truediv__: lambda a, b: torch.div(a, _away(b)),
        Tensor.__rtruediv__: lambda b, a: torch.div(a, _away(b)),
        Tensor.__itruediv__: lambda a, b: torch.div(a, _away(b)),
        Tensor.reciprocal: lambda b: torch.reciprocal(_away(b)),
    }


def _wholly_masked(scores: Tensor, dim: int = -1) -> Tensor:
    return (scores == -torch.inf).all(dim, keepdim=True)


def _softmax(x: Tensor, dim: int | None = None, *_: Any, **named: Any) -> Tensor:
    """A row that is masked as a whole gives zeros."""
    dim = -1 if dim is None else dim
    hidden = _wholly_masked(x, dim)
    return x.masked_fill(hidden, 0.0).softmax(dim, dtype=named.get("dtype")).masked_fill(hidden, 0.0)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **named: Any
) -> Any:
    if attn_mask is None:
        return F.scaled_dot_product_attention(query, key, value, None, *args, **named)
    hidden = (~attn_mask).all(-1, keepdim=True) if attn_mask.dtype == torch.bool else _wholly_masked(attn_mask)
    shown = attn_mask | hidden if attn_mask.dtype == torch.bool else attn_mask.masked_fill(hidden, 0.0)
    return F.scaled_dot_product_attention(query, key, value, shown, *args, **named).masked_fill(hidden, 0.0)


def _heads(query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *args: Any, **named: Any) -> Any:
    """What ``nn.MultiheadAttention`` calls: both of its masks as one, in which no row is masked as a whole."""
    padding, mask = (_added(named.pop(name, None), query) for name in ("key_padding_mask", "attn_mask"))
    if padding is not None:
        padding = torch.atleast_2d(padding).repeat_interleave(heads, 0).unsqueeze(-2)
        mask = padding.expand(-1, len(query), -1) if mask is None else mask + padding
    if mask is not None:
        mask = mask.masked_fill(_wholly_masked(mask), 0.0)
        named |= {"attn_mask": mask, "is_causal": False}
    return F.multi_head_attention_forward(query, key, value, width, heads, *args, **named)


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as what is added to scores."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


class SafeSoftmax(SafeForm):
    """Softmax whose wholly masked rows are zeros, not 0/0; in attention of several heads, nothing masks them."""

    answers: ClassVar = {
        torch.softmax: _softmax,
        Tensor.softmax: _softmax,
        F.softmax: _softmax,
        F.scaled_dot_product_attention: _attention,
        F.multi_head_attention_forward: _heads,
    }
