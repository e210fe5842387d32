"""Every detector over the updates of one optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwatch.detect.branch_vanishing import BranchVanishing
from gradwatch.detect.bypassed import Bypassed
from gradwatch.detect.clipped_below_epsilon import ClippedBelowEpsilon
from gradwatch.detect.cut_off import CutOff
from gradwatch.detect.dead import Dead
from gradwatch.detect.detector import Detector
from gradwatch.detect.died_at_once import DiedAtOnce
from gradwatch.detect.disconnected import Disconnected
from gradwatch.detect.exploding import Exploding
from gradwatch.detect.exploding_along_depth import ExplodingAlongDepth
from gradwatch.detect.exploding_at_birth import ExplodingAtBirth
from gradwatch.detect.far_above_targets import FarAboveTargets
from gradwatch.detect.incident import Incident, IncidentEvent, IncidentTracker
from gradwatch.detect.kind_rules import KindRules
from gradwatch.detect.loop_order import ClearedEarly, ClippedWhileScaled, NeverCleared
from gradwatch.detect.nonfinite import NonFiniteGradient, NonFiniteLoss
from gradwatch.detect.out_of_reach import OutOfReach
from gradwatch.detect.router_collapsed import RouterCollapsed
from gradwatch.detect.rule_faults import RuleFaults
from gradwatch.detect.runaway_loss import RunawayLoss
from gradwatch.detect.saturated import Saturated
from gradwatch.detect.shut_ahead import ShutAhead
from gradwatch.detect.silent_scale import SilentScale
from gradwatch.detect.softmax_of_one import SoftmaxOfOne
from gradwatch.detect.stalled import Stalled
from gradwatch.detect.throttled import Throttled
from gradwatch.detect.unbounded import Unbounded
from gradwatch.detect.unmoved import Unmoved
from gradwatch.detect.unstable import Unstable
from gradwatch.detect.vanishing import Vanishing
from gradwatch.findings import Thresholds, UnjudgedSteps
from gradwatch.hooks.guard import Guard
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, StepReport

__all__ = ["Detectors"]


class Detectors:
    """Every detector over the updates of one optimizer, each with the tracker of its incidents.

    Args:
        layers: the table that the reports' columns follow.
        thresholds: what counts as sick.
        guard: takes the faults of single rules.
    """

    def __init__(self, layers: Layers, thresholds: Thresholds, guard: Guard | None = None) -> None:
        self._guard = guard or Guard()
        self._faults = RuleFaults(self._guard)
        self._exploding, self._vanishing = Exploding(layers, thresholds), Vanishing(layers, thresholds)
        self._dead = Dead(layers, thresholds)
        rules: list[list[Detector[Any]]] = [  # in a row: those whose findings are one finding
            [NonFiniteLoss()],
            [NonFiniteGradient(layers)],
            [
                self._exploding,
                ExplodingAtBirth(layers, thresholds),
                ExplodingAlongDepth(layers, thresholds),
                FarAboveTargets(layers, thresholds),
                Unbounded(layers, thresholds),
                RunawayLoss(layers, thresholds),
            ],
            [self._dead, SilentScale(layers, thresholds)],  # before vanishing, which asks what a step's own sample says
            [
                self._vanishing,
                DiedAtOnce(layers, thresholds),
                BranchVanishing(layers, thresholds),
                Bypassed(layers, thresholds),
                RouterCollapsed(layers, thresholds),
                SoftmaxOfOne(layers, thresholds),
                ShutAhead(layers, thresholds),
            ],
            [Saturated(layers, thresholds)],
            [
                ClearedEarly(thresholds),
                ClippedWhileScaled(thresholds),
                Stalled(layers, thresholds),
                Throttled(layers, thresholds),
            ],
            [
                OutOfReach(layers, thresholds),
                Disconnected(layers, thresholds),
                CutOff(layers, thresholds),
                Unmoved(layers, thresholds),
                ClippedBelowEpsilon(layers, thresholds),
            ],
            [NeverCleared(thresholds), Unstable(layers, thresholds)],
        ]
        tracked = [[IncidentTracker(detector, layers) for detector in row] for row in rules]
        self._trackers = [tracker for row in tracked for tracker in row]
        self._by_name = {tracker.name: tracker for tracker in self._trackers}
        self._is_literal = thresholds.vanishing_norm is not None
        self._rules = [(KindRules(row, self._faults), row[0].detector.kind) for row in tracked]
        self._warmup_steps = thresholds.warmup_steps or 0

    def observe(self, report: StepReport) -> list[IncidentEvent]:
        """Take in one step; return what opens or ends at it."""
        events: list[IncidentEvent] = []
        is_warm = report.update >= self._warmup_steps
        for rules, kind in self._rules:  # also during the warm-up, from which levels are learned
            for event in rules.observe(report, counts=is_warm or kind == "nonfinite"):
                events += self._told_as(event, report) if kind == "vanishing" else [event]
        if self._faults.have_begun:
            self._faults.count_step()
        return events

    @property
    def has_failed(self) -> bool:
        """Return whether a rule failed at the last step: an incident may have opened or ended without an event."""
        return self._faults.at_last_step

    def unjudged(self) -> tuple[UnjudgedSteps, ...]:
        """Return how many steps each rule has not judged because it failed or rested."""
        return self._faults.unjudged()

    def _told_as(self, event: IncidentEvent, report: StepReport) -> list[IncidentEvent]:
        """Return what ``_of_dead_units`` does; ``event`` itself where that fails: it is lost by no fault of others."""
        events = self._guard.run("dead units", self._of_dead_units, event, report)
        return [event] if events is None else events

    def _of_dead_units(self, event: IncidentEvent, report: StepReport) -> list[IncidentEvent]:
        """Return ``event``, or one of kind ``dead`` in its place where a layer that is shut makes gradients vanish.

        Nothing is returned where an open incident tells of that layer: then the latest sample counts, however old.
        """
        incident = event.incident
        if event.ended or self._is_literal:
            return [event]
        told = {column for each in self.open_incidents().values() if each.kind == "dead" for column in each.columns}
        if self._dead.shut_among(told.intersection(incident.columns), since=0) is not None:
            self._by_name[event.detector].withdraw()
            return []
        if (shut := self._dead.shut_among(incident.columns, incident.step)) is None:
            return [event]
        self._by_name[event.detector].withdraw()
        return self._by_name[Dead.__name__].open_at_once(report, shut)

    def may_wait(self, waiting: int, total: float, loss: float | None) -> bool:
        """Return True if nothing can open or end at a step, whatever its layers show, so that it may be observed later.

        Args:
            waiting: how many steps have not been observed, this one included; none of them is sampled.
            total: total norm of the gradients of this step.
            loss: loss of this step; None where none was observed.
        """
        if not math.isfinite(total) or not (loss is None or math.isfinite(loss)):
            return False
        return all(rules.may_wait(waiting, total, loss) for rules, _ in self._rules)

    def band(self, report: StepReport) -> Floats:
        """Return (2, P), the norms between which each layer is normal after ``report``, the last step; for charts."""
        return np.stack([self._vanishing.floor(report), self._exploding.ceiling()])

    def open_incidents(self) -> dict[str, Incident]:
        """Return {name of the detector: its open incident as it is now}."""
        return {tracker.name: tracker.incident for tracker in self._trackers if tracker.incident is not None}

    def state(self) -> dict[str, Any]:
        """Return everything that lives across steps, as plain values and arrays, by detector."""
        return {
            tracker.name: {"detector": tracker.detector.state(), "tracker": tracker.state()}
            for tracker in self._trackers
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned; a detector that is not in it begins anew.

        Raises:
            ValueError: if a state is of another version or of another model.
        """
        for tracker in self._trackers:
            if tracker.name in saved:
                tracker.detector.restore(saved[tracker.name]["detector"])
                tracker.restore(saved[tracker.name]["tracker"])
