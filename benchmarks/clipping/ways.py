"""Ways to clip: what gradwatch has, and what others have published, in the plainest form.

A way sees the gradients before each update. It keeps its history from step to step, and says what it did in ``acted``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch import clip
from gradwatch.measure import statistics

NORMS = (0.1, 0.3, 1.0, 3.0, 10.0, None)
"""The fixed global norms among which the oracle chooses; None does not clip."""
TINY = 1e-6


@dataclass(frozen=True)
class Update:
    """What is known before an update.

    Attributes:
        parameters: in the model's order, with their gradients.
        optimizers: each has some of them.
        loss: of the batch.
    """

    parameters: Sequence[Tensor]
    optimizers: Sequence[Optimizer]
    loss: float

    @property
    def gradients(self) -> list[Tensor]:
        """Return the gradients in the model's order."""
        return [each.grad for each in self.parameters]


class Way:
    """The parent of all ways, which does nothing.

    Attributes:
        acted: whether it changed the last update.
    """

    acted = False

    def clip_(self, update: Update) -> bool:
        """Clip the gradients in place. Return False to leave the update out."""
        return True

    def after_(self, update: Update, before: Sequence[Tensor]) -> None:
        """Change what the update has done; ``before`` are the weights before it. Only if ``sees_weights``."""

    sees_weights = False

    def scale_to_(self, gradients: Sequence[Tensor], limit: float, total: float) -> None:
        """Scale all gradients by one factor, so that their norm ``total`` becomes ``limit`` at most."""
        self.acted = total > limit
        if self.acted:
            for gradient in gradients:
                gradient.mul_(limit / (total + TINY))


def norm_of(gradients: Sequence[Tensor]) -> float:
    """Return the L2 norm over all gradients; Inf where a sum of squares overflows."""
    return float(statistics.measure(gradients).total)


