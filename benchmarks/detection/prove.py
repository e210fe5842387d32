"""Every label, proven on the bare run: ``python -m benchmarks.detection.prove [NAME…]``.

The criteria say what each word means. They look at the whole run, the future included, in float64; a detector may not.

nonfinite: a gradient entry or the loss is NaN or Inf. Onset: the first such update. Layers: those with such entries.
exploding: before anything is NaN or Inf, a layer's norm rises to ten times its median over all updates before (over the
    first, where it is the first few), and harm follows: within 10 updates the loss is NaN or Inf, or larger than it
    ever was before by half. Onset: the first such update. Layers: those at five times their own
    median then or within three updates.
vanishing: in a lasting stretch, from its onset to the last update (a tenth of the run, ten updates, or more) or for at
    least half of the run, the root mean square of layers' gradients is below a 500th of the largest (or exactly zero),
    and the run has not got down to 1.2 times the loss that the cured program attains. Layers: those.
stalled: no weight (of those named, where some are) moves by more than a millionth of its norm an update, or by more
    than a tenth of it in all updates together; and the loss stays above 1.2 times attainable.
unstable: the loss jumps up by its own first value at least six times within some forty updates.
dead: in a lasting stretch, 30 updates or more that reach the last one or are half of the run, the same 80 % or more of
    the units of a rectifier pass no gradient, |f'| ≤ 1e-3, on any entry that they meet, and the loss stays above 1.2
    times attainable, where that is given. Layers: the parameters of the module called last before the rectifier.
saturated: in such a stretch, 80 % or more of the entries of a squashing function have a slope below 5 % of its steepest
    (of a softmax: 80 % of its rows one probability p > 1/2 with 4p(1 − p) below 5 %), and the loss stays above 1.2
    times attainable. Layers: likewise.
healthy: no gradient or loss is NaN or Inf, and the mean of the last tenth of the losses is at most ``falls_to`` times
    that of the first twentieth.
"""

from __future__ import annotations

import fnmatch
import sys
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.detection.bare import Bare, run_bare
from benchmarks.detection.program import PROGRAMS, Program
from benchmarks.detection.prove_others import prove_other

SEEDS = (0, 1, 2)
GROWTH, SHARE, SOON = 10.0, 2e-3, 10
INACTIVE, LASTING = 0.8, 30


@dataclass(frozen=True)
class Proof:
    """What the bare run shows of a program under one seed.

    Attributes:
        holds: whether the label is true.
        onset: first sick update.
        layers: the sick ones.
        first_nonfinite: first update at which a gradient or the loss is NaN or Inf, None where none is.
        why: in words, with figures.
    """

    holds: bool
    onset: int
    layers: tuple[str, ...]
    first_nonfinite: int | None
    why: str


