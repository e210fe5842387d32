"""Clipping policies: from magnitudes to a scale on the device, multiplied in place.

Enters: gradients and their magnitudes. Leaves: clipped gradients and their total norm. Knows nothing of findings.
No policy syncs with the host, and none ever scales by a total that is not finite: one NaN would spread to every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradwatch.measure import statistics

__all__ = ["Policy", "auto", "by_layer_norm", "by_norm", "by_value", "policy_of"]

_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that both clip alike

Clip = Callable[[Sequence[Tensor], statistics.Magnitudes], Tensor]


@dataclass(frozen=True)
class Policy:
    """A way to clip.

    Attributes:
        clip_: ``(gradients, magnitudes) → total``; scales P gradients in place and returns their () float64 total
            norm afterwards, on the device.
        description: how the policy was written, for messages.
        renew: a copy with no history, for the next optimizer.
        state: tensors that live across steps, for checkpoints.
    """

    clip_: Clip
    description: str
    renew: Callable[[], Policy]
    state: dict[str, Tensor] = field(default_factory=dict)


def by_norm(max_norm: float) -> Policy:
    """Scales all gradients by one factor where their total L2 norm exceeds ``max_norm``.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)): ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al. 2013,
    arXiv:1211.5063), from norms that are measured anyway.

    Raises:
        ValueError: where ``max_norm`` is no positive number.
    """
    _refuse_unless_positive("max_norm", max_norm)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        return _scale_total_to_(gradients, magnitudes, max_norm)

    return Policy(clip_, f"by_norm({max_norm})", lambda: by_norm(max_norm))


def by_value(limit: float) -> Policy:
    """Clamps every entry to [−limit, limit], as ``torch.nn.utils.clip_grad_value_`` does.

    Reads and writes every gradient once more, and once more to measure the total afterwards.

    Raises:
        ValueError: where ``limit`` is no positive number.
    """
    _refuse_unless_positive("limit", limit)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        scale = magnitudes.scale
        scaled_limit = limit if scale is None else limit * scale
        statistics.clamp_(gradients, scaled_limit, when=torch.isfinite(magnitudes.total))
        return statistics.measure(gradients, scale).total

    return Policy(clip_, f"by_value({limit})", lambda: by_value(limit))


def by_layer_norm(max_norm: float) -> Policy:
    """Scales each gradient by a factor of its own where its L2 norm exceeds ``max_norm``.

    Raises:
        ValueError: where ``max_norm`` is no positive number.
    """
    _refuse_unless_positive("max_norm", max_norm)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        scales = (max_norm / (magnitudes.l2 + _EPSILON)).clamp(max=1.0)
        scales = torch.where(torch.isfinite(magnitudes.total), scales, 1.0)
        statistics.scale_(gradients, scales, magnitudes.groups)
        return torch.linalg.vector_norm((magnitudes.l2 * scales).to(magnitudes.total.dtype))

    return Policy(clip_, f"by_layer_norm({max_norm})", lambda: by_layer_norm(max_norm))


def auto(*, z_threshold: float = 2.5, smoothing: float = 0.97, lowest_spread: float = 0.25) -> Policy:
    """Scales down gradients whose total norm is a spike against the run's own recent history.

    Follows ZClip (Kumar et al. 2025, arXiv:2504.02507): with an exponential moving mean μ and deviation σ of the total
    norm (smoothing 0.97) and z = (‖g‖ − μ)/σ, a norm with z > 2.5 is brought down to μ + σ · 2.5²/z: the wilder the
    spike, the less of it is kept. Chosen over a percentile of the whole history (AutoClip, Seetharaman et al. 2020,
    arXiv:2007.14469), which clips nine steps of ten by design and so changes healthy training.

    Two things differ. ZClip lets the clipped norm into its history, by which a lasting rise of ×100 is taken for a
    spike for 8,000 steps (measured, with the σ below); here a spike enters as μ + 2.5·σ: a new level is accepted.
    ZClip leaves its first 25 steps unprotected to learn μ and σ; these averages are corrected for their youth instead,
    as Adam's are, and σ is never below ``lowest_spread``·μ, so that the second step is protected already and a smooth
    run is not clipped for a small wobble. At the first step, and after nothing but gradients of 0, nothing is known and
    nothing is clipped.
    A norm that is NaN or Inf changes neither the gradients nor the history.

    Args:
        z_threshold: from how many deviations on a norm is a spike.
        smoothing: weight of the past in the averages, in (0, 1).
        lowest_spread: least deviation, as a share of the mean.

    Raises:
        ValueError: where an argument is out of range.
    """
    _refuse_unless_positive("z_threshold", z_threshold)
    _refuse_unless_positive("lowest_spread", lowest_spread)
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing={smoothing!r}: expected a number between 0 and 1.")
    state: dict[str, Tensor] = {}

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        total = magnitudes.total
        if not state:
            state.update({name: torch.zeros_like(total) for name in ("mean", "square", "weight")})
        ceiling, highest = _limits(total, state, z_threshold, lowest_spread)
        _remember(torch.minimum(total, highest), state, smoothing)
        return _scale_total_to_(gradients, magnitudes, ceiling)

    return Policy(
        clip_,
        "auto",
        lambda: auto(z_threshold=z_threshold, smoothing=smoothing, lowest_spread=lowest_spread),
        state,
    )


def policy_of(clip: float | str | Policy | None) -> Policy | None:
    """What the user wrote as ``clip=`` → a policy; a number is a global L2 norm.

    Raises:
        TypeError, ValueError: naming ``clip``, what was found and what is understood.
    """
    if clip is None or isinstance(clip, Policy):
        return clip
    if clip == "auto":
        return auto()
    if isinstance(clip, (int, float)) and not isinstance(clip, bool):
        if not math.isfinite(clip) or clip <= 0:
            raise ValueError(f"clip={clip!r}: expected a positive, finite norm, or None not to clip.")
        return by_norm(float(clip))
    kind = ValueError if isinstance(clip, str) else TypeError
    raise kind(f'clip={clip!r}: expected None, a number (global L2 norm), "auto", or a policy from gradwatch.clip.')


def _limits(total: Tensor, state: dict[str, Tensor], z_threshold: float, lowest_spread: float) -> tuple[Tensor, Tensor]:
    """() the norm that ``total`` is brought down to, and the most that enters the history; Inf where it may stay."""
    mean = state["mean"] / state["weight"]  # 0/0 at the first step: NaN compares false, so nothing is clipped
    spread = (state["square"] / state["weight"] - mean.square()).clamp(min=0).sqrt()
    spread = torch.maximum(spread, lowest_spread * mean)
    z = (total - mean) / spread
    spike = (z > z_threshold) & (mean > 0)  # after zeros alone z is infinite, and the run would be held at 0 for ever
    ceiling = torch.where(spike, mean + spread * z_threshold**2 / z, torch.inf)
    highest = torch.where(spike & torch.isfinite(total), mean + spread * z_threshold, torch.inf)
    return ceiling, highest


def _remember(total: Tensor, state: dict[str, Tensor], smoothing: float) -> None:
    """Adds a finite ``total`` to the averages; ``weight`` is what Adam's bias correction divides by."""
    known = torch.isfinite(total)
    for name, value in (("mean", total), ("square", total.square()), ("weight", torch.ones_like(total))):
        state[name].copy_(torch.where(known, torch.lerp(value, state[name], smoothing), state[name]))


def _scale_total_to_(
    gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, max_norm: float | Tensor
) -> Tensor:
    total = magnitudes.total
    if total.is_cpu and not float(max_norm) < float(total) + _EPSILON < math.inf:
        return total  # as below; a look costs nothing here, each operation does
    scale = (max_norm / (total + _EPSILON)).clamp(max=1.0)
    if not total.is_cpu:
        scale = torch.where(torch.isfinite(total), scale, 1.0)
    statistics.scale_(gradients, scale, magnitudes.groups)
    return total * scale


def _refuse_unless_positive(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: expected a positive, finite number.")
