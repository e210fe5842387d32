"""``vanishing``: gradients that fade on their way from the output to the input, or that are gone altogether.

Scale-free: a gradient is small against those of the layers between it and the output, or against what the whole model
showed when it began. Structural zeros do not count: no gradient at all (frozen, unused) is not measured, and a single
quiet layer in the middle (a bias before normalisation, an expert not routed to) does not block those before it.
"""

from __future__ import annotations

import math

import numpy as np

from gradwatch.detect.symptoms import Detector, Symptoms, healthy
from gradwatch.findings import Clue, Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Vanishing"]

DEPTH_RATIO = 1e-4  # root mean square against the largest nearer the output; healthy nets of ours stay above 1e-3
IDLE_RATIO = 2e-3  # ... and below this is too little, too, in a run that has not begun to learn
FLAT_RATIO = 1e-2  # ... and this in one whose loss has not moved at all
FLAT = 1e-3  # share of its first value within which such a loss has stayed
BEGUN = 0.95  # share of its first value that the loss of a run that learns has come below
IDLE_STEPS = 10  # steps before a run is called idle; with the patience it is heard of within 25
LOSSES = 10  # that the recent loss is a mean of
STIRRING = 1.25  # an idle run's ratio that rose by this much within the patience is on its way
GONE_RATIO = 1e-6  # total norm against the largest of the first steps
FIRST_STEPS = 10
CLIFF = 0.1  # gone from above this share of the first total within one update: nobody converges so
UNIMPROVED = 0.5  # share of its first value that the loss must still have for a model to have gone silent
UNFINISHED = 1e-3  # ... where the gradient is exactly zero: no minimum is hit so exactly, but a satisfied hinge at 0
PATIENCE = 10  # steps: a zero-initialised branch wakes up within two or three
RECOVERING = 2.0  # a ratio that doubled within the patience is waking up: a zero-initialised head under a slow warm-up


