"""``vanishing`` in a mixture whose router sends everything to one expert, and cannot be moved.

What is measured, at sampled updates. *Experts* are weights of the same type and shape whose names differ in one index
and that lie beside each other: none of them is on a path through another. A *router* is a layer of the same module
whose softmax or sigmoid is flat for 99 % of its entries. The largest gradient (root mean square) among the experts is
the reference. An expert is unreached where it has less than 1e-6 of the reference, or no gradient, and so is the
router. The mixture is sick where half of its experts are unreached, its router too, and this has been so at every
sample of the run.

Why no healthy run shows it. A router that is right to be certain became so by training; at its first sample it was
not. One that sends each token elsewhere, however certain it is, reaches all experts within a batch or a few. Heads of
several tasks that take turns have no router that is flat and without a gradient. Gates that are open on purpose reach
all that lies behind them. A router that began far off but comes back has a ratio that rises; as long as the last three
samples all lie above those at the beginning of the patience, nothing is raised.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.branch_vanishing import families_of
from gradwatch.detect.detector import Detector, DetectorResult, Evidence, healthy
from gradwatch.detect.faint_branch import PATIENCE
from gradwatch.detect.wording import count_of
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["RouterCollapsed"]

UNREACHED = (
    1e-6  # of the expert that is reached; an update of Adam is still whole at 1e-4, and the router then comes back
)
CERTAIN = 0.99  # share of flat entries; routers of healthy programs begin below 0.1
SHARE = 0.5  # of the experts: of two, one
LATEST = 3  # samples whose ratios all lie above those of the first three of the patience: the router is coming back


@dataclass
class RouterCollapsedState:
    """The state of ``RouterCollapsed`` across steps.

    Attributes:
        was_steep: (P,) bool, layers after which no function was flat for nearly all entries at some sample.
        was_reached: (P,) bool, layers of a mixture that had a gradient worth the name at some sample.
        ratios: (patience − 1, P) the gradients of routers ÷ that of the expert that is reached, oldest first.
    """

    VERSION: ClassVar[int] = 1

    was_steep: NDArray[np.bool_]
    was_reached: NDArray[np.bool_]
    ratios: Floats


class Mixture(NamedTuple):
    """Weights that may be those of experts, and those that may be their router: all others of the same module."""

    experts: NDArray[np.int64]
    others: NDArray[np.int64]


class RouterCollapsed(Detector[RouterCollapsedState]):
    """Experts that their router has left without a gradient since the run began.

    ``value`` is the L2 norm of the gradient, ``threshold`` the norm below which a weight is unreached.
    ``Thresholds.vanishing_norm`` replaces the rule.
    """

    kind = "vanishing"
    judges_samples_only = True

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        self.patience, count = thresholds.patience or PATIENCE, len(layers)
        ratios = np.full((max(1, self.patience - 1), count), np.nan)
        super().__init__(RouterCollapsedState(np.zeros(count, dtype=bool), np.zeros(count, dtype=bool), ratios))
        self._layers = layers
        self._is_replaced = thresholds.vanishing_norm is not None
        self._mixtures = [_mixture_of(family, layers) for family in families_of(layers, least=2)]
        self._healthy = healthy(count)
        self._reference = np.zeros(count)  # root mean square of the expert that is reached, for explain

    def examine(self, report: StepReport) -> DetectorResult | None:
        ours, share = self._state, _flat_share(report)
        if self._is_replaced or self._layers.after is None or share is None or not report.is_finite:
            return None
        ours.was_steep |= ~(share >= CERTAIN)
        if not self._mixtures or ours.was_steep.all():
            return self._healthy  # nearly always
        root = np.sqrt(np.maximum(self._layers.size, 1))
        rms = np.where(report.measured, report.grad_norm / root, 0.0)
        in_series = self._layers.after | self._layers.after.T
        sick, ratio = np.zeros(len(rms), dtype=bool), np.full(len(rms), np.nan)
        for mixture in self._mixtures:
            self._judge(mixture, rms, in_series, sick, ratio)
        latest = np.vstack([ours.ratios[1 - LATEST :], ratio])
        with np.errstate(invalid="ignore"):
            is_waking = bool((latest.min(0) > ours.ratios[:LATEST].max(0)).any())
        ours.ratios = np.vstack([ours.ratios[1:], ratio])
        if not sick.any():
            return self._healthy
        badness = np.where(ours.was_steep, 0.0, 1.0) - 1e-6 * self._layers.depth  # the router gives the name
        return DetectorResult(
            sick, badness, report.grad_norm, UNREACHED * self._reference * root, mending=sick & is_waking
        )

    def explain(self, report: StepReport, column: int, covered: list[int]) -> Evidence:
        name, norm = self._layers.names[column], float(report.grad_norm[column])
        usual = float(self._reference[column] * np.sqrt(self._layers.size[column]))
        measured = (
            f"The gradient norm of {name} is {norm:.3g} at step {report.step}, where that of the one expert that is "
            f"used would give it {usual:.3g} (normal: up to {1 / UNREACHED:,.0f} times less)."
        )
        experts = count_of(int((self._state.was_steep[covered]).sum()), "weight", "weights")
        cause = (
            f"The router {name} has been certain for every input since the run began: it sends all of them to the same "
            f"expert. {experts} of the others, and the router itself, get next to no gradient."
        )
        return Evidence(measured, (cause,), ("one branch",))

    def _judge(
        self, mixture: Mixture, rms: Floats, in_series: NDArray[np.bool_], sick: NDArray[np.bool_], ratio: Floats
    ) -> None:
        """Write the unreached weights into ``sick``, and how far the routers are reached into ``ratio``."""
        ours, experts, others = self._state, mixture.experts, mixture.others
        loudest = experts[rms[experts].argmax()]
        reference = rms[loudest]
        if reference == 0:
            return
        ours.was_reached[experts] |= rms[experts] > UNREACHED * reference
        routers = others[~ours.was_steep[others]]
        ours.was_reached[routers] |= rms[routers] > UNREACHED * reference
        unreached = experts[~ours.was_reached[experts] & ~in_series[experts, loudest]]
        routers = routers[~ours.was_reached[routers]]
        if len(routers) and len(unreached) >= SHARE * len(experts):
            sick[unreached] = sick[routers] = True
            ratio[routers] = rms[routers] / reference
            self._reference[unreached] = self._reference[routers] = reference


def _flat_share(report: StepReport) -> Floats | None:
    """Return (P,) the share of flat entries of the functions after each layer; NaN where there is none."""
    found = [report.figures[name] for name in ("saturated_share", "saturated_output_share") if name in report.figures]
    return np.fmax(found[0], found[-1]) if found else None


def _mixture_of(experts: NDArray[np.int64], layers: Layers) -> Mixture:
    names = [layers.names[column].split(".") for column in experts.tolist()]
    shared = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=True))]
    module = "".join(f"{part}." for part in shared[:-1])  # "moe." of "moe.experts.0.weight" and its likes
    is_other = np.array([name.startswith(module) for name in layers.names]) & layers.is_weight
    is_other[experts] = False
    return Mixture(experts, np.flatnonzero(is_other))
