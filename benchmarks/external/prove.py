"""What the bare run proves of a program, before gradwatch has seen it.

A program counts as sick only if its fault shows in its own bare run, and as healthy only if that run trains. The rules
look at losses and at the norm of all gradients, in float64, and share nothing with gradwatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.external.program import External

AT_THE_ENDS = 10
"""Losses that are averaged at each end of a run: one batch may be easy or hard."""

LEARNT = 0.95
"""A run has learned if its loss fell below this share of where it began."""

EXPLODED = 1e3
"""A loss that exceeds its first value this often has been thrown far away, wherever it lands."""


@dataclass(frozen=True)
class BareRun:
    """What a bare run did.

    Attributes:
        updates: of all optimizers.
        first_loss, last_loss: the mean of the first and last losses; None where there were none.
        first_norm, last_norm: the same of the gradients' norm.
        zero_gradients: the share of updates at which every gradient was exactly zero.
        is_finite: no loss and no gradient was NaN or Inf.
        rise: the largest loss ÷ the very first one, where that is positive.
    """

    updates: int
    first_loss: float | None
    last_loss: float | None
    first_norm: float | None
    last_norm: float | None
    zero_gradients: float
    is_finite: bool
    rise: float = 1.0


def bare_run(record: dict[str, Any]) -> BareRun:
    """Return what ``record``, written by ``external_adapters.updates``, says."""
    losses, norms = record["losses"], record["norms"]
    return BareRun(
        record["updates"],
        _mean(losses[:AT_THE_ENDS]),
        _mean(losses[-AT_THE_ENDS:]),
        _mean(norms[:AT_THE_ENDS]),
        _mean(norms[-AT_THE_ENDS:]),
        fmean(norm == 0 for norm in norms) if norms else 0.0,
        all(map(math.isfinite, [*losses, *norms])),
        _rise(losses),
    )


def _rise(losses: Sequence[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return float(f"{max(finite) / finite[0]:.4g}") if finite and finite[0] > 0 else 1.0


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return float(f"{fmean(finite):.4g}") if finite else None


def fault_shown(run: BareRun) -> str:
    """Return how a fault shows in ``run``; ``""`` if the run trains like a healthy one."""
    if not run.is_finite:
        return "a loss or gradient is NaN or Inf"
    if run.zero_gradients > 0.5:
        return "every gradient is exactly zero"
    if run.rise > EXPLODED:
        return "the loss grows beyond all bounds"
    if run.first_loss is not None and run.last_loss is not None and not _has_learned(run.first_loss, run.last_loss):
        return "the loss does not come down"
    return ""


def _has_learned(first: float, last: float) -> bool:
    return last < first - (1 - LEARNT) * abs(first)


def is_proven(program: External, run: BareRun) -> bool:
    """Return True if ``run`` shows what is claimed of ``program``.

    A healthy program must be finite; a supervised one must also bring its loss down. The losses of reinforcement
    learning and of games between two networks measure no progress.
    """
    if program.truth.kinds:
        return bool(fault_shown(run))
    if "supervised" not in program.suite:
        return run.is_finite and run.updates > 0
    return run.is_finite and fault_shown(run) == ""
