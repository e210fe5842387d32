"""Findings, advice, thresholds and errors: plain values, no torch.

Enters: nothing. Leaves: the words in which every other part speaks of a sick run. Knows nothing of torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

__all__ = ["KINDS", "Clue", "Finding", "Kind", "NonFiniteError", "Severity", "Thresholds"]

Kind = Literal["vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "unstable"]
Severity = Literal["warning", "error"]
Clue = Literal[
    "logarithm",  # which operation made a NaN or Inf
    "root",
    "division",
    "softmax",
    "exponential",
    "overflow",
    "overflow of float16",
    "bad batch",  # what the model was given was sick
    "scaler gave up",
    "diverged",  # loss, gradients or a weight had grown a hundredfold before
    "no gradient",  # output or loss are flat
    "weights alike",  # of the layer, when the run began
    "weights small",
    "weights large",
    "bias far out",
    "weights grown",  # large, or a bias far out, by training
    "large outputs",
    "dead units",  # somewhere in the model
    "rate rose",
    "faded later",  # gradients reached the layer at first
    "before any update",  # neither rate nor clipping has had a part in it
]
"""What a cause says in words and remedies depend on."""
KINDS: tuple[Kind, ...] = ("vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled", "unstable")


class NonFiniteError(RuntimeError):
    """A loss or gradient turned NaN or Inf under ``on_nonfinite="raise"``; raised before the update is made.

    Attributes:
        layer: name of the sick tensor nearest the output, ``""`` where only the loss is sick.
        step: the attempted update, counted from 0.
    """

    def __init__(self, layer: str, step: int, message: str) -> None:
        super().__init__(layer, step, message)
        self.layer = layer
        self.step = step
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Finding:
    """One sickness of one run, from its onset to its latest sick step. Its identity is (kind, layer, step).

    Attributes:
        kind: one of ``KINDS``.
        severity: ``"error"`` where the run cannot recover by itself, else ``"warning"``.
        layer: parameter name; ``""`` for the loss or the whole model. For ``nonfinite`` the sick tensor nearest the
            output, for a stack its worst at onset.
        layers: every layer that the finding covers, in the model's order.
        step: first sick step; a step is an attempted update, counted from 0.
        raised_step: the step at which it was reported, later than ``step`` where patience asks.
        last_step: latest sick step.
        value: what was measured when it was raised (see docs/detection.md for the unit of each kind).
        threshold: what ``value`` was held against, in the same unit.
        cause: what is known of the reason, from measured figures.
        message: one line: what was measured, against which threshold, and what to try.
        remedies: what to try, best first.
    """

    kind: Kind
    severity: Severity
    layer: str
    layers: tuple[str, ...]
    step: int
    raised_step: int
    last_step: int
    value: float
    threshold: float
    cause: str
    message: str
    remedies: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for files and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """The reverse of ``as_dict``; lists that were tuples, as JSON makes them, become tuples again."""
        return cls(**{**values, "layers": tuple(values["layers"]), "remedies": tuple(values["remedies"])})


@dataclass(frozen=True)
class Thresholds:
    """What counts as sick. ``None`` means the scale-free default (docs/detection.md); a set value holds literally.

    Attributes:
        vanishing_norm: a layer whose gradient's L2 norm stays below this is vanishing.
        exploding_growth: a layer whose gradient's L2 norm exceeds this many times its own running level is exploding.
        dead_share: a layer more than this share of whose units pass no gradient is dead.
        saturated_share: a layer whose activation function is flat for more than this share of its entries is saturated.
        stalled_update_ratio: a run whose weights all move by less than this share of their norm is stalled.
        unstable_jump: a loss that keeps jumping by more than this share of its first value is unstable.
        patience: how many sick steps in a row make a finding, for every kind but ``nonfinite``.
        warmup_steps: so many first steps raise nothing but ``nonfinite``.

    Raises:
        ValueError: for a value that is no positive number (``exploding_growth``: more than 1; ``warmup_steps``: 0 or
            more; the two counts: whole numbers).

    Examples:
        >>> Thresholds(vanishing_norm=1e-7, patience=20).vanishing_norm
        1e-07
    """

    vanishing_norm: float | None = None
    exploding_growth: float | None = None
    dead_share: float | None = None
    saturated_share: float | None = None
    stalled_update_ratio: float | None = None
    unstable_jump: float | None = None
    patience: int | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _refuse_unless_sensible(field.name, value)


def _refuse_unless_sensible(name: str, value: object) -> None:
    is_count = name in ("patience", "warmup_steps")
    wanted = {
        "patience": "a whole number of steps, 1 or more",
        "warmup_steps": "a whole number of steps, 0 or more",
        "exploding_growth": "a finite factor above 1",
    }.get(name, "a finite number above 0")
    lowest = {"exploding_growth": 1, "warmup_steps": -1}.get(name, 0)
    is_number = isinstance(value, Integral if is_count else Real) and not isinstance(value, bool)
    if not is_number or not lowest < float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(f"Thresholds({name}={value!r}): expected {wanted}, or None for the scale-free default.")
