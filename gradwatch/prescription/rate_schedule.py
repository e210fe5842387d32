"""Let an optimizer follow the schedule of its learning rate, in such a way that remedies can change the rate, too."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gradwatch.prescription.logged_metrics import LoggedMetrics

__all__ = ["LONGEST", "Plateau", "follow_schedulers_"]

LONGEST = 300  # updates of a trial: a few hundred


@dataclass(frozen=True)
class Plateau:
    """A scheduler that waits for a metric.

    Attributes:
        scheduler: changes the rates of ``optimizer`` when it steps.
        optimizer: that it was made with.
        monitor: the name under which the module logs the metric.
        every: updates between two of its steps.
    """

    scheduler: Any
    optimizer: Optimizer
    monitor: str
    every: float

    def step(self, metrics: LoggedMetrics) -> None:
        """Let it see its metric; without one that says what it asks for it keeps its rates.

        A trial makes no validation. The mean loss of the updates takes the place of a metric of it that should fall.
        """
        seen = metrics.value_of(self.monitor)
        if seen is None and getattr(self.scheduler, "mode", "") == "min":
            seen = metrics.mean_loss
        if seen is not None:
            _step(self.scheduler, seen)


def follow_schedulers_(optimizer: Optimizer, configurations: Sequence[Any], per_epoch: float) -> list[Plateau]:
    """Let each update have the learning rate that schedulers would give it; return those that wait for a metric.

    The rates are written down once. From then on ``group["lr"]`` holds the highest of them, and only during an update
    the rate of that update: highest · (rate ÷ highest). So what a remedy does to the rate multiplies the schedule.

    Args:
        optimizer: the one that the schedulers were made with.
        configurations: schedulers, or Lightning's dicts about them.
        per_epoch: updates of an epoch, at whose end Lightning calls schedulers without ``"interval": "step"``.
    """
    followed = [_Clocked.of(each, per_epoch) for each in configurations]
    plateaus = [each.as_plateau(optimizer) for each in followed if each.waits_for_metric]
    clocked = [each for each in followed if not each.waits_for_metric]
    rates = _rates_to_come(optimizer, clocked)
    schedule = _Schedule([_over_highest(list(of_group)) for of_group in zip(*rates, strict=True)])
    for group, of_group in zip(optimizer.param_groups, zip(*rates, strict=True), strict=True):
        group.pop("initial_lr", None)  # a scheduler made by a remedy starts from the rate that it finds
        _set_rate(group, max(of_group))
    if schedule.changes_rates:
        optimizer.register_step_pre_hook(schedule.enter)
        optimizer.register_step_post_hook(schedule.leave)
    return plateaus


@dataclass
class _Schedule:
    """The two hooks between which an update has its rate.

    Attributes:
        factors: of each group, of each update; the last one stays.
        update: the number of the next one.
        kept: the rates outside of an update.
    """

    factors: list[list[float]]
    update: int = 0
    kept: tuple[Any, ...] = ()

    @property
    def changes_rates(self) -> bool:
        """Return whether any update has another rate than the highest."""
        return any(factor != 1.0 for factors in self.factors for factor in factors)

    def enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.kept = tuple(group["lr"] for group in optimizer.param_groups)
        for group, factors in zip(optimizer.param_groups, self.factors, strict=False):  # a remedy may add a group
            group["lr"] = group["lr"] * factors[min(self.update, len(factors) - 1)]

    def leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.update += 1
        for group, rate in zip(optimizer.param_groups, self.kept, strict=True):
            group["lr"] = rate


@dataclass(frozen=True)
class _Clocked:
    """A scheduler and the number of updates between two of its steps.

    Attributes:
        scheduler: as given.
        every: updates.
        waits_for_metric: whether it is to be told what the module logs as ``monitor``.
        monitor: that name.
    """

    scheduler: Any
    every: float
    waits_for_metric: bool
    monitor: str

    @classmethod
    def of(cls, configuration: Any, per_epoch: float) -> _Clocked:
        found = configuration if isinstance(configuration, Mapping) else {"scheduler": configuration}
        scheduler = found["scheduler"]
        waits = isinstance(scheduler, ReduceLROnPlateau) or bool(found.get("reduce_on_plateau"))
        is_by_step = found.get("interval", "epoch") == "step"
        every = found.get("frequency", 1) * (1 if is_by_step else per_epoch)
        return cls(scheduler, every, waits, str(found.get("monitor", "")))

    def as_plateau(self, optimizer: Optimizer) -> Plateau:
        """Return it as one that waits for a metric."""
        return Plateau(self.scheduler, optimizer, self.monitor, self.every)


def _rates_to_come(optimizer: Optimizer, clocked: Sequence[_Clocked]) -> list[list[float]]:
    """Return the rates of each update, of each group."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a scheduler steps before its optimizer
        for update in range(1, LONGEST + 1):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            for each in clocked:
                if update % each.every == 0 and not _step(each.scheduler):
                    return rates  # it says that it is at its end: the last rate stays
    return rates


def _step(scheduler: Any, *metrics: float) -> bool:
    try:
        scheduler.step(*metrics)
    except Exception:
        return False
    return True


def _over_highest(rates: Sequence[float]) -> list[float]:
    highest = max(rates)
    return [rate / highest if highest else 0.0 for rate in rates]


def _set_rate(group: dict[str, Any], rate: float) -> None:
    is_tensor = isinstance(group["lr"], Tensor)
    group["lr"] = torch.full_like(group["lr"], rate) if is_tensor else rate
