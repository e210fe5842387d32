"""Answer torch's log, sqrt, division and softmax by their safe forms wherever a model or its loss calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradwatch.remedies.forward_pass import run_within_
from gradwatch.remedies.safe_forms import (
    above,
    away_from_zero,
    fully_masked,
    jittered,
    jittered_symmetric,
    masked_softmax,
    safe_acos,
    safe_acosh,
    safe_asin,
    safe_atanh,
    safe_divide,
    safe_exp,
    safe_log,
    safe_log1p,
    safe_norm,
    safe_pow,
    safe_sqrt,
    softmax_over_classes,
    unmask_full_rows,
)

__all__ = [
    "SafeAngle", "SafeDecomposition", "SafeDivision", "SafeLog", "SafeMode", "SafePower", "SafeSoftmax", "SafeSqrt",
    "SoftmaxOverClasses", "unused_modes",
]  # fmt: skip

LossFunction = Callable[[Any, Any], Tensor]


class SafeMode(TorchFunctionMode):
    """A mode that answers some torch functions by others, for a ``with`` block or for good.

    What gradwatch itself calls is not answered: the watcher measures by norms and roots of its own.

    Attributes:
        answers: function → the one that answers it.
        called: True once any of them was called.
    """

    answers: ClassVar[dict[Any, Callable[..., Any]]]

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def around_(self, model: nn.Module, loss_fn: LossFunction) -> LossFunction:
        """Let the mode hold in every forward pass of ``model``, and return ``loss_fn`` computed within it.

        Args:
            model: is changed in place.
            loss_fn: (outputs, targets) → scalar. Attributes and weights of a module stay reachable by ``.loss_fn``.

        Examples:
            >>> model = torch.nn.Linear(4, 1)
            >>> loss_fn = SafeLog().around_(model, lambda outputs, y: (0 * outputs).log().mean())
            >>> loss_fn(model(torch.randn(3, 4)), None).isfinite()
            tensor(True)
        """
        run_within_(model, self)
        return LossWithin(self, loss_fn)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = self.answers.get(function)
        if answer is None or sys._getframe(1).f_globals.get("__name__", "").startswith("gradwatch."):
            return function(*args, **(kwargs or {}))
        self.called = True
        return answer(*args, **(kwargs or {}))


class LossWithin(nn.Module):
    """A loss that is computed within a mode."""

    def __init__(self, mode: SafeMode, loss_fn: LossFunction) -> None:
        super().__init__()
        self.mode, self.loss_fn = mode, loss_fn

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        with self.mode:
            return self.loss_fn(outputs, targets)


def unused_modes(loss_fn: LossFunction) -> Iterator[SafeMode]:
    """Yield the modes around ``loss_fn`` that have answered no call so far."""
    while isinstance(loss_fn, LossWithin):
        if not loss_fn.mode.called:
            yield loss_fn.mode
        loss_fn = loss_fn.loss_fn


def _xlogy(x: Any, y: Any) -> Tensor:
    return torch.xlogy(x, above(y))


class SafeLog(SafeMode):
    """``safe_log`` and ``safe_exp`` for logarithms and exponentials."""

    answers: ClassVar = {
        torch.log: safe_log,
        Tensor.log: safe_log,
        torch.log2: lambda x: above(x).log2(),
        Tensor.log2: lambda x: above(x).log2(),
        torch.log10: lambda x: above(x).log10(),
        Tensor.log10: lambda x: above(x).log10(),
        torch.log1p: safe_log1p,
        Tensor.log1p: safe_log1p,
        torch.xlogy: _xlogy,
        Tensor.xlogy: _xlogy,
        torch.special.xlogy: _xlogy,
        torch.exp: safe_exp,
        Tensor.exp: safe_exp,
    }


def _deviation(x: Tensor, *args: Any, **named: Any) -> Tensor:
    return safe_sqrt(torch.var(x, *args, **named))


def _vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return safe_norm(x, ord, dim, keepdim)


def _linalg_norm(x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    if isinstance(dim, tuple):  # of a matrix
        return torch.linalg.norm(x, ord, dim, keepdim)
    return safe_norm(x, ord, dim, keepdim)


def _distances(x: Tensor, y: Tensor, p: float = 2.0, **_: Any) -> Tensor:
    return safe_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


class SafeSqrt(SafeMode):
    """``safe_sqrt``, ``safe_norm`` and ``safe_pow`` for roots, norms, deviations, distances and powers."""

    answers: ClassVar = {
        torch.sqrt: safe_sqrt,
        Tensor.sqrt: safe_sqrt,
        torch.rsqrt: lambda x: above(x).rsqrt(),
        Tensor.rsqrt: lambda x: above(x).rsqrt(),
        torch.norm: safe_norm,
        Tensor.norm: safe_norm,
        torch.linalg.vector_norm: _vector_norm,
        torch.linalg.norm: _linalg_norm,
        torch.cdist: _distances,
        torch.std: _deviation,
        Tensor.std: _deviation,
        torch.pow: safe_pow,
        Tensor.pow: safe_pow,
        Tensor.__pow__: safe_pow,
        torch.acos: safe_acos,
        Tensor.acos: safe_acos,
        torch.atanh: safe_atanh,
        Tensor.atanh: safe_atanh,
    }


class SafePower(SafeMode):
    """``safe_pow`` for powers."""

    answers: ClassVar = {
        torch.pow: safe_pow,
        Tensor.pow: safe_pow,
        Tensor.__pow__: safe_pow,
        torch.float_power: lambda x, power: torch.float_power(above(x), power),
        Tensor.float_power: lambda x, power: torch.float_power(above(x), power),
    }


class SafeAngle(SafeMode):
    """``safe_acos`` and the like for arccosines, arcsines and their hyperbolic kin."""

    answers: ClassVar = {
        torch.acos: safe_acos,
        Tensor.acos: safe_acos,
        torch.arccos: safe_acos,
        Tensor.arccos: safe_acos,
        torch.asin: safe_asin,
        Tensor.asin: safe_asin,
        torch.arcsin: safe_asin,
        Tensor.arcsin: safe_asin,
        torch.acosh: safe_acosh,
        Tensor.acosh: safe_acosh,
        torch.atanh: safe_atanh,
        Tensor.atanh: safe_atanh,
    }


def _of_jittered(decompose: Callable[..., Any]) -> Callable[..., Any]:
    def decomposed(x: Tensor, *args: Any, **named: Any) -> Any:
        return decompose(jittered(x), *args, **named)

    return decomposed


def _of_jittered_symmetric(decompose: Callable[..., Any]) -> Callable[..., Any]:
    def decomposed(x: Tensor, *args: Any, **named: Any) -> Any:
        return decompose(jittered_symmetric(x), *args, **named)

    return decomposed


class SafeDecomposition(SafeMode):
    """A little noise on what is decomposed or inverted, a rising diagonal on what is symmetric."""

    answers: ClassVar = {
        **{
            function: _of_jittered(function)
            for function in (torch.svd, Tensor.svd, torch.linalg.svd, torch.linalg.qr, torch.linalg.eig,
                             torch.linalg.inv, torch.inverse, Tensor.inverse, torch.linalg.solve, torch.linalg.det,
                             torch.linalg.slogdet, torch.det, Tensor.det)
        },
        **{
            function: _of_jittered_symmetric(function)
            for function in (torch.linalg.eigh, torch.linalg.cholesky)
        },
    }  # fmt: skip


class SafeDivision(SafeMode):
    """``safe_divide`` for divisions and reciprocals."""

    answers: ClassVar = {
        torch.div: safe_divide,
        torch.true_divide: safe_divide,
        Tensor.div: safe_divide,
        Tensor.__truediv__: safe_divide,
        Tensor.__rtruediv__: lambda b, a: safe_divide(a, b),
        Tensor.__itruediv__: safe_divide,
        Tensor.reciprocal: lambda b: torch.reciprocal(away_from_zero(b)),
    }


def _softmax(x: Tensor, dim: int | None = None, *_: Any, **named: Any) -> Tensor:
    return masked_softmax(x, -1 if dim is None else dim, named.get("dtype"))


def _over_classes(x: Tensor, dim: int | None = None, *_: Any, **named: Any) -> Tensor:
    return softmax_over_classes(x, dim)


class SoftmaxOverClasses(SafeMode):
    """``softmax_over_classes`` for softmaxes."""

    answers: ClassVar = {
        torch.softmax: _over_classes,
        Tensor.softmax: _over_classes,
        F.softmax: _over_classes,
    }


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **named: Any
) -> Any:
    if attn_mask is None:
        return F.scaled_dot_product_attention(query, key, value, None, *args, **named)
    if attn_mask.dtype == torch.bool:
        hidden = (~attn_mask).all(-1, keepdim=True)
        mask = attn_mask | hidden
    else:
        hidden = fully_masked(attn_mask)
        mask = unmask_full_rows(attn_mask)
    return F.scaled_dot_product_attention(query, key, value, mask, *args, **named).masked_fill(hidden, 0.0)


def _multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *args: Any, **named: Any
) -> Any:
    """Answer what ``nn.MultiheadAttention`` calls: both of its masks become one without fully masked rows."""
    padding = _as_scores(named.pop("key_padding_mask", None), query)
    mask = _as_scores(named.pop("attn_mask", None), query)
    if padding is not None:
        padding = torch.atleast_2d(padding).repeat_interleave(heads, 0).unsqueeze(-2)
        mask = padding.expand(-1, len(query), -1) if mask is None else mask + padding
    if mask is not None:
        named |= {"attn_mask": unmask_full_rows(mask), "is_causal": False}
    return F.multi_head_attention_forward(query, key, value, width, heads, *args, **named)


def _as_scores(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a boolean mask as what is added to scores: 0, or −inf where it is True."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


class SafeSoftmax(SafeMode):
    """``masked_softmax`` for softmaxes; fully masked rows of attention become 0, or are not masked in several heads."""

    answers: ClassVar = {
        torch.softmax: _softmax,
        Tensor.softmax: _softmax,
        F.softmax: _softmax,
        F.scaled_dot_product_attention: _attention,
        F.multi_head_attention_forward: _multi_head_attention,
    }
