"""``exploding``: a gradient norm that outgrows its layer's own history, or overflows while its entries are finite.

Works on log10 norms, so that the scale of loss and gradients plays no part. Each layer, and the total, has a running
level; what stands above level + margin is evidence, in decades, and adds up from step to step (Page's CUSUM, 1954).
"""

from __future__ import annotations

import math

import numpy as np

from gradwatch.detect.loss_level import loss_suffers, new_loss_level
from gradwatch.detect.symptoms import Detector, Symptoms, healthy
from gradwatch.findings import Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Exploding"]

HORIZON = 30  # steps that a level remembers: long enough to be steady, short enough to follow a run that changes
MARGIN = np.log10(2.0)  # twice the level is within what healthy minibatches do
SPREADS = 3.0  # ... and so are three of the layer's own usual deviations
EVIDENCE = 3.0  # decades above the margin, summed over steps in a row: ×2,000 once, ×63 twice, ×20 thrice
EVIDENCE_ALONE = 8.0  # the same where no loss confirms that the run suffers; a healthy ViT leaves its plateau with 5
FIRST_STEPS = 10
NEGLIGIBLE = 0.1  # times the first total: without a loss, what is below has converged
OUTGROWN = 1e4  # times the largest of the first steps, three steps in a row: enough without a loss, however slowly
IN_A_ROW = 3
WORSE = 0.5  # share by which the loss must have risen since the evidence began; after a change of task it only falls


