"""Tell whether the update of an optimizer made NaN or Inf of finite gradients: by its own arithmetic.

What it measures: at the first sick step, which weights hold NaN or Inf before the update; and of the update before,
whether the loss and the gradients of those weights were finite. A weight that had a finite gradient of a finite loss
was finite then, but for rows that the step did not use (embeddings). So the update in between made it, or something
that wrote into the weight after it. The second cannot be seen, so a reason in the optimizer is asked for:

- an epsilon that is 0 in the format of its state, where a squared gradient is 0, too (Adam in float16);
- a gradient that was 0 throughout, in an optimizer that is none of torch's (a norm divided by a norm);
- a learning rate that is NaN or Inf;
- a beta of 1, whose bias correction 1 − βᵗ is 0.

Without a reason, an optimizer of torch is not accused, and one of another library with the other possibility beside it.
Where it is certain that the update cannot have made it, something else wrote into the weight since (an assignment, a
projection that divides by 0, a flipped bit), which is then said: the rule of the optimizer keeps finite numbers finite,
its state and its rate are finite, the gradient was far from overflowing, and the module uses its whole weight at each
call, so that the weight was finite at the step before.
No healthy run comes here: it is asked only once a gradient, the loss or a weight is NaN or Inf.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch.findings import Clue
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, Origin

__all__ = ["LastUpdate", "update_origin"]

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta")
"""Names under which optimizers keep what they take a root of and divide by."""

KEEP_FINITE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)
"""Optimizers that make finite updates of small gradients, where their epsilon is above 0 in the format of the state."""

LARGEST_OPTION = 1e4
"""Of momentum, weight decay and the like, which are below 1 in every sane run."""

USED_WHOLE = re.compile(r"Linear|Conv(Transpose)?[123]d|(Batch|Layer|Group|RMS)Norm([123]d)?")
"""Modules each of whose entries takes part in each call, so that one NaN among them would have been seen."""


@dataclass(frozen=True)
class LastUpdate:
    """The latest update of an optimizer, before the step that is sick.

    Attributes:
        optimizer: that made it.
        step: its number.
        norms: (P,) of the gradients that it was made of; NaN where a layer had none.
        rate: the largest learning rate of its groups; None where it is not known.
    """

    optimizer: Optimizer
    step: int
    norms: Floats
    rate: float | None = None


@dataclass(frozen=True)
class _Reason:
    """A reason why an update makes NaN or Inf; ``words`` follow "of a finite gradient"."""

    words: str
    clues: tuple[Clue, ...]


def update_origin(layers: Layers, sick: Mapping[int, int], updates: Iterable[LastUpdate]) -> Origin | None:
    """Return the origin of a NaN or Inf that an update made; None where none is known to have made it.

    Args:
        layers: the table.
        sick: {column: how many entries of the weight are NaN or Inf before the step}.
        updates: the latest of each optimizer. They were made of finite losses.
    """
    made = {column: update for update in updates for column in sick if math.isfinite(update.norms[column])}
    in_order = sorted(made, key=lambda column: int(layers.depth[column]))
    for column in in_order:
        reason = _reason(layers, column, made[column])
        if reason is not None:
            return _origin(layers, column, sick[column], made[column], reason)
    written = next((column for column in in_order if _cannot_have_made_it(layers, column, made[column])), None)
    return None if written is None else _written(layers, written, sick[written], made[written])


def _origin(layers: Layers, column: int, count: int, update: LastUpdate, reason: _Reason) -> Origin:
    name = layers.names[column]
    by = f"the update of step {update.step} by {type(update.optimizer).__name__}"
    words = f"{by} made {_entries(count)} of {name} NaN or Inf, {reason.words}"
    return Origin(name.rpartition(".")[0], "update", words, "observed", clues=("sick update", *reason.clues))


def _written(layers: Layers, column: int, count: int, update: LastUpdate) -> Origin:
    name, optimizer = layers.names[column], type(update.optimizer).__name__
    made_of = f"its last update was made of a gradient of norm {update.norms[column]:.3g}, and its state is finite"
    words = (
        f"something other than {optimizer} wrote NaN or Inf into {_entries(count)} of {name} since step {update.step}: "
        f"{made_of}"
    )
    return Origin(name.rpartition(".")[0], "update", words, "observed", clues=("overwritten",))


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _cannot_have_made_it(layers: Layers, column: int, update: LastUpdate) -> bool:
    """Tell whether the update is known to have kept a weight finite that was finite at the step before."""
    weight, optimizer = layers.tensors[column], update.optimizer
    groups = [group for group in optimizer.param_groups if any(weight is each for each in group["params"])]
    if len(groups) != 1 or not _keeps_finite(optimizer, groups[0]) or not USED_WHOLE.fullmatch(layers.owners[column]):
        return False
    figures, limit = (update.norms[column], float(groups[0]["lr"])), torch.finfo(weight.dtype).max ** 0.25
    return all(0 < figure < limit for figure in figures) and _has_finite_state(optimizer, weight)


def _has_finite_state(optimizer: Optimizer, weight: Tensor) -> bool:
    held = (each for each in optimizer.state.get(weight, {}).values() if isinstance(each, Tensor))
    return all(bool(torch.isfinite(each).all()) for each in held)


def _keeps_finite(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Tell whether the rule of the optimizer, with the numbers of this group, makes finite numbers of finite ones."""
    if type(optimizer) not in KEEP_FINITE or group.get("centered"):  # a root of a difference may be one below 0
        return False
    return not _has_beta_of_one(group) and all(_is_ordinary(value) for value in group.values())


