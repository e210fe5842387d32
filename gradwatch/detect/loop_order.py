"""Mistakes in the order of a training loop's calls: ``zero_grad`` and ``unscale_`` missing, or in the wrong place.

No healthy loop shows them, whatever it trains: each is seen directly (``hooks/clearing.py``; a gradient that changes
before ``unscale_``), update after update.

- *Never cleared.* Each update is made of the gradients of all updates before: descent without friction, which
  oscillates. Accumulation clears its gradients once an update; a generator's gradients in a critic are cleared before
  the critic's own. Twenty updates in a row are no accident.
- *Cleared early.* ``zero_grad`` between ``backward`` and ``step`` leaves nothing to update with.
- *Clipped while scaled.* ``clip_grad_norm_`` before ``scaler.unscale_`` compares the norm times the loss scale with its
  limit. What is left is about 1 ÷ scale of the gradient. A loop that multiplies its limit by the scale changes the
  gradients before ``unscale_``, too, but is left with the share that it asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, whole_run
from gradwatch.findings import Thresholds
from gradwatch.measure.report import StepReport

__all__ = ["ClearedEarly", "ClippedWhileScaled", "NeverCleared"]

UNCLEARED = 20  # updates in a row
EMPTIED = 10  # updates in a row, none of which had a gradient
CLIPPED_TO = 2.0**-8  # share of the gradient that strong clipping of unscaled gradients leaves at every update
AROUND_SCALE = 2.0**8  # factor within which that share is 1 ÷ scale: gradients are seldom farther from their limit
SAMPLES = 5  # sampled updates in a row: 0, 1, 2, 4, 8


@dataclass
class _Nothing:
    """The state of a rule that learns nothing: what it judges is counted elsewhere."""

    VERSION: ClassVar[int] = 1


class NeverCleared(Detector[_Nothing]):
    """A loop that never calls ``zero_grad``.

    ``value`` is the number of updates in a row that were made with the gradients of the one before still in them,
    ``threshold`` the number that is no accident. ``Thresholds.unstable_jump`` switches this rule off.
    """

    kind = "unstable"
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(_Nothing())
        self._is_off = thresholds.unstable_jump is not None

    def examine(self, report: StepReport) -> DetectorResult | None:
        if not report.sampled or self._is_off:
            return None
        count = report.uncleared
        return whole_run(count >= UNCLEARED, float(count), float(UNCLEARED))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        measured = (
            f"The last {report.uncleared} updates were each made of gradients that still held those of the update "
            "before (a loop clears them once an update)."
        )
        return Evidence(
            measured, (), ("never cleared",), "zero_grad() is never called"
        )  # the background says it, for other findings as well


@dataclass
class ClearedEarlyState:
    """The state of ``ClearedEarly`` across steps.

    Attributes:
        was_empty: whether the sampled update before had no gradient.
    """

    VERSION: ClassVar[int] = 1

    was_empty: bool = False


class ClearedEarly(Detector[ClearedEarlyState]):
    """A loop that calls ``zero_grad`` between ``backward`` and ``step``.

    A loop that normalises its gradients changes each of them, too, and one batch may have nothing to learn from. So two
    sampled updates in a row must have had no gradient.

    ``value`` is the total norm of what the update is made of, 0, and so is ``threshold``.
    ``Thresholds.stalled_update_ratio`` switches this rule off.
    """

    kind = "stalled"
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(ClearedEarlyState())
        self._is_off = thresholds.stalled_update_ratio is not None

    def examine(self, report: StepReport) -> DetectorResult | None:
        if not report.sampled or self._is_off:
            return None
        is_empty = not report.measured.any() or report.grad_norm_clipped_total == 0  # the total is that before a change
        was_empty, self._state.was_empty = self._state.was_empty, bool(is_empty)
        return whole_run(is_empty and was_empty and report.emptied >= EMPTIED, 0.0, 0.0)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        measured = (
            f"The last {report.emptied} updates had no gradient, although a backward pass had just computed one for "
            "each of them."
        )
        cause = "zero_grad() is called between backward() and step(), which leaves nothing to update with."
        return Evidence(measured, (cause,), ("cleared early",), "zero_grad() between backward() and step()")


class ClippedWhileScaled(Detector[_Nothing]):
    """A loop that clips its gradients before ``scaler.unscale_``.

    ``value`` is the share of the gradient that clipping has left, ``threshold`` what strong clipping leaves.
    ``Thresholds.stalled_update_ratio`` switches this rule off.
    """

    kind = "stalled"
    patience = SAMPLES
    judges_samples_only = True
    covers_whole_run = True

    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__(_Nothing())
        self._is_off = thresholds.stalled_update_ratio is not None

    def examine(self, report: StepReport) -> DetectorResult | None:
        if not report.sampled or self._is_off or report.skipped:
            return None
        scale, total = report.clipped_at_scale, report.grad_norm_total
        if scale is None or not total > 0:
            return whole_run(False, 1.0, CLIPPED_TO)
        share = report.grad_norm_clipped_total / total
        return whole_run(share <= CLIPPED_TO and share * scale <= AROUND_SCALE, share, CLIPPED_TO)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        clipped, total = report.grad_norm_clipped_total, report.grad_norm_total
        measured = (
            f"Clipping leaves {clipped / total:.2g} of the gradient at every update: a norm of {clipped:.3g} out of "
            f"{total:.3g}."
        )
        cause = (
            f"The loop clips the norm while the loss scale of {report.clipped_at_scale:,.0f} is still in it: "
            "scaler.unscale_(optimizer) comes later, or not at all."
        )
        return Evidence(measured, (cause,), ("clipped while scaled",), "clipped while the loss scale is in it")
