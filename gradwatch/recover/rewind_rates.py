"""Lower learning rates for one update at a time, whatever sets them."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

__all__ = ["LoweredRates"]


class LoweredRates:
    """The learning rates that an update is made with, where a run has gone back.

    They are multiplied before an update and put back after it. So schedulers, which may compute a rate from the one
    before or from scratch, never see it.
    """

    def __init__(self) -> None:
        self._saved: list[tuple[dict[str, Any], Any]] = []

    def lower(self, optimizers: list[Optimizer], factor: float) -> None:
        """Multiply the rates of ``optimizers`` until ``put_back``."""
        self.put_back()
        known: set[int] = set()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if "lr" in group and id(group) not in known:  # wrappers share their groups
                known.add(id(group))
                self._saved.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor

    def put_back(self) -> None:
        """Put the rates back; twice is fine."""
        while self._saved:
            group, rate = self._saved.pop()
            group["lr"] = rate
