"""What a detector sees at one step, and what every detector can do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.findings import Clue, Kind, Severity
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Detector", "Symptoms", "healthy", "whole_run"]


@dataclass(frozen=True)
class Symptoms:
    """What is sick at one step.

    Attributes:
        sick: (P,) bool; or (1,) for a symptom of the whole run, whose finding has the layer ``""``.
        badness: same shape, float; the layer where it is highest gives the finding its name.
        value: same shape, what was measured.
        threshold: same shape, what it was held against.
        onset: same shape, int; the step at which each layer turned sick, where that was earlier than now.
        mending: same shape, bool; sick, but getting better, so that nothing is raised yet.
    """

    sick: NDArray[np.bool_]
    badness: Floats
    value: Floats
    threshold: Floats
    onset: NDArray[np.int64] | None = None
    mending: NDArray[np.bool_] | None = None

    @cached_property
    def is_sick(self) -> bool:
        """Whether anything is."""
        return bool(self.sick.any())


class Detector:
    """One kind of sickness. Subclasses keep what they learn across steps in ``_memory``, as numbers and arrays.

    Attributes:
        kind: which findings it makes.
        severity: how bad they are.
        patience: how many sick steps in a row make a finding.
        covers_whole_run: its symptoms are of the whole run, whose finding has the layer ``""``.
        judges_samples_only: it has symptoms at sampled steps only.
    """

    kind: Kind
    severity: Severity = "warning"
    patience: int = 1
    covers_whole_run: bool = False
    judges_samples_only: bool = False

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}

    def examine(self, report: StepReport) -> Symptoms | None:
        """What is sick at this step; None where the step says nothing."""
        raise NotImplementedError

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """As ``Detectors.may_wait``, for this detector; total and loss are finite, and nothing was sick before."""
        return True

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        """(cause, what was measured) for the finding that opens now at ``column``; called after ``examine``."""
        raise NotImplementedError

    def clues(self) -> tuple[Clue, ...]:
        """What remedies depend on of what ``examine`` has just seen."""
        return ()

    def state(self) -> dict[str, Any]:
        """A copy of what was learned."""
        return copy.deepcopy(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        self._memory = copy.deepcopy(state)


def healthy(layers: int) -> Symptoms:
    """None of so many layers is sick: what most steps find, so a detector makes it once."""
    zero = np.zeros(layers)
    return Symptoms(sick=np.zeros(layers, dtype=bool), badness=zero, value=zero, threshold=zero)


def whole_run(sick: bool, value: float, threshold: float, onset: int | None = None) -> Symptoms:
    """Symptoms of the run as a whole."""
    return Symptoms(
        sick=np.array([sick]),
        badness=np.zeros(1),
        value=np.array([value]),
        threshold=np.array([threshold]),
        onset=None if onset is None else np.array([onset]),
    )
