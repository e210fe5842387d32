"""Say what a clipping policy is, and what all of them share.

No policy syncs with the host, and none ever scales by a total that is not finite: one NaN would spread to every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch.measure import statistics

__all__ = [
    "EPSILON",
    "IsSpike",
    "Memory",
    "Policy",
    "State",
    "all_finite",
    "plain_norms",
    "refuse_unless_positive",
    "scale_by_",
    "scale_plainly_",
    "stored_entries",
    "widened",
]

EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that both clip alike

State = dict[str, Tensor | int]
"""What lives across steps, by name, and its version; for checkpoints."""

Clip = Callable[[Sequence[Tensor], statistics.Magnitudes, Sequence[Tensor], Optimizer | None], Tensor]
PlainClip = Callable[[Sequence[Tensor], Tensor | None, Tensor | None, Sequence[Tensor]], None]
IsSpike = Callable[[Tensor, Tensor | float | None], Tensor]
LimitUpdate = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


class Memory(Protocol):
    """Remember something across steps, for a policy."""

    def state(self) -> State:
        """Return copies of it."""

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from what ``state`` returned; raise ValueError where it is something else."""


@dataclass(frozen=True)
class Policy:
    """A way to clip.

    Attributes:
        clip_: ``(gradients, magnitudes, parameters, optimizer) → total``; scales P gradients in place and returns their
            () float64 total norm afterwards, on the device. It scales last: whatever may fail comes before. The
            optimizer is None in a loop without one.
        description: how the policy was written, for messages.
        renew: returns a policy with no history, for the next optimizer.
        plain_: ``(gradients, scale, norms, parameters)``; clips as nearly the same as torch alone can, where ``clip_``
            could not; None where there is no such way. ``scale`` is () a loss scale that the gradients still hold, or
            None; ``norms`` are (P,) the norms without it where they are known already, as of gradients that are cut
            into parts, or None. It may wait for the device.
        memory: what lives across steps, for checkpoints; None where nothing does.
        clamps: whether ``clip_`` changes entries one by one, so that norms do not tell the total that is left.
        needs_whole: whether it reads more of a tensor than its norm, so that a part of a sharded one is not enough.
        is_spike: ``(total, loss) → () bool``: whether the update is to be left out, by the total norm and the loss if
            there is one; None where every update is made.
        limit_update_: ``(parameters, before)``; shortens in place an update that was made, of the weights ``before``;
            None where updates are left as they are.
    """

    clip_: Clip
    description: str
    renew: Callable[[], Policy]
    plain_: PlainClip | None = None
    memory: Memory | None = None
    clamps: bool = False
    needs_whole: bool = False
    is_spike: IsSpike | None = None
    limit_update_: LimitUpdate | None = None


def scale_by_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, scale: Tensor) -> Tensor:
    """Multiply ``gradients`` by the () ``scale`` or 1, whichever is less, unless they hold NaN or Inf.

    A total that has overflowed although every entry is finite makes zeros, as ``clip_grad_norm_`` does.

    Returns:
        () float64, their total norm afterwards.
    """
    scale = scale.clamp(max=1.0)
    if not magnitudes.total.is_cpu:
        # Inf ÷ Inf: a total of finite entries that has overflowed
        scale = torch.nan_to_num(scale, nan=0.0).masked_fill_(magnitudes.nonfinite.any(), 1.0)
    clipped_total = magnitudes.total * scale
    statistics.scale_(gradients, scale, magnitudes.groups)
    return clipped_total


def stored_entries(gradient: Tensor) -> Tensor:
    """Return what ``gradient`` stores, as real numbers in the same memory; that of a merged copy where it is sparse."""
    entries = gradient.coalesce().values() if gradient.is_sparse else gradient
    if not entries.is_complex():
        return entries
    return torch.view_as_real(entries.conj() if entries.is_conj() else entries)


def widened(entries: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32: a sum of squares needs the room."""
    return entries.float() if entries.dtype in (torch.float16, torch.bfloat16) else entries


def plain_norms(gradients: Sequence[Tensor], scale: Tensor | None) -> Tensor:
    """Return (P,) float64 L2 norms on the device of the first of ``gradients``, without the loss ``scale``."""
    home = gradients[0].device
    norms = [torch.linalg.vector_norm(stored_entries(each), dtype=torch.float64).to(home) for each in gradients]
    return torch.stack(norms) if scale is None else torch.stack(norms) / scale.to(home)


def all_finite(norms: Tensor) -> bool:
    """Return whether none of ``norms`` is NaN or Inf; waits for the device."""
    return bool(torch.isfinite(norms).all())


def scale_plainly_(gradients: Sequence[Tensor], norms: Sequence[Tensor], max_norm: float | Tensor) -> None:
    """Multiply each gradient by min(1, max_norm / (norm + 1e-6)), with a () norm each."""
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_((max_norm / (norm + EPSILON)).clamp(max=1.0).to(gradient.device))


def refuse_unless_positive(name: str, value: float) -> None:
    """
    Raises:
        ValueError: where ``value`` is no positive, finite number.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: expected a positive, finite number.")