class Exploding(Detector):
    """Growth of a layer's norm against its own level. ``value`` and ``threshold`` are that growth as a factor.

    By default a layer is sick above its margin once it has gathered ``EVIDENCE`` decades, while the total has evidence
    too and the loss, if observed, has risen: a run whose loss falls while its gradients grow is leaving a plateau.
    Where the evidence took several steps, the loss must have gone on rising: under a change of task both leap once. A
    norm that overflows is sick at once. Where no loss is observed, more evidence is asked for, or that layer and total
    outgrow the largest of their first steps by 1e4. ``Thresholds.exploding_growth`` replaces all this by its literal
    meaning.
    """

    kind = "exploding"

    def __init__(self, layers: Layers, thresholds: Thresholds) -> None:
        super().__init__()
        self._layers = layers
        self._literal = thresholds.exploding_growth
        self.patience = thresholds.patience or 1
        columns = len(layers) + 1  # the last one is the total
        self._norm, self._healthy = np.zeros(columns), healthy(len(layers))
        self._memory = {
            "count": np.zeros(columns, dtype=np.int64),
            "level": np.zeros(columns),
            "spread": np.zeros(columns),
            "evidence": np.zeros(columns),
            "onset": np.zeros(columns, dtype=np.int64),
            "first_peak": np.zeros(columns),
            "first_total": 0.0,
            "outgrown": np.zeros(columns, dtype=np.int64),
            "loss": new_loss_level(),
            "loss_at_onset": None,  # of the total's evidence
            "goes_on": False,  # since then
        }
        self._usual: Floats = np.zeros(0)  # what this step was held against, for explain
        self._threshold: Floats = np.zeros(0)

    def examine(self, report: StepReport) -> Symptoms | None:
        suffers = None if report.loss is None else loss_suffers(self._memory["loss"], report.loss)
        if not report.gradients_are_finite:
            return None  # whoever exploded is beyond telling; nonfinite takes over
        norm = self._norm
        norm[:-1], norm[-1] = report.grad_norm, report.grad_norm_total
        level, margin = self._memory["level"].copy(), self._margin()
        known = self._memory["count"][:-1] > 0
        deviation = self._learn(report.step, norm, margin, asks=suffers is None)[:-1]
        goes_on = self._goes_on(report.step, report.loss)
        overflow = np.isinf(report.grad_norm)
        if self._literal is None and not overflow.any() and not self._memory["evidence"].any():
            outgrown = self._outgrown(suffers)
            if not outgrown.any():
                return self._healthy
        growth = 10.0 ** np.clip(deviation, -300, 300)
        self._usual = np.where(known, 10 ** level[:-1], np.nan)
        threshold = 10 ** margin[:-1]
        if self._literal is not None:
            sick = growth > self._literal
            threshold = np.full(len(sick), float(self._literal))
        else:
            sick = self._has_evidence(suffers and goes_on, report.grad_norm_total) & (growth > threshold)
            outgrown = self._outgrown(suffers) & ~sick
            sick, threshold = sick | outgrown, np.where(outgrown, OUTGROWN, threshold)
            self._usual = np.where(outgrown, self._memory["first_peak"][:-1], self._usual)
            growth = np.divide(report.grad_norm, self._usual, out=growth, where=outgrown)
        self._threshold = threshold
        value = np.where(overflow, np.inf, growth)
        # a sick layer may have turned sick some steps ago; one that overflows without warning does so now
        gathering = self._memory["evidence"][:-1] > 0
        onset = np.where(gathering, self._memory["onset"][:-1], report.step)
        return Symptoms(sick | overflow, np.where(np.isfinite(value), value, 1e300), value, threshold, onset)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Without evidence in the total there is none in any layer: it must stay below what gathers some.

        While steps wait, the total's level and its spread may have fallen, each by a share of 1/30 a step.
        """
        memory = self._memory
        if self._literal is not None or memory["count"][-1] < HORIZON or memory["evidence"][-1] > 0 or total <= 0:
            return False
        if loss is None and total > OUTGROWN * memory["first_peak"][-1]:
            return False
        margin = max(MARGIN, SPREADS * memory["spread"][-1])
        kept = (1 - 1 / HORIZON) ** waiting
        return bool(math.log10(total) <= memory["level"][-1] + (kept - waiting / HORIZON) * margin)

    def ceiling(self) -> Floats:
        """(P,) norm above which each layer outgrows its level, as learned so far; NaN where none was measured."""
        margin = self._margin() if self._literal is None else np.log10(self._literal)
        with np.errstate(over="ignore"):
            return np.where(self._memory["count"] > 0, 10.0 ** (self._memory["level"] + margin), np.nan)[:-1]

    def explain(self, report: StepReport, column: int, covered: list[int]) -> tuple[str, str]:
        name, norm, usual = self._layers.names[column], report.grad_norm[column], self._usual[column]
        if np.isinf(norm):
            level = "" if np.isnan(usual) else f"; its level was {usual:.3g}"
            measured = (
                f"the gradient of {name} overflows its norm while its entries are still finite at step "
                f"{report.step}{level}."
            )
        else:
            measured = (
                f"the gradient norm of {name} is {norm:.3g} at step {report.step}, {norm / usual:.3g} times its level "
                f"of {usual:.3g} (normal: up to {self._threshold[column]:.3g} times)."
            )
        loss = "" if report.loss is None else f", and the loss is {report.loss:.4g}"
        return f"gradient norms of {len(covered)} of {len(self._layers)} layers outgrow their level{loss}", measured

    def _learn(self, step: int, norm: Floats, margin: Floats, *, asks: bool) -> Floats:
        """Decades of each norm above its level, 0 where there is none; then takes the norm into level and evidence.

        Args:
            asks: whether it matters if norms outgrow their first steps, as it does where no loss is observed.
        """
        memory = self._memory
        usable = np.isfinite(norm) & (norm > 0)
        log = np.log10(norm if usable.all() else np.where(usable, norm, 1.0))
        first = usable & (memory["count"] == 0)
        if first.any():
            memory["level"][first] = log[first]
            if first[-1]:
                memory["first_total"] = float(norm[-1])
        deviation = np.where(usable, log - memory["level"], 0.0)
        self._compare_with_first(norm, usable, asks=asks)
        self._gather(step, usable, deviation - margin)
        rate = usable / np.minimum(memory["count"] + 1, HORIZON)
        taken = np.minimum(np.maximum(deviation, -margin), margin)  # a spike must not become the new normal
        memory["level"] += rate * taken
        memory["spread"] += rate * (np.abs(taken) - memory["spread"])
        memory["count"] += usable
        return deviation

    def _gather(self, step: int, usable: np.ndarray, excess: Floats) -> None:
        evidence, onset = self._memory["evidence"], self._memory["onset"]
        begins = usable & (evidence <= 0) & (excess > 0)
        if not begins.any() and not evidence.any():
            return
        onset[begins] = step
        evidence[:] = np.where(usable, np.maximum(0.0, evidence + excess), evidence)

    def _compare_with_first(self, norm: Floats, usable: np.ndarray, *, asks: bool) -> None:
        memory = self._memory
        early = usable & (memory["count"] < FIRST_STEPS)
        if early.any():
            memory["first_peak"][early] = np.maximum(memory["first_peak"], norm)[early]
        if not asks:
            memory["outgrown"][:] = 0
            return
        outgrows = usable & ~early & (norm > OUTGROWN * memory["first_peak"])
        if outgrows.any() or memory["outgrown"].any():
            memory["outgrown"] = np.where(outgrows, memory["outgrown"] + 1, np.where(usable, 0, memory["outgrown"]))

    def _margin(self) -> Floats:
        return np.maximum(MARGIN, SPREADS * self._memory["spread"])

    def _has_evidence(self, suffers: bool | None, total: float) -> np.ndarray:
        evidence = self._memory["evidence"]
        if suffers is None:
            is_large = total > NEGLIGIBLE * self._memory["first_total"]
            return (evidence[:-1] >= EVIDENCE_ALONE) & (evidence[-1] > 0) & is_large
        return (evidence[:-1] >= EVIDENCE) & (evidence[-1] > 0) & suffers

    def _goes_on(self, step: int, loss: float | None) -> bool:
        """Whether the evidence came at once, or the loss rose further since it began; stays so until it begins anew."""
        memory = self._memory
        before = memory["loss_at_onset"]
        if memory["onset"][-1] == step:
            memory["loss_at_onset"] = loss
            memory["goes_on"] = loss is None or bool((memory["evidence"][:-1] >= EVIDENCE).any())
        elif loss is not None and before is not None:
            memory["goes_on"] |= loss < 0 or not loss - before <= WORSE * abs(before)
        return bool(memory["goes_on"])

    def _outgrown(self, suffers: bool | None) -> np.ndarray:
        lasting = self._memory["outgrown"] >= IN_A_ROW
        return lasting[:-1] & lasting[-1] & (suffers is None)
