"""The result of one detector at one step, and the interface that every detector has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect import state
from gradwatch.findings import Clue, Kind, Severity
from gradwatch.fork_safety import lazy_property
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Detector", "DetectorResult", "Evidence", "healthy", "whole_run"]


@dataclass(frozen=True)
class DetectorResult:
    """Which layers are sick at one step.

    Attributes:
        sick: (P,) bool; or (1,) for a detector of the whole run, whose findings have the layer ``""``.
        badness: same shape, float; the layer where it is highest gives the finding its name.
        value: same shape, what was measured.
        threshold: same shape, what it was compared with.
        onset: same shape, int; the step at which each layer turned sick, where that was earlier than now.
        mending: same shape, bool; layers that are sick but improving, for which nothing is raised yet.
    """

    sick: NDArray[np.bool_]
    badness: Floats
    value: Floats
    threshold: Floats
    onset: NDArray[np.int64] | None = None
    mending: NDArray[np.bool_] | None = None

    @lazy_property
    def is_sick(self) -> bool:
        """Return True if any layer is sick."""
        return bool(self.sick.any())


class Evidence(NamedTuple):
    """The words of one detector for an incident that opens.

    Attributes:
        measured: one sentence: what was measured, where, and what is normal.
        cause: the sentences of the cause that the detector itself can see: one or two.
        clues: facts of the cause that remedies depend on.
        figure: what was measured in a few words, where ``value`` is not what its kind usually measures.
    """

    measured: str
    cause: tuple[str, ...]
    clues: tuple[Clue, ...] = ()
    figure: str = ""


S = TypeVar("S")


class Detector(Generic[S]):
    """A rule for one kind of finding.

    What a detector learns across steps lives in ``_state``, a dataclass of numbers, strings and arrays with a
    ``VERSION``. Everything else is fixed at construction.

    Attributes:
        kind: the kind of its findings.
        severity: the severity of its findings.
        patience: how many sick steps in a row make a finding.
        covers_whole_run: its results are of the whole run, whose findings have the layer ``""``.
        judges_samples_only: it has results at sampled steps only.
        judges_from_the_start: its evidence is the whole course of the run, so an incident of the same kind that has
            opened before has told of it.
    """

    kind: Kind
    severity: Severity = "warning"
    patience: int = 1
    covers_whole_run: bool = False
    judges_samples_only: bool = False
    judges_from_the_start: bool = False

    def __init__(self, fresh: S) -> None:
        self._state = fresh

    def examine(self, report: StepReport) -> DetectorResult | None:
        """Return which layers are sick at this step, or None if the step says nothing."""
        raise NotImplementedError

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Return True if a step with these figures, and those that wait before it, may be examined later.

        The promise is that ``examine`` finds nothing sick at any of them. A detector that returns True states the bound
        that proves its promise in its docstring; this one makes no promise.

        Args:
            waiting: how many steps have not been examined, this one included; none of them is sampled.
            total: total norm of the gradients of this step, finite.
            loss: loss of this step, finite; None where none was observed.
        """
        return False

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        """Return the words for an incident that opens now at ``column``; called after ``examine`` of ``report``."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what was learned, as plain values and arrays."""
        return state.plain(self._state)

    def restore(self, saved: object) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: if ``saved`` is of another version or of another model.
        """
        self._state = state.read(self._state, saved)


def healthy(layers: int) -> DetectorResult:
    """Return a result without a sick layer; most steps find it, so a detector makes it once."""
    zero = np.zeros(layers)
    return DetectorResult(sick=np.zeros(layers, dtype=bool), badness=zero, value=zero, threshold=zero)


def whole_run(sick: bool, value: float, threshold: float) -> DetectorResult:
    """Return the result of a detector that covers the whole run."""
    return DetectorResult(
        sick=np.array([sick]),
        badness=np.zeros(1),
        value=np.array([value]),
        threshold=np.array([threshold]),
    )