def _has_beta_of_one(group: Mapping[str, Any]) -> bool:
    """Tell whether a bias correction, 1 − βᵗ, may be 0."""
    return any(not 0 <= float(beta) < 1 for beta in group.get("betas", ()))


def _is_ordinary(value: object) -> bool:
    """Tell whether a number of a group is finite and far from where a product with it overflows."""
    return not isinstance(value, int | float) or abs(value) < LARGEST_OPTION


def _reason(layers: Layers, column: int, update: LastUpdate) -> _Reason | None:
    weight, groups = layers.tensors[column], update.optimizer.param_groups
    group = next((group for group in groups if any(weight is each for each in group["params"])), None)
    if group is None:
        return None
    if (rate := _sick_rate(group, update)) is not None:
        return _Reason(f"of a finite gradient: its learning rate was {rate}", ("rate is not finite",))
    if (where := _format_without_epsilon(weight, group, update.optimizer)) is not None:
        held = f"in {where} its eps of {group['eps']:g} is 0" if group["eps"] else "its eps is 0"
        words = f"of a finite gradient: {held}, and it divides by the root of squares that are 0"
        return _Reason(words, ("epsilon is 0",))
    return _beta_of_one(group, update) or _reason_of_another_library(layers, column, update)


def _beta_of_one(group: Mapping[str, Any], update: LastUpdate) -> _Reason | None:
    if not type(update.optimizer).__module__.startswith("torch.optim") or not _has_beta_of_one(group):
        return None
    betas = " and ".join(f"{float(beta):g}" for beta in group["betas"])
    return _Reason(f"of a finite gradient: its betas are {betas}, and it divides by 1 − βᵗ, which is 0", ())


def _reason_of_another_library(layers: Layers, column: int, update: LastUpdate) -> _Reason | None:
    if type(update.optimizer).__module__.startswith("torch.optim"):
        return None
    if update.norms[column] == 0:
        return _Reason("of a gradient that was 0", ("zero gradient",))
    if layers.owners[column] == "Embedding":  # a row that was not used may have been sick for long
        return None
    return _Reason(f"of a finite gradient of norm {update.norms[column]:.3g}, or something wrote into it since", ())


def _sick_rate(group: Mapping[str, Any], update: LastUpdate) -> float | None:
    rates = [rate for rate in (group.get("lr"), update.rate) if isinstance(rate, int | float)]
    return next((float(rate) for rate in rates if not math.isfinite(rate)), None)


def _format_without_epsilon(weight: Tensor, group: Mapping[str, Any], optimizer: Optimizer) -> str | None:
    """Return the format in which the epsilon is 0, where the optimizer divides by the root of a square that is 0."""
    epsilon = group.get("eps")
    if not isinstance(epsilon, float | int):
        return None
    state = optimizer.state.get(weight, {})
    squares = [state[name] for name in SECOND_MOMENTS if isinstance(state.get(name), Tensor)]
    square = next((each for each in squares if each.shape == weight.shape), None)
    if square is None or float(torch.tensor(epsilon, dtype=square.dtype, device="cpu")) != 0:
        return None
    is_sick = ~torch.isfinite(weight.detach())
    return str(square.dtype).removeprefix("torch.") if bool((square[is_sick] == 0).any()) else None
