"""Clip as fits what the optimizer does with a gradient: ``clip="auto"``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch.clip.history import LargestLevel, TotalAverages
from gradwatch.clip.policy import (
    EPSILON,
    Policy,
    State,
    all_finite,
    plain_norms,
    refuse_unless_positive,
    scale_by_,
    scale_plainly_,
)
from gradwatch.measure import statistics

__all__ = ["auto"]

REACH = 0.16
"""Share of the weights' norm that one gradient may move them by under plain descent, momentum included.

AGC (Brock et al. 2021, arXiv:2102.06171) limits gradients to 0.01 of the weights, at a rate of 1.6 and a momentum of
0.9. That is 0.01 · 1.6 / (1 − 0.9).
"""

STEADY = 0.1
"""Share of the largest level that gradients are brought down to where the optimizer divides by their size."""

LEVEL_SMOOTHING = 0.9  # weight of the past in that level, as Adam's average of gradients has it

ABOVE_EPSILON = 100.0
"""Times an optimizer's epsilon that entries are left with, by root mean square: below epsilon nothing would move."""

LEAST_RMS = 0.01  # taken for the root mean square of weights that are smaller, so that a model of zeros can grow
EVERY = 50  # updates after which the norm of the weights is measured again: it moves slowly


class _Memory:
    """The memory of ``auto``, each tensor () float64 on the device.

    Attributes:
        averages: of the total norm.
        level: the largest that the total norm has had.
        weight_norm: of all weights, at the latest look; None before it.
        updates: how many gradients were held against it.
        least: the ceiling that keeps entries above epsilon.
        latest_ceiling: the latest that does not come from the averages; None before it.
    """

    VERSION = 2

    def __init__(self) -> None:
        self.averages = TotalAverages()
        self.level = LargestLevel()
        self.weight_norm: Tensor | None = None
        self.updates = 0
        self.least = 0.0
        self.latest_ceiling: Tensor | None = None

    def state(self) -> State:
        """Return copies of it by name, and the version; for checkpoints."""
        known = {name: value.clone() for name, value in self._named().items() if value is not None}
        return {"version": self.VERSION, "updates": self.updates, **known}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: where it is something else.
        """
        names, updates = set(state) - {"version", "updates"}, state.get("updates")
        tensors = {name: value.clone() for name, value in state.items() if _is_figure(value)}
        is_known = names == set(tensors) and names <= set(self._named()) and _has_whole_groups(names)
        if state.get("version") != self.VERSION or not is_known or not isinstance(updates, int):
            raise ValueError(
                f"expected what clip='auto' remembers, version {self.VERSION}, found {sorted(state)} of version "
                f"{state.get('version')!r}. Resume without this state: it then begins anew."
            )
        self.averages = TotalAverages(*(tensors.get(name) for name in ("mean", "square", "weight")))
        self.level = LargestLevel(*(tensors.get(f"level_{name}") for name in ("mean", "weight", "largest")))
        self.weight_norm, self.updates = tensors.get("weight_norm"), updates

    def _named(self) -> dict[str, Tensor | None]:
        averages, level = self.averages, self.level
        return {
            "mean": averages.mean,
            "square": averages.square,
            "weight": averages.weight,
            "level_mean": level.mean,
            "level_weight": level.weight,
            "level_largest": level.largest,
            "weight_norm": self.weight_norm,
        }


def auto(*, z_threshold: float = 2.5, smoothing: float = 0.97, lowest_spread: float = 0.25) -> Policy:
    """Scale all gradients by one factor where their total norm ‖G‖ exceeds a ceiling c that fits the optimizer.

    *Plain descent* (SGD, with or without momentum μ): c = 0.16 · (1 − μ) · ‖W‖ / lr. One gradient then moves the
    weights by at most 0.16 of their norm, momentum included. It is the ratio of AGC (Brock et al. 2021,
    arXiv:2102.06171) for all tensors together. lr is the larger of the rate now and the rate that the optimizer was
    made with, so that c does not loosen while a schedule ends. ‖W‖ is measured every 50 updates.

    *Adam and its kin*, which divide by the size of past gradients: c is a tenth of the largest level that ‖G‖ has had,
    and at least so large that entries stay a hundred times Adam's epsilon. The level is the geometric mean of the
    latest norms (each step weighs 0.1, and enters with at most e times the level). Most gradients are brought down to
    c, on purpose. Adam does not mind their size, but a large one outweighs others in its averages for
    a thousand updates. So each update counts alike, and a spike can be no larger than the others. LAMB (You et
    al. 2020, arXiv:1904.00962) also divides all gradients by their total norm.

    *Everything else* (Muon, Lion, several optimizers as one, plain descent on sharded weights, bare tensors): spikes
    alone are scaled, as by ZClip (Kumar et al. 2025, arXiv:2504.02507). With an exponential mean m and deviation s of
    ‖G‖ and z = (‖G‖ − m)/s, a norm with z > 2.5 is brought down to m + s · 2.5²/z. Two things differ from the paper. A
    spike enters the history as m + 2.5 · s, so that a new level is accepted. The averages are corrected for their youth
    as Adam's are, and s is at least 0.25 · m, so that the second step is protected already.

    A norm that is NaN or Inf changes neither the gradients nor what is remembered.

    Args:
        z_threshold: from how many deviations on a norm is a spike.
        smoothing: weight of the past in the averages, in (0, 1).
        lowest_spread: least deviation, as a share of the mean.

    Raises:
        ValueError: where an argument is out of range.
    """
    refuse_unless_positive("z_threshold", z_threshold)
    refuse_unless_positive("lowest_spread", lowest_spread)
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing={smoothing!r}: expected a number between 0 and 1.")
    memory = _Memory()

    def ceiling_for(
        magnitudes: statistics.Magnitudes, parameters: Sequence[Tensor], optimizer: Optimizer | None
    ) -> Tensor:
        total = magnitudes.total
        defaults = getattr(optimizer, "defaults", {})
        if optimizer is not None and _divides_by_size(defaults):
            return _steady_ceiling(total, memory, parameters, optimizer)
        if optimizer is not None and _is_plain_descent(defaults) and not magnitudes.of_whole:
            return _ceiling_by_weights(total, memory, parameters, optimizer)
        ceiling, highest = memory.averages.limits(total, z_threshold, lowest_spread)
        memory.averages.add(torch.minimum(total, highest), smoothing)
        return ceiling

    def clip_(
        gradients: Sequence[Tensor],
        magnitudes: statistics.Magnitudes,
        parameters: Sequence[Tensor],
        optimizer: Optimizer | None,
    ) -> Tensor:
        total = magnitudes.total
        ceiling = ceiling_for(magnitudes, parameters, optimizer) if len(gradients) else total
        if total.is_cpu and not float(ceiling) < float(total) + EPSILON < math.inf:
            return total  # a look costs nothing here, each operation does
        return scale_by_(gradients, magnitudes, ceiling / (total + EPSILON))

    def plain_(gradients: Sequence[Tensor], scale: Tensor | None, norms: Tensor | None, _: Sequence[Tensor]) -> None:
        norms = plain_norms(gradients, scale) if norms is None else norms
        known = memory.latest_ceiling
        if not all_finite(norms) or (known is None and memory.averages.mean is None):
            return
        total = torch.linalg.vector_norm(norms, dtype=torch.float64)
        ceiling = memory.averages.limits(total, z_threshold, lowest_spread)[0] if known is None else known
        scale_plainly_(gradients, [total] * len(gradients), ceiling)

    return Policy(
        clip_,
        "auto",
        lambda: auto(z_threshold=z_threshold, smoothing=smoothing, lowest_spread=lowest_spread),
        plain_,
        memory,
    )


def _is_figure(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not value.ndim


def _has_whole_groups(names: set[str]) -> bool:
    """Return whether of tensors that are made together all are there, or none."""
    groups = {"mean", "square", "weight"}, {"level_mean", "level_weight", "level_largest"}
    return all(names & group in (set(), group) for group in groups)


def _divides_by_size(defaults: Mapping[str, object]) -> bool:
    """Return whether an optimizer is of Adam's kind: two averages, and an epsilon beside what it divides by."""
    return "betas" in defaults and "eps" in defaults


