"""Decide what is wrong: from step reports to findings that open and end.

Enters: one ``StepReport`` a step. Leaves: findings as they open and as they end. Knows nothing of devices or files.
A detector says which layers are sick at this step; an ``Episode`` turns that into one finding with one onset and end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradwatch.detect.background import Background
from gradwatch.detect.dead import Dead
from gradwatch.detect.episode import Advise, Episode, Event
from gradwatch.detect.exploding import Exploding
from gradwatch.detect.nonfinite import NonFiniteGradient, NonFiniteLoss
from gradwatch.detect.saturated import Saturated
from gradwatch.detect.stalled import Stalled
from gradwatch.detect.symptoms import Detector
from gradwatch.detect.unstable import Unstable
from gradwatch.detect.vanishing import Vanishing
from gradwatch.findings import Finding, Thresholds
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Detectors", "Event"]


class Detectors:
    """Every detector over the updates of one optimizer, each with its episode.

    Args:
        layers: the table that the reports' columns follow.
        thresholds: what counts as sick.
        advise: → remedies, best first.
    """

    def __init__(
        self,
        layers: Layers,
        thresholds: Thresholds,
        advise: Advise,
    ) -> None:
        self._exploding, self._vanishing = Exploding(layers, thresholds), Vanishing(layers, thresholds)
        detectors: list[Detector] = [
            NonFiniteLoss(),
            NonFiniteGradient(layers),
            self._exploding,
            self._vanishing,
            Dead(layers, thresholds),
            Saturated(layers, thresholds),
            Stalled(thresholds),
            Unstable(thresholds),
        ]
        self._background = Background(layers)
        self._pairs = [(detector, Episode(detector, layers, advise, self._background)) for detector in detectors]
        self._judges = [pair for pair in self._pairs if not pair[0].judges_samples_only]  # of every step
        self._quiet = thresholds.warmup_steps or 0

    def observe(self, report: StepReport) -> list[Event]:
        """What opened or ended at this step."""
        events: list[Event] = []
        self._background.observe(report)
        for detector, episode in self._pairs:
            symptoms = detector.examine(report)
            if symptoms is not None and (detector.kind == "nonfinite" or report.update >= self._quiet):
                events += episode.advance(report, symptoms)
        return events

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Whether nothing can open or end at a step, whatever its layers show, so that it may be observed later.

        Args:
            waiting: how many steps have not been observed, this one included; none of them is sampled.
            total: total norm of the gradients of this step.
            loss: of this step.
        """
        if not math.isfinite(total) or not (loss is None or math.isfinite(loss)):
            return False
        return all(episode.is_idle and detector.may_wait(waiting, total, loss) for detector, episode in self._judges)

    def band(self, report: StepReport) -> Floats:
        """(2, P) between which each layer's norm is normal after ``report``, the last step observed; for charts."""
        return np.stack([self._vanishing.floor(report), self._exploding.ceiling()])

    def open_findings(self) -> list[Finding]:
        """Findings that have opened and not ended, as they stand now."""
        return [finding for _, episode in self._pairs if (finding := episode.finding()) is not None]

    def state(self) -> dict[str, Any]:
        """Everything that lives across steps, as plain values and arrays, by detector."""
        states = {
            type(detector).__name__: {"detector": detector.state(), "episode": episode.state()}
            for detector, episode in self._pairs
        }
        return {**states, "Background": self._background.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned; a detector that is not in it begins anew."""
        if "Background" in state:
            self._background.restore(state["Background"])
        for detector, episode in self._pairs:
            saved = state.get(type(detector).__name__)
            if saved is not None:
                detector.restore(saved["detector"])
                episode.restore(saved["episode"])
