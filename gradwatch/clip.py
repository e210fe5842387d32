"""Clipping policies: from magnitudes to a scale on the device, multiplied in place.

No policy syncs with the host, and none ever scales by a total that is not finite: one NaN would spread to every layer.
Each has a plain way that needs torch alone: it clips where measuring or the policy itself has failed, since
clipping that was asked for always happens. The plain ways may wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gradwatch.measure import statistics

__all__ = ["Policy", "TotalAverages", "auto", "by_layer_norm", "by_norm", "by_value", "clip_plainly_", "policy_of"]

_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that both clip alike
_CLEARLY_BELOW = 0.999  # a total of so much of the limit stays below it however its sum is rounded

Clip = Callable[[Sequence[Tensor], statistics.Magnitudes], Tensor]
PlainClip = Callable[[Sequence[Tensor], Tensor | None, Tensor | None], None]


@dataclass
class TotalAverages:
    """The exponential averages of the total norm that ``auto`` remembers, each () float64 on the device.

    Attributes:
        mean, square: of the total norm and of its square, both from 0 on.
        weight: of all that has entered; Adam's bias correction divides by it.
    """

    mean: Tensor | None = None
    square: Tensor | None = None
    weight: Tensor | None = None

    VERSION = 1

    def of(self, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (mean, square, weight) on the device of ``total``; zeros at first."""
        if self.mean is None or self.square is None or self.weight is None:
            self.mean, self.square, self.weight = (torch.zeros_like(total) for _ in range(3))
        return self.mean, self.square, self.weight

    def state(self) -> dict[str, Tensor | int]:
        """Return copies of the averages by name, and the version; for checkpoints."""
        named = {"mean": self.mean, "square": self.square, "weight": self.weight}
        known = {name: value.clone() for name, value in named.items() if value is not None}
        return {"version": self.VERSION, **known}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: where it is something else.
        """
        names = set(state) - {"version"}
        values = [state.get(name) for name in ("mean", "square", "weight")]
        is_known = state.get("version") == self.VERSION and all(isinstance(value, Tensor) for value in values if names)
        if not is_known or names - {"mean", "square", "weight"}:
            raise ValueError(
                f"expected the averages of clip='auto', version {self.VERSION}, found {sorted(state)} of version "
                f"{state.get('version')!r}. Resume without this state: the averages then begin anew."
            )
        self.mean, self.square, self.weight = (value.clone() if isinstance(value, Tensor) else None for value in values)


@dataclass(frozen=True)
class Policy:
    """A way to clip.

    Attributes:
        clip_: ``(gradients, magnitudes) → total``; scales P gradients in place and returns their () float64 total
            norm afterwards, on the device. It scales last: whatever may fail comes before.
        description: how the policy was written, for messages.
        renew: returns a policy with no history, for the next optimizer.
        plain_: ``(gradients, scale, norms)``; clips as nearly the same as torch alone can, where ``clip_`` could not;
            None where there is no such way. ``scale`` is () a loss scale that the gradients still hold, or None;
            ``norms`` are (P,) the norms without it where they are known already, as of gradients that are cut into
            parts, or None.
        clamps: whether ``clip_`` changes entries one by one, so that norms do not tell the total that is left.
        averages: what lives across steps, for checkpoints; None where nothing does.
    """

    clip_: Clip
    description: str
    renew: Callable[[], Policy]
    plain_: PlainClip | None = None
    averages: TotalAverages | None = None
    clamps: bool = False


def by_norm(max_norm: float) -> Policy:
    """Scale all gradients by one factor where their total L2 norm exceeds ``max_norm``.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)): ``torch.nn.utils.clip_grad_norm_`` (Pascanu et al. 2013,
    arXiv:1211.5063), from norms that are measured anyway, and bit for bit where all gradients are of one device and
    of float32 or float64. Gradients whose total is not finite stay as they are.

    Raises:
        ValueError: where ``max_norm`` is no positive number.
    """
    _refuse_unless_positive("max_norm", max_norm)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        total = magnitudes.total
        if total.is_cpu and not _CLEARLY_BELOW * max_norm < float(total) < math.inf:
            return total  # a look costs nothing here, each operation does
        norm = torch.linalg.vector_norm(magnitudes.l2)  # in the gradients' own precision, as torch does
        if magnitudes.of_whole:  # other ranks may have layers of their own
            norm = total.to(norm.dtype)
        if total.is_cpu and not math.isfinite(norm):
            norm = total
        return _scale_by_(gradients, magnitudes, max_norm / (norm + _EPSILON))

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None = None) -> None:
        if norms is None:
            norm = nn.utils.get_total_norm(map(_widened, map(_stored_entries, gradients)))
            norm = norm if scale is None else norm / scale.to(norm.device)
        else:
            norm = torch.linalg.vector_norm(norms)
        if math.isfinite(norm):
            _scale_plainly_(gradients, [norm] * len(gradients), max_norm)

    return Policy(clip_, f"by_norm({max_norm})", lambda: by_norm(max_norm), plain_)


def by_value(limit: float) -> Policy:
    """Clamp every entry to [−limit, limit], as ``torch.nn.utils.clip_grad_value_`` does.

    It reads and writes every gradient once more, and once more to measure the total afterwards.

    Raises:
        ValueError: where ``limit`` is no positive number.
    """
    _refuse_unless_positive("limit", limit)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        scale = magnitudes.scale
        scaled_limit = limit if scale is None else limit * scale
        statistics.clamp_(gradients, scaled_limit, when=torch.isfinite(magnitudes.total))
        if magnitudes.of_whole:  # what is left of the parts of other ranks is not known here
            return torch.full_like(magnitudes.total, torch.nan)
        return statistics.measure(gradients, scale).total

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None = None) -> None:
        if not _all_finite(_plain_norms(gradients, scale) if norms is None else norms):
            return
        bound = limit if scale is None else limit * float(scale)
        for gradient in gradients:
            merged = gradient.coalesce() if gradient.is_sparse else gradient  # its entries are sums of stored ones
            entries = _stored_entries(merged)
            most = min(bound, torch.finfo(entries.dtype).max)  # a bound beyond it is refused
            entries.clamp_(-most, most)
            if merged is not gradient:
                gradient.copy_(merged)

    return Policy(clip_, f"by_value({limit})", lambda: by_value(limit), plain_, clamps=True)


def by_layer_norm(max_norm: float) -> Policy:
    """Scale each gradient by a factor of its own where its L2 norm exceeds ``max_norm``.

    Raises:
        ValueError: where ``max_norm`` is no positive number.
    """
    _refuse_unless_positive("max_norm", max_norm)

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        scales = (max_norm / (magnitudes.l2 + _EPSILON)).clamp(max=1.0)
        scales = torch.where(torch.isfinite(magnitudes.total), scales, 1.0)
        total = torch.linalg.vector_norm((magnitudes.l2 * scales).to(magnitudes.total.dtype))
        statistics.scale_(gradients, scales, magnitudes.groups)
        return total

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None = None) -> None:
        norms = _plain_norms(gradients, scale) if norms is None else norms
        if _all_finite(norms):
            _scale_plainly_(gradients, norms.unbind(), max_norm)

    return Policy(clip_, f"by_layer_norm({max_norm})", lambda: by_layer_norm(max_norm), plain_)


def auto(*, z_threshold: float = 2.5, smoothing: float = 0.97, lowest_spread: float = 0.25) -> Policy:
    """Scale down gradients whose total norm is a spike against the run's own recent history.

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
    averages = TotalAverages()

    def clip_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes) -> Tensor:
        total = magnitudes.total
        ceiling, highest = _limits(total, averages, z_threshold, lowest_spread)
        _remember(torch.minimum(total, highest), averages, smoothing)
        if total.is_cpu and not float(ceiling) < float(total) + _EPSILON < math.inf:
            return total  # a look costs nothing here, each operation does
        return _scale_by_(gradients, magnitudes, ceiling / (total + _EPSILON))

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None = None) -> None:
        norms = _plain_norms(gradients, scale) if norms is None else norms
        if averages.mean is None or not _all_finite(norms):
            return
        total = torch.linalg.vector_norm(norms.to(averages.mean))
        ceiling, _ = _limits(total, averages, z_threshold, lowest_spread)
        _scale_plainly_(gradients, [total] * len(gradients), ceiling)

    return Policy(
        clip_,
        "auto",
        lambda: auto(z_threshold=z_threshold, smoothing=smoothing, lowest_spread=lowest_spread),
        plain_,
        averages,
    )


