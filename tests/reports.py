"""Step reports and event sequences for tests, from rows of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from gradwatch.detect.detector import Detector, DetectorResult
from gradwatch.findings import Finding, Thresholds
from gradwatch.measure.layers import Layers, of_tensors
from gradwatch.measure.report import StepReport
from gradwatch.watcher import checkpoint
from gradwatch.watcher.diagnosis import Diagnosis, FindingUpdate

NAN, INF = math.nan, math.inf


def table(count: int, shape: tuple[int, ...] = (2, 2)) -> Layers:
    """``count`` weights w0, w1, … of one shape, w0 nearest the input."""
    return of_tensors({f"w{column}": torch.zeros(shape) for column in range(count)})


def report(norms: Sequence[float], step: int = 0, loss: float | None = None, **rest) -> StepReport:
    """One step of ``len(norms)`` layers; NaN is a layer without a gradient, unless ``nonfinite`` counts entries."""
    norm = np.array(norms, dtype=np.float64)
    nonfinite = np.array(rest.pop("nonfinite", [0] * len(norm)), dtype=np.int64)
    measured = ~np.isnan(norm) | (nonfinite > 0)
    norm[nonfinite > 0] = NAN
    total = rest.pop("grad_norm_total", math.hypot(*norm[measured]))
    names = tuple(f"w{column}" for column in range(len(norm)))
    shape = {"layers": names, "depth": np.arange(len(norm)), "size": np.full(len(norm), 4)}
    rest = {"optimizer": 0, "update": step, "grad_norm_clipped_total": total, **shape} | rest
    return StepReport(
        step=step, measured=measured, grad_norm=norm, nonfinite=nonfinite, grad_norm_total=total, loss=loss, **rest
    )


def run_of(rows: Iterable[Sequence[float]], losses: Iterable[float | None] | None = None, **rest) -> list[StepReport]:
    """One report per row of gradient norms, with its loss where there is one."""
    rows = list(rows)
    losses = [None] * len(rows) if losses is None else list(losses)
    return [report(norms, step, loss, **rest) for step, (norms, loss) in enumerate(zip(rows, losses, strict=True))]


def diagnosis(layers: Layers, thresholds: Thresholds | None = None) -> Diagnosis:
    return Diagnosis(layers, thresholds or Thresholds(), clips=False)


def events(
    reports: Sequence[StepReport], thresholds: Thresholds | None = None, layers: Layers | None = None, cut: int = 0
) -> list[FindingUpdate]:
    """What every detector says of a run; at ``cut`` they are saved as a checkpoint and others go on from it."""
    layers = layers or table(len(reports[0].grad_norm))
    watching = diagnosis(layers, thresholds)
    said = [event for step in reports[:cut] for event in watching.observe(step)]
    saved = checkpoint.unpack(checkpoint.pack(watching.state()))
    watching = diagnosis(layers, thresholds)
    watching.restore(saved)
    return said + [event for step in reports[cut:] for event in watching.observe(step)]


def findings(
    reports: Sequence[StepReport], thresholds: Thresholds | None = None, layers: Layers | None = None
) -> list[Finding]:
    """Findings as they were when they opened."""
    return [event.finding for event in events(reports, thresholds, layers) if not event.ended]


def kinds(
    reports: Sequence[StepReport], thresholds: Thresholds | None = None, layers: Layers | None = None
) -> list[str]:
    return [finding.kind for finding in findings(reports, thresholds, layers)]


def examine_all(detector: Detector, reports: Iterable[StepReport]) -> list[DetectorResult | None]:
    return [detector.examine(step) for step in reports]


def sick_columns(result: DetectorResult | None) -> set[int] | None:
    return None if result is None else set(np.flatnonzero(result.sick).tolist())


def onsets(result: DetectorResult | None) -> dict[int, int] | None:
    """Onset of each sick column."""
    if result is None:
        return None
    return {column: int(result.onset[column]) for column in np.flatnonzero(result.sick).tolist()}


def random_walks(seed: int, steps: int, count: int) -> tuple[list[list[float]], list[float]]:
    """Gradient norms and a loss that drift, leap, overflow, vanish and go unmeasured: sick more often than any run."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.1, (steps, count)), axis=0)
    ramp = np.clip(np.arange(steps) - rng.integers(5, steps), 0, None) * rng.choice([0.0, 0.5, -0.5])
    norms = 10.0 ** (drift + ramp[:, None])
    norms[rng.random((steps, count)) < 0.02] = 0.0
    norms[rng.random((steps, count)) < 0.02] = NAN
    norms[rng.random((steps, count)) < 0.003] = INF
    losses = 10.0 ** (np.cumsum(rng.normal(0, 0.02, steps)) + ramp / 2)
    return norms.tolist(), losses.tolist()


def times(factor: float, row: Sequence[float]) -> list[float]:
    return [factor * number for number in row]
