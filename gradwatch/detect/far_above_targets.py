"""``exploding`` from birth under an optimizer that keeps its updates finite: outputs far above what the loss asks for.

Adam, or a clip, makes small updates of huge gradients. A model that multiplies its signals by 10⁴ then meets no NaN.
Its loss even falls, because every small update takes a little off an output that is far too large. So the loss cannot
be held against its first value.

What is measured, at each sampled update from the first one on:

- The *inputs* are the largest root mean square that a layer returns before which there is no other layer. The *growth*
  is the largest that any layer returns, in units of the inputs, or of 1 where these are smaller.
- The *output* is the root mean square that the last layer returns. A loss is *straight* if it is proportional to the
  output, or to its square: the logarithm of loss ÷ output, or of loss ÷ output², has spread by at most a fifth of the
  decades by which the output has changed meanwhile.

Why no healthy run shows it. A loss that compares outputs with targets is mean |output − target|ᵖ, or the distance of
one logit to another. It is proportional to a power of the output only while the targets are too small to count. That
is a measure without a scale: the unit of the loss, a sum in place of a mean, and the unit of the targets change
nothing. A model that learns what its targets ask for breaks the proportion at once. Sick runs keep it to a thousandth
of those decades (squared error) or to a sixth (cross-entropy). Sums over many items, standard normal weights, and
critics whose rewards are zero keep it, too, for a while. So large growth, or large inputs, are asked for as well, at
every sample since the first: usual initialisations grow signals by less than 100. Raw targets make outputs grow to
their size, so that those begin below. Raw inputs of 10³ are learned from by Adam within some hundred updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.findings import Clue, Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["FarAboveTargets"]

GROWTH = 1e3  # times the larger of 1 and the inputs; sick programs reach 3e3 to 1e12
INPUTS = 1e4  # root mean square; inputs of 2e4 and more, under usual weights
BEGINS = 2  # the last update that the first sample may be of: later activations are what the run has made
LOOKED_AT = 20  # the update from which on that is judged: large outputs of a sane start have come down by then
CHANGED = 0.5  # decades by which the output must have changed: over less, noise is as straight
STRAIGHT = 0.2  # share of them by which the proportion may spread


@dataclass
class FarAboveTargetsState:
    """The state of ``FarAboveTargets`` across steps; arrays are of (output, loss ÷ output, loss ÷ output²), in decades.

    Attributes:
        lowest: (3,) of all samples.
        highest: (3,) of all samples.
        is_over: whether a sample has shown ordinary activations, or no loss that can be judged.
    """

    VERSION: ClassVar[int] = 1

    lowest: Floats = field(default_factory=lambda: np.full(3, np.inf))
    highest: Floats = field(default_factory=lambda: np.full(3, -np.inf))
    is_over: bool = False


class FarAboveTargets(Detector[FarAboveTargetsState]):
    """Large activations since the run began, while the loss is nothing but the size of the output.

    ``value`` is the root mean square of what a layer returns; ``threshold`` is 10⁴ where the inputs are as large, else
    1,000 times the larger of 1 and the inputs. A run is sick at a sample from update 20 on if (1) a layer has returned
    more than the threshold at every sample since the first, (2) the output has changed by half a decade, and (3) the
    loss has followed it, or its square, within a fifth of that. Then every weight is sick whose layer returns more than
    the threshold. The finding names the one that returns the most, compared with 1 and the layers before it.
    ``Thresholds.exploding_growth`` replaces the rule.
    """

    kind = "exploding"
    judges_samples_only = True
    judges_from_the_start = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__(FarAboveTargetsState())
        self._layers = layers
        self._is_replaced = thresholds.exploding_growth is not None
        self._healthy = healthy(len(layers))

    def examine(self, report: StepReport) -> DetectorResult | None:
        if self._is_replaced or self._state.is_over:
            return self._healthy
        rms = report.figures.get("activation_rms")
        if not report.sampled or rms is None or not report.is_finite or np.isinf(rms).any():
            return None  # nonfinite takes over, or a rule that looks for overflow
        returned = np.nan_to_num(rms, nan=0.0)
        limit = self._limit(returned)
        self._take_in(report, returned, limit)
        if self._state.is_over or report.update < LOOKED_AT or not self._is_straight():
            return self._healthy
        return DetectorResult(returned >= limit, self._gains(returned), returned, np.full(len(returned), limit))

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, returned = self._layers.names[column], np.nan_to_num(report.figures["activation_rms"], nan=0.0)
        measured = (
            f"What the layer of {name} returns has a root mean square of {returned[column]:.3g} at step {report.step} "
            f"(normal: below {self._limit(returned):,.0f}, unless the targets are as large)."
        )
        lowest, highest = 10.0 ** self._state.lowest[0], 10.0 ** self._state.highest[0]
        cause = (
            f"Since the run began the loss has been proportional to {self._power()}, which lay between {lowest:.3g} "
            f"and {highest:.3g}: the targets are too small to count beside it."
        )
        is_of_inputs = self._inputs(returned) >= INPUTS
        clue: Clue = "raw inputs" if is_of_inputs else "grows along depth"
        return Evidence(measured, (cause,), (clue,), f"outputs of {returned[column]:.3g}, far above the targets")

    def _power(self) -> str:
        ratio, ratio_to_square = self._spreads()
        return "what the model returns" if ratio < ratio_to_square else "the square of what the model returns"

    def _take_in(self, report: StepReport, returned: Floats, limit: float) -> None:
        """Take in one sample, or note that the rule is over."""
        ours, loss = self._state, report.loss
        is_late = bool(np.isinf(ours.lowest[0])) and report.update > BEGINS
        if is_late or loss is None or loss <= 0 or returned.max() < limit:
            ours.is_over = True
            return
        order = self._layers.order
        output = math.log10(returned[order[(returned > 0)[order]][-1]])
        point = np.array([output, math.log10(loss) - output, math.log10(loss) - 2 * output])
        ours.lowest, ours.highest = np.minimum(ours.lowest, point), np.maximum(ours.highest, point)

    def _spreads(self) -> Floats:
        """Return (2,) the decades by which loss ÷ output and loss ÷ output² have spread."""
        return self._state.highest[1:] - self._state.lowest[1:]

    def _is_straight(self) -> bool:
        ours = self._state
        decades = float(ours.highest[0] - ours.lowest[0])
        return decades >= CHANGED and float(self._spreads().min()) <= STRAIGHT * decades

    def _limit(self, returned: Floats) -> float:
        """Return the largest root mean square that is still normal, beside these inputs."""
        if returned.max() < GROWTH:  # most often: no need to look for the inputs
            return GROWTH
        inputs = self._inputs(returned)
        return INPUTS if inputs >= INPUTS else GROWTH * max(1.0, inputs)

    def _inputs(self, returned: Floats) -> float:
        """Return the largest root mean square that a layer returns before which there is no other layer."""
        path, after = self._path(returned), self._layers.after
        if after is None:
            return float(returned[path[0]])
        has_others_before = (after[np.ix_(path, path)] & ~np.eye(len(path), dtype=bool)).any(axis=0)
        return float(returned[path[~has_others_before]].max(initial=0.0))

    def _path(self, returned: Floats) -> NDArray[np.int64]:
        """Return the columns of the layers that returned anything but zeros, from input to output.

        A module that holds other layers returns what these have made, and is left out.
        """
        order = self._layers.order
        columns = order[(returned > 0)[order]].tolist()
        modules = {column: self._layers.names[column].rpartition(".")[0] for column in columns}
        holders = {module[:end] for module in modules.values() for end in _ends_of_holders(module)}
        return np.array([column for column in columns if modules[column] not in holders], dtype=np.int64)

    def _gains(self, returned: Floats) -> Floats:
        """Return (P,) the decades by which each layer exceeds 1 and every layer before it; 0 where it does not."""
        gains, reached = np.zeros(len(returned)), 0.0
        for column in self._path(returned).tolist():
            decades = math.log10(returned[column])
            gains[column] = max(0.0, decades - reached)
            reached = max(reached, decades)
        return gains


def _ends_of_holders(module: str) -> Iterator[int]:
    """Yield where the names of the modules that hold ``module`` end: at 0 for the model, and before each dot."""
    if module:
        yield 0
    yield from (place for place, letter in enumerate(module) if letter == ".")