class Vanishing(Detector):
    """Layers whose gradient stays below a threshold; ``value`` and ``threshold`` are L2 norms of gradients.

    By default sick is (1) the layers up to a depth before which every weight's gradient has a root mean square below
    1e-4 of the largest after it (2e-3 once 10 steps have not brought the loss down by a twentieth, 1e-2 while it has
    not moved by a thousandth), and (2) every layer, where the total norm fell below 1e-6 of what it first was while
    the loss has not come down to half its first value, or is exactly zero while the loss has not come down to a
    thousandth (where none is observed: a total that was zero from the start, or fell so far in one of the first 10
    updates).
    ``Thresholds.vanishing_norm`` replaces both by its literal meaning.
    """

    kind = "vanishing"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__()
        self._layers = layers
        self._literal = thresholds.vanishing_norm
        self.patience = thresholds.patience or PATIENCE
        self._memory = {
            "updates": 0,
            "first_total": 0.0,
            "last_total": 0.0,
            "fell": False,
            "first_loss": None,
            "recent_loss": None,
            "loss_change": 0.0,  # the largest so far, a share of the first
            "has_ratios": False,
            "ratios": np.full((max(1, self.patience - 1), len(layers)), np.nan),  # the last of each sick layer
        }
        self._gone = False

    def examine(self, report: StepReport) -> Symptoms | None:
        norm, mending = report.grad_norm.astype(float), None
        if not np.isfinite(report.grad_norm_total) or not report.measured.any():
            return None  # against a NaN nothing is small, against an overflow everything
        if self._literal is not None:
            threshold = np.full(len(norm), self._literal)
            with np.errstate(invalid="ignore"):
                sick = report.measured & (norm < self._literal)
        else:
            self._gone = self._is_gone(report)
            if self._gone:
                sick, threshold = report.measured, self._gone_threshold(norm)
            else:
                sick, threshold, mending = self._faded(report)
        if not sick.any():
            return healthy(len(sick))
        with np.errstate(divide="ignore", invalid="ignore"):
            badness = np.where(self._layers.is_weight, 0.0, -1e6) - np.log10(np.maximum(norm, 1e-300))
        return Symptoms(sick, np.nan_to_num(badness, nan=-1e9), norm, threshold, mending=mending)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        return waiting < self.patience

    def floor(self, report: StepReport) -> Floats:
        """(P,) norm below which each layer is faint at this step; NaN where nothing nearer the output was measured."""
        if self._literal is not None:
            return np.full(len(self._layers), self._literal)
        order = np.argsort(self._layers.depth)
        judged = self._layers.is_weight & report.measured & np.isfinite(report.grad_norm)
        rms = np.where(judged, self._root_mean_square(report), 0.0)[order]
        after = np.full(len(order), np.nan)
        after[order[:-1]] = np.maximum.accumulate(rms[::-1])[::-1][1:]
        return self._limit() * np.where(after > 0, after, np.nan) * np.sqrt(self._layers.size)

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        name, norm = self._layers.names[column], float(report.grad_norm[column])
        where = f"the gradient norm of {name} is {norm:.3g} at step {report.step}"
        if self._literal is not None:
            return "a gradient norm below the threshold that was set", f"{where}, below {self._literal:g}."
        if self._gone:
            measured = (
                f"{where}; the total is {report.grad_norm_total:.3g}, against {self._memory['first_total']:.3g} in the "
                "first steps, and the loss has not improved."
            )
            return "no gradient reaches any layer: the output or the loss is flat", measured
        rms = self._root_mean_square(report)
        strongest = int(np.nanargmax(np.where(self._layers.is_weight, rms, np.nan)))
        if rms[strongest] <= rms[column]:
            strongest = int(np.nanargmax(rms))
        ratio = rms[strongest] / rms[column] if rms[column] else np.inf
        weights = int(self._layers.is_weight[covered].sum())
        measured = (
            f"{where}: per entry {ratio:.3g} times less than that of {self._layers.names[strongest]} (normal: up to "
            f"{1 / self._limit():,.0f} times)."
        )
        return f"gradients shrink along depth and no longer reach the first {weights} weights", measured

    def clues(self) -> tuple[Clue, ...]:
        return ("no gradient",) if self._gone else ()

    def _faded(self, report: StepReport) -> tuple[np.ndarray, Floats, np.ndarray]:
        """(sick, threshold, mending) of rule 1: the longest stretch from the input whose every weight is faint."""
        rms = self._root_mean_square(report)
        limit = self._limit()
        boundary, strongest = self._boundary(rms, report.measured, limit)
        if boundary < 0 and not self._memory["has_ratios"]:
            none = np.zeros(len(rms), dtype=bool)
            return none, rms, none
        sick = (self._layers.depth <= boundary) & report.measured & (rms < limit * strongest)
        mending = self._recovers(rms / strongest, sick, report.measured)
        return sick, limit * strongest * np.sqrt(self._layers.size), mending

    def _boundary(self, rms: Floats, measured: np.ndarray, limit: float) -> tuple[int, float]:
        """(depth of the last weight before which all are faint, the largest after it); (−1, 1) where none is."""
        depth = self._layers.depth
        order = self._layers.order
        weights = order[(self._layers.is_weight & measured)[order]]
        before = np.maximum.accumulate(rms[weights])[:-1]
        after = np.maximum.accumulate(rms[weights][::-1])[::-1][1:]
        faint = np.flatnonzero(before < limit * after)
        vectors = measured & ~self._layers.is_weight
        if len(weights) and vectors.any() and rms[weights].max() < GONE_RATIO * rms[vectors].max():
            return int(depth[weights[-1]]), float(rms[vectors].max())  # dead: nothing but the last biases is reached
        return (int(depth[weights[faint[-1]]]), float(after[faint[-1]])) if len(faint) else (-1, 1.0)

    def _recovers(self, ratio: Floats, sick: np.ndarray, measured: np.ndarray) -> np.ndarray:
        ratios = self._memory["ratios"]
        if not sick.any() and not self._memory["has_ratios"]:
            return sick
        self._memory["has_ratios"] = bool(
            sick.any()
        )  # a layer that is not measured meanwhile keeps its own a step longer
        recovers = sick & (ratio > np.where(ratio < DEPTH_RATIO, RECOVERING, STIRRING) * ratios[0])
        ratios[:, measured & ~sick] = np.nan  # a layer without a gradient at this step is neither sick nor healthy
        ratios[:, sick] = np.vstack([ratios[1:, sick], ratio[sick]])
        self._memory["has_ratios"] = not np.isnan(ratios).all()
        return recovers

    def _limit(self) -> float:
        """What share of the largest is too little: more where the run has not begun to learn."""
        memory = self._memory
        is_idle = memory["first_loss"] is not None and memory["recent_loss"] > BEGUN * memory["first_loss"] > 0
        if not is_idle or memory["updates"] <= IDLE_STEPS:
            return DEPTH_RATIO
        return FLAT_RATIO if memory["loss_change"] <= FLAT else IDLE_RATIO

    def _follow_loss(self, loss: float | None) -> None:
        memory = self._memory
        if memory["first_loss"] is None:
            memory["first_loss"] = memory["recent_loss"] = loss
        elif loss is not None and math.isfinite(loss):
            memory["recent_loss"] += (loss - memory["recent_loss"]) / LOSSES
            change = abs(loss - memory["first_loss"]) / (abs(memory["first_loss"]) or 1.0)
            memory["loss_change"] = max(memory["loss_change"], change)

    def _is_gone(self, report: StepReport) -> bool:
        memory = self._memory
        if memory["updates"] < FIRST_STEPS:
            memory["first_total"] = max(memory["first_total"], report.grad_norm_total)
        memory["updates"] += 1
        self._follow_loss(report.loss)
        faint = report.grad_norm_total <= GONE_RATIO * memory["first_total"]
        if memory["updates"] <= FIRST_STEPS and faint and memory["last_total"] > CLIFF * memory["first_total"]:
            memory["fell"] = True
        memory["last_total"] = report.grad_norm_total
        if report.loss is None or memory["first_loss"] is None:
            return faint and (memory["first_total"] == 0 or memory["fell"])
        share = UNIMPROVED if report.grad_norm_total > 0 else UNFINISHED
        return faint and report.loss > share * memory["first_loss"] > 0

    def _gone_threshold(self, norm: Floats) -> Floats:
        return np.full(len(norm), GONE_RATIO * self._memory["first_total"])

    def _root_mean_square(self, report: StepReport) -> Floats:
        return report.grad_norm / np.sqrt(np.maximum(self._layers.size, 1))