def prove(program: Program, bare: Bare) -> Proof:
    """Measures the claim of ``program`` on its bare run."""
    sick = np.flatnonzero((bare.nonfinite.sum(1) > 0) | (bare.observed & ~np.isfinite(bare.loss)))
    first = int(sick[0]) if len(sick) else None
    if program.pair is not None:
        other = prove_other(program, bare, first)
        onset = (first or 0) if program.kind == "nonfinite" else 0
        return Proof(other.holds, onset, other.layers, first, other.why)
    if program.kind is None:
        begin = np.nanmean(bare.loss[: max(1, len(bare.loss) // 20)])
        end = np.nanmean(bare.loss[-max(1, len(bare.loss) // 10) :])
        holds = first is None and bool(end <= program.falls_to * begin)
        return Proof(holds, 0, (), first, f"loss {begin:.4g} → {end:.4g}, first NaN or Inf {first}")
    onset, layers, why = {
        "nonfinite": _nonfinite,
        "exploding": _exploding,
        "vanishing": _vanishing,
        "stalled": _stalled,
        "unstable": _unstable,
        "dead": _dead,
        "saturated": _saturated,
    }[program.kind](bare, first, program)
    if program.layers:
        layers = tuple(name for name in layers if any(fnmatch.fnmatchcase(name, glob) for glob in program.layers))
        onset = onset if layers else None
    return Proof(onset is not None, -1 if onset is None else onset, layers, first, why)


def _nonfinite(bare, first, program):
    if first is None:
        return None, (), "nothing is NaN or Inf"
    layers = tuple(name for name, count in zip(bare.names, bare.nonfinite[first]) if count) or ("",)
    return first, layers, f"first at {first} in {len(layers)} of {len(bare.names)}"


def _exploding(bare, first, program):
    norms = np.where(np.isfinite(bare.grad_norm), bare.grad_norm, np.nan)
    for step in range(1, len(norms) if first is None else first):
        with np.errstate(all="ignore"):
            past = np.nanmedian(np.where(norms[:step] > 0, norms[:step], np.nan), axis=0)
            growth = norms[step] / past
        if np.nanmax(growth, initial=0) < GROWTH:
            continue
        before = np.nanmax(np.abs(bare.loss[:step]), initial=0.0)
        after = np.nanmax(np.abs(bare.loss[step : step + SOON]), initial=0.0)
        harm = (first is not None and first < step + SOON) or bool(after > 1.5 * before)
        if harm:
            with np.errstate(all="ignore"):
                soon = np.nanmax(norms[step : step + 4], axis=0) / past
            layers = tuple(name for name, factor in zip(bare.names, soon) if factor >= GROWTH / 2)
            return step, layers, f"× {np.nanmax(growth):.3g} at {step}, loss before {before:.3g}, NaN at {first}"
    return None, (), f"no norm rose ten times with harm, NaN at {first}"


def _vanishing(bare, first, program):
    end = len(bare.grad_rms) if first is None else first
    rms = bare.grad_rms[:end]
    is_weight = np.array([not np.isnan(rms[:, i]).all() for i in range(rms.shape[1])])
    with np.errstate(all="ignore"):
        largest = np.nanmax(np.where(is_weight, rms, np.nan), axis=1, keepdims=True)
        tiny = (rms < SHARE * largest) | (rms == 0)
    late = program.attainable is None or not np.nanmean(bare.loss[-max(1, end // 10) :]) <= 1.2 * program.attainable
    best, run = None, 0
    for step in range(end):
        run = run + 1 if tiny[step].any() else 0
        if run >= (max(SOON, end / 10) if step == end - 1 else end / 2):
            best = step - run + 1
            break
    if best is None or not late:
        return None, (), f"no lasting vanishing (or loss attained: {not late})"
    share = tiny[best : step + 1].mean(0)
    layers = tuple(name for name, often in zip(bare.names, share) if often > 0.5)
    last = float(np.nanmean(bare.loss[-max(1, end // 10) :]))
    return best if layers else None, layers, f"since {best} in {len(layers)}, loss {last:.4g} of {program.attainable}"


def _stalled(bare, first, program):
    with np.errstate(all="ignore"):
        moved = np.where(bare.weight_norm > 0, bare.change / bare.weight_norm, 0)
    if program.layers:
        named = [any(fnmatch.fnmatchcase(name, glob) for glob in program.layers) for name in bare.names]
        moved = moved[:, named]
        names = tuple(name for name, is_named in zip(bare.names, named) if is_named)
    else:
        names = ("",)
    is_still = bool((moved < 1e-6).all()) or (program.attainable is not None and bool((moved.sum(0) < 0.1).all()))
    late = program.attainable is None or np.nanmean(bare.loss[-10:]) > 1.2 * program.attainable
    holds = first is None and is_still and late
    why = f"largest update {moved.max():.3g} of its weight, {moved.sum(0).max():.3g} in all"
    return (0 if holds else None), names, why


def _unstable(bare, first, program):
    rises = np.diff(bare.loss) > abs(bare.loss[0])
    for step in range(len(rises)):
        if rises[max(0, step - 39) : step + 1].sum() >= 6:
            return int(np.flatnonzero(rises)[0]) + 1, ("",), f"six jumps by {step + 1}"
    return None, (), f"{int(rises.sum())} jumps in all"


def _dead(bare, first, program):
    return _inactive(bare.silent, bare, first, program)


def _saturated(bare, first, program):
    with np.errstate(invalid="ignore"):
        flat = {site: (share >= INACTIVE)[:, None] for site, share in bare.flat.items()}
    return _inactive(flat, bare, first, program)


def _inactive(masks, bare, first, program):
    """Where ``masks``, site → (S, U) bool, last: the first onset, and the layers that ever come to it."""
    end = len(bare.loss) if first is None else first
    onsets = {site: _lasting(mask[:end]) for site, mask in masks.items()}
    onsets = {site: onset for site, onset in onsets.items() if onset is not None}
    last = float(np.nanmean(bare.loss[end - max(1, end // 10) : end]))
    attained = program.attainable is not None and last <= 1.2 * program.attainable
    if program.layers:
        onsets = {
            (own, call): onset
            for (own, call), onset in onsets.items()
            if any(fnmatch.fnmatchcase(name, glob) for name in own for glob in program.layers)
        }
    if not onsets or attained:
        return None, (), f"nothing lasts (or loss attained: {attained}, {last:.4g})"
    layers = tuple(dict.fromkeys(name for own, _ in onsets for name in own))
    since = min(onsets.values())
    return since, layers, f"since {since} at {len(onsets)} of {len(masks)}, loss {last:.4g} of {program.attainable}"


def _lasting(mask):
    """First update of a lasting stretch through which the same units, ``INACTIVE`` of all or more, are True."""
    end, units = mask.shape
    needed = int(np.ceil(INACTIVE * units))
    runs = np.zeros(units, dtype=int)
    for step in range(end):
        runs = np.where(mask[step], runs + 1, 0)
        longest = int(np.sort(runs)[-needed])
        if longest >= (LASTING if step == end - 1 else max(LASTING, end / 2)):
            return step - longest + 1
    return None


def main(names: list[str]) -> int:
    """Proves the programs named, or all; prints each; returns how many claims failed."""
    from benchmarks.detection import faulty, healthy, others  # noqa: F401  they register themselves

    failed = 0
    for program in [PROGRAMS[name] for name in names] or PROGRAMS.values():
        for seed in SEEDS:
            begin = time.perf_counter()
            proof = prove(program, run_bare(program, seed))
            seconds = time.perf_counter() - begin
            failed += not proof.holds
            verdict = "proven" if proof.holds else "NOT PROVEN"
            layers = ", ".join(proof.layers[:4]) + (" …" if len(proof.layers) > 4 else "")
            print(
                f"{verdict} {program.name} seed {seed}: {program.kind or 'healthy'} since {proof.onset} in [{layers}]: "
                f"{proof.why} ({seconds:.1f} s)",
                flush=True,
            )
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
