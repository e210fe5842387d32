"""The proof of a pair's labels, on the bare run: a score at the end, and figures that fit the kind.

healthy: no gradient or loss is NaN or Inf, and the score reaches what the pair asks for.
sick: the score does not, and in the layers that the label names (in any, where it names none) …
nonfinite: a gradient entry or a loss is NaN or Inf, or, at the end, the score.
exploding: one of the first five updates moves a weight by ten times its norm; or the first gradient has a norm of 10⁴;
    or weights or the gradient grow to 100 times their first norm; or the run meets NaN or Inf.
vanishing: in nine of ten updates of the last half, the root mean square of the gradient is below a 500th of the largest
    of any layer, or of its own first; or there is none.
stalled: in the last half, no update moves a weight by more than 10⁻⁴ of its norm.
unstable: the loss rises by its own first value from one update to the next, six times or more.
dead, saturated: in nine of ten updates of the last half, 80 % of a rectifier's units pass nothing, or 80 % of a
    squashing function's entries are flat (as ``prove.py`` says).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection.bare import Bare
from benchmarks.detection.program import Program

FAR, TENFOLD, HUNDREDFOLD = 1e4, 10.0, 100.0
SHARE, UNMOVED, INACTIVE, MOSTLY = 2e-3, 1e-4, 0.8, 0.9
JUMPS = 6

Evidence = tuple[NDArray[np.bool_], str]
"""Which parameters are sick, and the figures in words."""


@dataclass(frozen=True)
class PairProof:
    """What the bare run of one program of a pair shows.

    Attributes:
        holds: whether the label is true.
        layers: the sick ones; ("",) where the label names none.
        why: in words, with figures.
    """

    holds: bool
    layers: tuple[str, ...]
    why: str


def prove_other(program: Program, bare: Bare, first: int | None) -> PairProof:
    """Measure the claim of a program of a pair.

    Args:
        program: whose claim it is.
        bare: its run.
        first: first update at which a gradient or the loss is NaN or Inf.
    """
    assert program.reaches is not None
    has_reached = bool(bare.score >= program.reaches)
    score = f"score {bare.score:.4g} of {program.reaches:g}"
    if program.kind is None:
        return PairProof(has_reached and first is None, (), f"{score}, first NaN or Inf {first}")
    is_named = np.array([any(fnmatch.fnmatchcase(name, glob) for glob in program.layers) for name in bare.names])
    is_sick, why = RULES[program.kind](bare, first)
    found = is_sick & is_named if program.layers else is_sick
    is_told = is_named if program.kind in ("dead", "saturated") else found
    layers = tuple(name for name, is_one in zip(bare.names, is_told) if is_one) if program.layers else ("",)
    return PairProof(bool(found.any()) and not has_reached, layers, f"{score}; {why}")


def _nonfinite(bare: Bare, first: int | None) -> Evidence:
    is_sick = np.full(len(bare.names), first is not None or np.isnan(bare.score))
    return is_sick, f"first NaN or Inf {first}"


def _exploding(bare: Bare, first: int | None) -> Evidence:
    with np.errstate(all="ignore"):
        update = np.nanmax(np.where(bare.weight_norm > 0, bare.change / bare.weight_norm, 0)[:5], axis=0)
        weights = np.nanmax(np.where(bare.weight_norm[0] > 0, bare.weight_norm / bare.weight_norm[0], 1), axis=0)
        gradient = np.nanmax(np.where(bare.grad_norm[0] > 0, bare.grad_norm / bare.grad_norm[0], 1), axis=0)
    begin = np.sqrt(np.nansum(bare.grad_norm[0] ** 2))
    is_sick = ~((update < TENFOLD) & (weights < HUNDREDFOLD) & (gradient < HUNDREDFOLD))
    is_sick |= not begin < FAR or first is not None
    figures = f"update × {update.max():.3g}, weights × {weights.max():.3g}, gradient × {gradient.max():.3g}"
    return is_sick, f"first gradient {begin:.3g}; {figures}; first NaN or Inf {first}"


def _vanishing(bare: Bare, first: int | None) -> Evidence:
    rms = _carried(bare.grad_rms[: first or None])
    largest = rms.max(axis=1, keepdims=True)
    begin = np.array([next((size for size in column if size > 0), 0.0) for column in rms.T])
    is_tiny = (rms <= SHARE * largest) | (rms <= SHARE * begin)
    is_sick = is_tiny[len(rms) // 2 :].mean(axis=0) >= MOSTLY
    with np.errstate(all="ignore"):
        share = np.median((rms / largest)[len(rms) // 2 :], axis=0)
    return is_sick, f"{is_sick.sum()} of {len(is_sick)} with a gradient of {share.min():.2g} of the largest"


def _carried(rms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``rms`` with each gap, the update of another optimizer, filled by the gradient before it.

    A parameter without any gradient in the last half of the run has one of zero there.
    """
    latest, rows = np.zeros(rms.shape[1]), []
    for row in rms:
        latest = np.where(np.isnan(row), latest, row)
        rows.append(latest)
    carried = np.array(rows)
    half = len(rms) // 2
    carried[half:, np.isnan(rms[half:]).all(axis=0)] = 0.0
    return carried


def _stalled(bare: Bare, first: int | None) -> Evidence:
    half = slice(len(bare.change) // 2, None)
    with np.errstate(all="ignore"):
        moved = np.where(bare.weight_norm > 0, bare.change / bare.weight_norm, bare.change > 0)[half].max(axis=0)
    return moved <= UNMOVED, f"updates of {moved.min():.2g} to {moved.max():.2g} of the weight"


def _unstable(bare: Bare, first: int | None) -> Evidence:
    jumps = int((np.diff(bare.loss) > abs(bare.loss[0])).sum())
    return np.full(len(bare.names), jumps >= JUMPS), f"{jumps} jumps"


def _dead(bare: Bare, first: int | None) -> Evidence:
    return _inactive(bare, {site: silent.mean(axis=1) for site, silent in bare.silent.items()})


def _saturated(bare: Bare, first: int | None) -> Evidence:
    return _inactive(bare, dict(bare.flat))


def _inactive(bare: Bare, shares: dict) -> Evidence:
    means = {}
    for (own, _call), share in shares.items():
        late = share[len(share) // 2 :]
        is_inactive = (late >= INACTIVE).mean() >= MOSTLY
        means.update({name: is_inactive or means.get(name, False) for name in own})
    largest = max((float(np.nanmean(share)) for share in shares.values()), default=0.0)
    return np.array([means.get(name, False) for name in bare.names]), f"{largest:.0%} inactive at most"


RULES = {
    "nonfinite": _nonfinite,
    "exploding": _exploding,
    "vanishing": _vanishing,
    "stalled": _stalled,
    "unstable": _unstable,
    "dead": _dead,
    "saturated": _saturated,
}
