"""``stalled`` because the function at the output cannot give what the targets ask for.

What is measured, at sampled updates (``measure/target_reach.py``): the least mean error that any outputs of the
function could have, as a share of the mean error as it is, both over the same targets. Targets of 3 to 103 leave a
sigmoid 98 % of its error, and negative targets leave a ReLU all of theirs.

Why no healthy run shows it. Targets inside the range, its border included, have a share of 0: labels of 0 and 1, images
between −1 and 1, counts. Targets a little outside of it (noise, label smoothing) have a small one until the run has
learned; afterwards they may be most of the error that is left. So the share is that of the *first* errors, or the error
must have stayed where it began. And they lie close by, so what is out of reach is little against the targets
themselves: a run that goes on from a checkpoint does not show it either. Images between −1 and 1 leave a sigmoid 44 %
of a squared error and 67 % of an absolute one; such a run learns what is within reach, and is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["OutOfReach", "columns_out_of_reach", "reach_in_words"]

HOPELESS = 0.8  # share of the first errors that nothing can remove: whatever the run does, it hardly learns
MUCH = 0.25  # ... and this of an error that stays: half of the targets of a ReLU are negative
FAR = 0.25  # what is out of reach, against the targets themselves; a tanh of standard normal targets makes 0.21
STAYS = 0.9  # share of the first errors above which the error has stayed, both against the targets of their batch
FIRST = 3  # samples whose errors are the first
STAYED = 10  # samples for which an error has stayed, sixty updates at the beginning of a run
PATIENCE = 3  # samples


@dataclass
class OutOfReachState:
    """The state of ``OutOfReach`` across steps.

    Attributes:
        samples: (P,) samples with a target so far.
        first_share: (P,) what was out of reach of the first three errors, a mean of shares.
        first_error: (P,) the same errors against their targets, a mean.
        stayed: (P,) samples in a row at which much was out of reach and the error was where it began.
    """

    VERSION: ClassVar[int] = 1

    samples: NDArray[np.int64]
    first_share: Floats
    first_error: Floats
    stayed: NDArray[np.int64]


class OutOfReach(Detector[OutOfReachState]):
    """A layer before a function whose range does not hold the targets of the loss.

    It is sick in two cases. Nothing can remove four fifths of the first errors. Or nothing can remove a quarter of the
    error, and for ten samples in a row the error has not come down by a tenth. ``value`` is the share of the error that
    nothing can remove, ``threshold`` a quarter. ``Thresholds.stalled_update_ratio`` switches this rule off, because it
    replaces all of ``stalled``.
    """

    kind = "stalled"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        count = len(layers)
        samples, stayed = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        super().__init__(OutOfReachState(samples, np.zeros(count), np.zeros(count), stayed))
        self._layers = layers
        self._is_off = thresholds.stalled_update_ratio is not None
        self.patience = thresholds.patience or PATIENCE

    def examine(self, report: StepReport) -> DetectorResult | None:
        figures, ours = report.figures, self._state
        if "target_floor" not in figures or not report.is_finite or self._is_off:
            return None
        floor, error, size = figures["target_floor"], figures["target_error"], figures["target_size"]
        known = (error > 0) & (size > 0)
        share = np.divide(floor, error, out=np.zeros(len(known)), where=known)
        relative = np.divide(error, size, out=np.zeros(len(known)), where=known)
        begins = known & (ours.samples < FIRST)
        ours.samples = ours.samples + known
        count = np.maximum(ours.samples, 1)
        ours.first_share = ours.first_share + np.where(begins, share - ours.first_share, 0) / count
        ours.first_error = ours.first_error + np.where(begins, relative - ours.first_error, 0) / count
        is_far = known & (floor >= FAR * size)
        is_much = is_far & (share >= MUCH)
        stays = is_much & (relative >= STAYS * ours.first_error)
        ours.stayed = np.where(known, np.where(stays, ours.stayed + 1, 0), ours.stayed)
        sick = is_much & ((ours.first_share >= HOPELESS) | (ours.stayed >= STAYED))
        if not sick.any():
            return healthy(len(sick)) if known.any() else None
        return DetectorResult(sick, badness=share, value=share, threshold=np.full(len(sick), MUCH))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        share = float(report.figures["target_floor"][column] / report.figures["target_error"][column])
        measured = (
            f"At least {share:.0%} of the error of the outputs after {self._layers.names[column]} at step "
            f"{report.step} cannot be removed by any weights (normal: less than {MUCH:.0%})."
        )
        figure = f"{share:.0%} of the error is out of its reach, normal below {MUCH:.0%}"
        return Evidence(measured, (reach_in_words(report.figures, column),), ("targets out of reach",), figure)


def columns_out_of_reach(figures: Mapping[str, Floats]) -> list[int]:
    """Return the columns much of whose error lies out of reach, by the figures of one sample."""
    if "target_floor" not in figures:
        return []
    floor, error, size = (figures[name] for name in ("target_floor", "target_error", "target_size"))
    with np.errstate(invalid="ignore"):
        return np.flatnonzero((floor >= FAR * size) & (floor >= MUCH * error) & (floor > 0)).tolist()


def reach_in_words(figures: Mapping[str, Floats], column: int) -> str:
    """Return a sentence that compares the targets of a layer with what the function after it gives."""
    low, high, lowest, highest = (
        float(figures[name][column]) for name in ("output_low", "output_high", "target_low", "target_high")
    )
    return (
        f"The function at the output gives {_range_in_words(low, high)}, while the targets lie between {lowest:.4g} "
        f"and {highest:.4g}."
    )


def _range_in_words(low: float, high: float) -> str:
    if np.isinf(high):
        return f"nothing below {low:g}"
    return f"nothing above {high:g}" if np.isinf(low) else f"values between {low:g} and {high:g}"
