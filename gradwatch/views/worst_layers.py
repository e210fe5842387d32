"""Choose the layers of a run that deserve a look first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch.event_files.run import Floats, Run, TimeSeries
from gradwatch.findings import Severity

__all__ = ["WorstLayer", "usual_norms", "worst_layers"]

_MOST_ROWS = 500  # from which the usual norm is taken: a median of millions takes longer than a screen may wait


@dataclass(frozen=True)
class WorstLayer:
    """A layer and its gradient.

    Attributes:
        name: of the layer.
        severity: the gravest of its open findings; None if it has none.
        norms: the largest L2 norm of its gradient since the row before, along time; Inf where it was not finite.
        norm: the last of them; NaN if it was never measured.
        ratio: ``norm`` divided by the layer's usual norm.
    """

    name: str
    severity: Severity | None
    norms: TimeSeries
    norm: float
    ratio: float


def worst_layers(run: Run, most: int) -> list[WorstLayer]:
    """Return at most ``most`` layers: those with an open finding first, then those furthest from their usual norm."""
    if not len(run.steps) or most <= 0:
        return []
    highest = run.packed["highest"]
    norm, usual = _last_measured(highest.values), usual_norms(run)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = norm / usual
        distance = np.nan_to_num(np.abs(np.log10(ratio)), nan=0.0, posinf=np.inf)
    severity = _severities(run)
    rank = np.array([_RANK[severity.get(name)] for name in run.layers])
    worst = np.lexsort((run.depth, -distance, rank))[:most]
    return [
        WorstLayer(
            run.layers[column],
            severity.get(run.layers[column]),
            _measured(highest.steps, highest.values[:, column]),
            float(norm[column]),
            float(ratio[column]),
        )
        for column in worst.tolist()
    ]


def usual_norms(run: Run) -> Floats:
    """Return (P,) the median of each layer's finite gradient norms that are not zero; NaN where there are none."""
    norms = run.packed["grad_norm"].values
    norms = norms[:: -(-len(norms) // _MOST_ROWS) or 1].astype(float)
    norms[~(np.isfinite(norms) & (norms > 0))] = np.nan
    usual = np.full(norms.shape[1], np.nan)
    known = ~np.isnan(norms).all(axis=0)
    usual[known] = np.nanmedian(norms[:, known], axis=0)
    return usual


_RANK: dict[Severity | None, int] = {"error": 0, "warning": 1, None: 2}


def _severities(run: Run) -> dict[str, Severity]:
    """Return the gravest severity of the open findings of each layer that has any."""
    gravest: dict[str, Severity] = {}
    for finding, ended in zip(run.findings, run.ended, strict=True):
        for layer in {finding.layer, *finding.layers} if not ended else ():
            if _RANK[finding.severity] < _RANK[gravest.get(layer)]:
                gravest[layer] = finding.severity
    return gravest


def _last_measured(values: Floats) -> Floats:
    """Return (S, P) → (P,) each column's last entry that is not NaN; NaN where there is none."""
    known = ~np.isnan(values)
    last = len(values) - 1 - known[::-1].argmax(axis=0)
    return values[last, np.arange(values.shape[1])].astype(float)


def _measured(steps: NDArray[np.int64], values: NDArray[np.float32]) -> TimeSeries:
    known = ~np.isnan(values)
    return TimeSeries(steps[known], values[known])