def policy_of(clip: float | Literal["auto"] | Policy | None) -> Policy | None:
    """Return the policy that the user wrote as ``clip=``; a number is a global L2 norm.

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


@torch.no_grad()
def clip_plainly_(
    policy: Policy, gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None = None
) -> None:
    """Clip ``gradients`` in place with little more than torch itself, where measuring or ``policy.clip_`` has failed.

    ``by_norm`` clips as ``torch.nn.utils.clip_grad_norm_`` does, bit for bit; ``by_value`` and ``by_layer_norm`` do the
    same as ever; ``auto`` clips by the level that it knew last, and learns nothing. A policy of the user's own is given
    magnitudes that were measured plainly. May wait for the device.

    Args:
        policy: the one that was asked for.
        gradients: P tensors.
        scale: () a loss scale that they still hold, or None.
        norms: (P,) their norms without it, where they are known; of the whole gradients if the tensors are parts.
    """
    if not gradients:
        return
    if policy.plain_ is not None:
        policy.plain_(gradients, scale, norms)
        return
    norms = _plain_norms(gradients, scale) if norms is None else norms
    nonfinite = torch.stack([(~torch.isfinite(_stored_entries(each))).sum().to(norms.device) for each in gradients])
    total = torch.linalg.vector_norm(norms, dtype=torch.float64)
    policy.clip_(gradients, statistics.Magnitudes(norms, nonfinite, total, scale))


def _limits(total: Tensor, averages: TotalAverages, z_threshold: float, lowest_spread: float) -> tuple[Tensor, Tensor]:
    """Return () the norm that ``total`` is brought down to, and the most that enters the averages; Inf: as it is."""
    mean, square, weight = averages.of(total)
    mean = mean / weight  # 0/0 at the first step: NaN compares false, so nothing is clipped
    spread = (square / weight - mean.square()).clamp(min=0).sqrt()
    spread = torch.maximum(spread, lowest_spread * mean)
    z = (total - mean) / spread
    spike = (z > z_threshold) & (mean > 0)  # after zeros alone z is infinite, and the run would be held at 0 for ever
    ceiling = torch.where(spike, mean + spread * z_threshold**2 / z, torch.inf)
    highest = torch.where(spike & torch.isfinite(total), mean + spread * z_threshold, torch.inf)
    return ceiling, highest


def _remember(total: Tensor, averages: TotalAverages, smoothing: float) -> None:
    """Add a finite ``total`` to the averages."""
    known = torch.isfinite(total)
    values = (total, total.square(), torch.ones_like(total))
    for average, value in zip(averages.of(total), values, strict=True):
        average.copy_(torch.where(known, torch.lerp(value, average, smoothing), average))


def _scale_by_(gradients: Sequence[Tensor], magnitudes: statistics.Magnitudes, scale: Tensor) -> Tensor:
    """Multiply ``gradients`` by the () ``scale`` or 1, whichever is less, unless their total is not finite."""
    scale = scale.clamp(max=1.0)
    if not magnitudes.total.is_cpu:
        scale = torch.where(torch.isfinite(magnitudes.total), scale, 1.0)
    clipped_total = magnitudes.total * scale
    statistics.scale_(gradients, scale, magnitudes.groups)
    return clipped_total


def _stored_entries(gradient: Tensor) -> Tensor:
    """Return what ``gradient`` stores, as real numbers in the same memory; that of a merged copy where it is sparse."""
    entries = gradient.coalesce().values() if gradient.is_sparse else gradient
    if not entries.is_complex():
        return entries
    return torch.view_as_real(entries.conj() if entries.is_conj() else entries)


def _widened(entries: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32: a sum of squares needs the room."""
    return entries.float() if entries.dtype in (torch.float16, torch.bfloat16) else entries


def _plain_norms(gradients: Sequence[Tensor], scale: Tensor | None) -> Tensor:
    """Return (P,) L2 norms on the device of the first of ``gradients``, without the loss ``scale``."""
    home = gradients[0].device
    norms = [torch.linalg.vector_norm(_widened(_stored_entries(gradient))).to(home) for gradient in gradients]
    return torch.stack(norms) if scale is None else torch.stack(norms) / scale.to(home)


def _all_finite(norms: Tensor) -> bool:
    return bool(torch.isfinite(norms).all())


def _scale_plainly_(gradients: Sequence[Tensor], norms: Sequence[Tensor], max_norm: float | Tensor) -> None:
    """Multiply each gradient by min(1, max_norm / (norm + 1e-6)), with a () norm each."""
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_((max_norm / (norm + _EPSILON)).clamp(max=1.0).to(gradient.device))


def _refuse_unless_positive(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: expected a positive, finite number.")