def _is_plain_descent(defaults: Mapping[str, object]) -> bool:
    """Return whether an optimizer moves weights by rate · gradient, with momentum or without."""
    return "lr" in defaults and "momentum" in defaults and not {"eps", "betas"} & set(defaults)


def _steady_ceiling(total: Tensor, memory: _Memory, parameters: Sequence[Tensor], optimizer: Optimizer) -> Tensor:
    """Return () a share of the largest level so far, or what keeps entries above epsilon."""
    if memory.latest_ceiling is None:
        epsilon = max((_number(group.get("eps")) for group in optimizer.param_groups), default=0.0)
        memory.least = ABOVE_EPSILON * epsilon * math.sqrt(_count(parameters))
    level = memory.level.after(total, LEVEL_SMOOTHING)
    memory.latest_ceiling = torch.where(level > 0, (STEADY * level).clamp(min=memory.least), torch.inf)
    return memory.latest_ceiling


def _ceiling_by_weights(total: Tensor, memory: _Memory, parameters: Sequence[Tensor], optimizer: Optimizer) -> Tensor:
    """Return () the total norm that moves the weights by a fixed share of their norm; Inf at a rate of 0."""
    if memory.weight_norm is None or memory.updates % EVERY == 0:
        norms = statistics.norms([parameter.detach() for parameter in parameters])
        least = LEAST_RMS * math.sqrt(_count(parameters))
        memory.weight_norm = torch.linalg.vector_norm(norms).to(total).clamp(min=least)
    memory.updates += 1
    rates = [optimizer.defaults["lr"], *(group["lr"] for group in optimizer.param_groups)]
    momentum = max((_number(group.get("momentum")) for group in optimizer.param_groups), default=0.0)
    reach = memory.weight_norm * (REACH * max(0.0, 1 - momentum))
    ceiling = reach / max(map(_number, rates))
    for rate in rates:
        if isinstance(rate, Tensor):
            ceiling = torch.minimum(ceiling, reach / rate.to(total, non_blocking=True))
    memory.latest_ceiling = ceiling.nan_to_num(nan=math.inf, posinf=math.inf)  # weights may be NaN already
    return memory.latest_ceiling


def _count(parameters: Sequence[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _number(setting: object) -> float:
    """Return a setting of an optimizer as a number, the largest of several; 0 for a tensor, which may be elsewhere."""
    if isinstance(setting, (list, tuple)):
        return max(map(_number, setting), default=0.0)
    return float(setting) if isinstance(setting, (int, float)) else 0.0