class FixedNorm(Way):
    """One fixed global norm over all gradients, as ``torch.nn.utils.clip_grad_norm_`` has it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def clip_(self, update: Update) -> bool:
        total = float(nn.utils.clip_grad_norm_(update.parameters, self.limit))
        self.acted = total > self.limit
        return True


class Gradwatch(Way):
    """A policy of ``gradwatch.clip``; each optimizer has a history of its own, as under ``gradwatch.watch``."""

    def __init__(self, policy: clip.Policy) -> None:
        self.policy, self.policies = policy, {}

    def clip_(self, update: Update) -> bool:
        self.acted = False
        for place, optimizer in enumerate(update.optimizers):
            policy = self.policies.setdefault(place, self.policy.renew())
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            gradients = [each.grad for each in parameters]
            magnitudes = statistics.without_overflow(gradients, statistics.measure(gradients))
            left = float(policy.clip_(gradients, magnitudes, parameters, optimizer))
            self.acted |= left < 0.999 * float(magnitudes.total)
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Gradwatch:
        twin = Gradwatch(self.policy)
        for place, policy in self.policies.items():
            twin.policies[place] = policy.renew()
            if policy.memory is not None:
                twin.policies[place].memory.restore(policy.memory.state())
        return twin


class AdaptiveRatio(Way):
    """AGC (Brock et al. 2021, arXiv:2102.06171): each unit's gradient norm is at most 0.01 of its weights' norm.

    As published: a unit is a row of a matrix or an output channel, a vector is one unit, a weight norm counts as 0.001
    at least, and the last linear layer is left alone.
    """

    def __init__(self, ratio: float = 0.01, least: float = 1e-3) -> None:
        self.ratio, self.least = ratio, least

    def clip_(self, update: Update) -> bool:
        self.acted = False
        for parameter in update.parameters[:-2]:
            gradient = parameter.grad
            limit = self.ratio * unit_norms(parameter.detach()).clamp(min=self.least)
            factors = (limit / unit_norms(gradient).clamp(min=TINY)).clamp(max=1.0)
            gradient.mul_(factors)
            self.acted |= bool((factors < 1).any())
        return True


def unit_norms(tensor: Tensor) -> Tensor:
    """Return the norm of each row or output channel, in a shape that multiplies ``tensor``; of a vector one norm."""
    if tensor.ndim <= 1:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


class Percentile(Way):
    """AutoClip (Seetharaman et al. 2020, arXiv:2007.14469): the limit is the 10th percentile of all norms so far."""

    def __init__(self, percentile: float = 0.10) -> None:
        self.percentile, self.norms = percentile, []

    def clip_(self, update: Update) -> bool:
        total = norm_of(update.gradients)
        self.norms.append(total)
        limit = float(torch.tensor(self.norms, dtype=torch.float64).nan_to_num().quantile(self.percentile))
        self.scale_to_(update.gradients, limit, total)
        return True


class ZClip(Way):
    """ZClip as published (Kumar et al. 2025, arXiv:2504.02507), without its further fixed norm.

    The first 25 steps are not clipped; from their mean μ and deviation σ on both are averages with 0.97. A norm with
    z > 2.5 is brought to μ + σ·2.5²/z, and enters the averages so.
    """

    def __init__(self, threshold: float = 2.5, smoothing: float = 0.97, unprotected: int = 25) -> None:
        self.threshold, self.smoothing, self.unprotected = threshold, smoothing, unprotected
        self.first: list[float] = []
        self.mean = self.variance = math.nan

    def clip_(self, update: Update) -> bool:
        total = norm_of(update.gradients)
        self.acted = False
        if len(self.first) < self.unprotected:
            self.first.append(total)
            self.mean = fmean(self.first)
            self.variance = fmean((each - self.mean) ** 2 for each in self.first)
            return True
        deviation = math.sqrt(self.variance)
        z = (total - self.mean) / (deviation + TINY)
        if z > self.threshold:
            limit = self.mean + self.threshold**2 * deviation / z
            self.scale_to_(update.gradients, limit, total)
            total = limit
        self.mean = self.smoothing * self.mean + (1 - self.smoothing) * total
        self.variance = self.smoothing * self.variance + (1 - self.smoothing) * (total - self.mean) ** 2
        return True


class ByTensor(Way):
    """AdaGC (Wang et al. 2025, arXiv:2502.11034): each tensor has its own average norm, and 1.05 of it as its limit.

    At first all are clipped to a global norm of 1, and the averages keep the smallest norm of each: for 50 steps here,
    where the paper has 100 of its much longer runs.
    """

    def __init__(self, relative: float = 1.05, absolute: float = 1.0, smoothing: float = 0.98, start: int = 50) -> None:
        self.relative, self.absolute, self.smoothing, self.start = relative, absolute, smoothing, start
        self.steps, self.averages = 0, None

    def clip_(self, update: Update) -> bool:
        gradients = update.gradients
        norms = statistics.norms(gradients)
        is_early = self.steps < self.start
        if is_early:
            factors = (self.absolute / (torch.linalg.vector_norm(norms) + TINY)).clamp(max=1.0).expand_as(norms)
        else:
            factors = (self.relative * self.averages / norms.clamp(min=TINY)).clamp(max=1.0)
        clipped = (norms * factors).nan_to_num(0.0)  # Inf · 0
        if self.averages is None:
            self.averages = clipped
        elif is_early:
            self.averages = torch.minimum(self.averages, clipped)
        else:
            self.averages = torch.lerp(clipped, self.averages, self.smoothing)
        for gradient, factor in zip(gradients, factors.unbind()):
            gradient.mul_(factor)
        self.steps += 1
        self.acted = bool((factors < 1).any())
        return True


class Skip(Way):
    """OLMo's SkipStepOptimizer: no update where the loss or the norm is beyond 6 deviations of the last 128.

    With 64 values at least, this step's included, whose mean and deviation are those before it.
    """

    def __init__(self, deviations: float = 6.0, window: int = 128, least: int = 64) -> None:
        self.deviations, self.window, self.least = deviations, window, least
        self.losses: list[float] = []
        self.norms: list[float] = []

    def clip_(self, update: Update) -> bool:
        latest = (update.loss, norm_of(update.gradients))
        is_usual = True
        for values, value in zip((self.losses, self.norms), latest):
            earlier = values[-self.window :]
            values.append(value)
            if len(earlier) + 1 >= self.least:
                is_usual &= abs(value - _mean(earlier)) <= self.deviations * _deviation(earlier)
        self.acted = not is_usual
        return is_usual


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if all(map(math.isfinite, values)) else math.nan


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


class OfUpdates(Way):
    """Update clipping: of AdamW as in StableAdamW (Wortsman et al. 2023, arXiv:2304.13013), else by the weights.

    A tensor's update of AdamW is divided by max(1, RMS(g/√v)). Other optimizers keep no v: there the RMS of an update
    is at most 0.1 of that of the weights, which count as 0.001 at least, as in Adafactor (arXiv:1804.04235).
    """

    sees_weights = True

    def __init__(self, most: float = 0.1, least: float = 1e-3) -> None:
        self.most, self.least = most, least

    def after_(self, update: Update, before: Sequence[Tensor]) -> None:
        self.acted = False
        states = {id(each): optimizer.state[each] for optimizer in update.optimizers for each in optimizer.state}
        for parameter, old in zip(update.parameters, before):
            state = states.get(id(parameter), {})
            if "exp_avg_sq" in state:
                factor = self._of_adam(parameter.grad, state)
            else:
                moved = float((parameter - old).square().mean().sqrt())
                weight = max(float(old.square().mean().sqrt()), self.least)
                factor = min(1.0, self.most * weight / moved) if moved > 0 else 1.0
            if factor < 1:
                parameter.copy_(torch.lerp(old, parameter, factor))
                self.acted = True

    @staticmethod
    def _of_adam(gradient: Tensor, state: Mapping[str, Tensor]) -> float:
        unbiased = state["exp_avg_sq"] / (1 - ADAM_SQUARES ** float(state["step"]))
        ratio = float((gradient.square() / unbiased.clamp(min=1e-16)).mean().sqrt())
        return 1 / max(1.0, ratio)


class ZScore(Way):
    """What ``auto`` was before, and is still where it does not know the optimizer; over each optimizer's gradients.

    With averages m and s of the norm and its deviation, smoothed by 0.97, corrected for their youth, and s at least
    0.25 · m: a norm with z > 2.5 is brought to m + s · 2.5²/z, and enters the averages as m + 2.5 · s.
    """

    def __init__(self, threshold: float = 2.5, smoothing: float = 0.97, lowest_spread: float = 0.25) -> None:
        self.threshold, self.smoothing, self.lowest_spread = threshold, smoothing, lowest_spread
        self.averages: dict[int, tuple[float, float, float]] = {}

    def clip_(self, update: Update) -> bool:
        self.acted = False
        for place, optimizer in enumerate(update.optimizers):
            gradients = [each.grad for group in optimizer.param_groups for each in group["params"]]
            total = norm_of(gradients)
            limit, entered = self._limit(total, *self.averages.get(place, (0.0, 0.0, 0.0)))
            if math.isfinite(entered):
                before, values = self.averages.get(place, (0.0, 0.0, 0.0)), (entered, entered**2, 1.0)
                mixed = (self.smoothing * old + (1 - self.smoothing) * new for old, new in zip(before, values))
                self.averages[place] = tuple(mixed)
            if total > limit:
                self.acted = True
                for gradient in gradients:
                    gradient.mul_(limit / total)
        return True

    def _limit(self, total: float, mean: float, square: float, weight: float) -> tuple[float, float]:
        """Return what the norm is brought down to, and what enters the averages."""
        if mean <= 0:
            return math.inf, total
        mean, square = mean / weight, square / weight
        deviation = max(math.sqrt(max(square - mean**2, 0.0)), self.lowest_spread * mean)
        z = (total - mean) / deviation
        if not z > self.threshold:
            return math.inf, total
        return mean + deviation * self.threshold**2 / z, mean + self.threshold * deviation


ADAM_SQUARES = 0.99
"""β₂ of all AdamW here."""

_FIXED: dict[str, Callable[[], Way]] = {
    "none" if norm is None else f"norm {norm:g}": (Way if norm is None else lambda norm=norm: FixedNorm(norm))
    for norm in NORMS
}
ORACLE = tuple(_FIXED)

WAYS: Mapping[str, Callable[[], Way]] = {
    **_FIXED,
    "1.0": lambda: Gradwatch(clip.by_norm(1.0)),
    "auto": lambda: Gradwatch(clip.auto()),
    "z-score": ZScore,
    "by tensor (AdaGC)": ByTensor,
    "AGC": AdaptiveRatio,
    "AutoClip": Percentile,
    "ZClip": ZClip,
    "skip at 6 σ": Skip,
    "of updates": OfUpdates,
}
SCORED = tuple(name for name in WAYS if name == "none" or name not in ORACLE)
