"""Which remedies fit a case, best first.

The order within a kind follows what the runs of ``examples/remedies/`` showed (docs/remedies.md): what acts on the
cause stands before what acts on everything, and what was measured not to help is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradwatch.remedies.case import Case

__all__ = ["fitting"]


def fitting(case: Case) -> tuple[str, ...]:
    """Names of remedies, best first, each once."""
    return tuple(dict.fromkeys(_CHOICES[case.kind](case)))


def _vanishing(case: Case) -> Iterator[str]:
    if case.is_half:
        yield "loss-scaling"
    if "no gradient" in case.clues:
        yield from _silent(case)
    if "dead units" in case.clues:
        yield from _dead(case)
    if {"weights small", "weights alike"} & case.clues:
        yield from _starts(case)
    if case.is_recurrent:
        yield from ("orthogonal", "lstm-gru", "truncated-bptt")
    elif not case.slopes_below_one:  # twenty sigmoids fade under any initialisation
        yield from _starts(case)
    yield from _normalisations(case)
    if case.squashes:
        yield "relu"
    if not case.is_residual and not case.is_embedding:
        yield "residual"
    if case.squashes and not case.normalises:
        yield from ("selu", "elu")
    yield "fewer-layers"


def _silent(case: Case) -> Iterator[str]:
    """No gradient anywhere: an update went too far, or what the first layer is given does."""
    yield "lower-learning-rate"
    if not case.clips:
        yield "clip-norm"
    yield "scaled-inputs"
    if case.rectifies:
        yield "leaky-relu"


def _exploding(case: Case) -> Iterator[str]:
    if case.is_critic:
        yield from ("gradient-penalty", "spectral-norm")
    if "rate rose" in case.clues:
        yield from ("lower-learning-rate", "warm-up")
    if "weights large" in case.clues:
        yield from _starts(case)
    if not case.clips:
        yield from ("clip-value", "clip-norm") if case.is_embedding else ("clip-norm",)
    yield "lower-learning-rate"
    if case.is_recurrent:
        yield "lstm-gru"
    if case.is_recurrent or case.is_gated:
        yield "truncated-bptt"
    if case.touches_input and not case.is_embedding:
        yield "scaled-inputs"
    if not case.clips and not case.is_embedding:
        yield "clip-adaptive"  # against rare spikes: it never clips the first step, and follows a steady growth
    if case.is_residual:
        yield "depth-scaled"
    yield "warm-up"
    yield from _normalisations(case)
    yield "smaller-batches"


_SAFE = {
    "logarithm": ("safe-log",),
    "root": ("safe-sqrt",),
    "division": ("safe-division", "safe-sqrt"),  # a divisor is often a norm or deviation: its epsilon belongs inside
    "softmax": ("masked-softmax",),
}


def _nonfinite(case: Case) -> Iterator[str]:
    if "bad batch" in case.clues:
        yield "clean-data"
    if "overflow of float16" in case.clues or "scaler gave up" in case.clues or case.is_half:
        yield from ("loss-scaling", "lower-learning-rate")
    if "diverged" in case.clues:
        yield from _exploding(case)
    for clue, names in _SAFE.items():
        if clue in case.clues:
            yield from names
    if "overflow" in case.clues:
        yield from _exploding(case)
    if case.clues & {*_SAFE, "bad batch", "overflow", "diverged", "overflow of float16", "scaler gave up"}:
        return  # the cause is known
    if case.attends:
        yield "masked-softmax"
    yield from ("clean-data", "safe-log", "safe-sqrt", "safe-division", "lower-learning-rate")
    if not case.clips:
        yield "clip-norm"


def _dead(case: Case) -> Iterator[str]:
    if "bias far out" in case.clues or {"weights large", "weights alike"} & case.clues:
        yield "he"
    if "large outputs" in case.clues and case.touches_input:
        yield "scaled-inputs"
    yield "lower-learning-rate"
    if not case.clips:
        yield "clip-norm"
    if case.touches_input:
        yield "scaled-inputs"
    if case.rectifies:
        yield from ("leaky-relu", "elu", "gelu")
        if case.is_convolution:
            yield "prelu"
    yield from _normalisations(case)
    yield "he"


def _saturated(case: Case) -> Iterator[str]:
    if {"weights large", "bias far out"} & case.clues:
        yield "xavier"
    if "large outputs" in case.clues and case.touches_input:
        yield "scaled-inputs"
    yield from _normalisations(case)
    yield from ("scaled-inputs", "xavier") if case.touches_input else ("xavier",)
    yield "lower-learning-rate"
    if case.squashes:
        yield from ("relu", "gelu")


def _stalled(case: Case) -> Iterator[str]:
    if case.is_half:
        yield "loss-scaling"
    yield "higher-learning-rate"
    if "weights alike" in case.clues:
        yield from _starts(case)
    if case.squashes:
        yield "scaled-inputs"
    if case.is_recurrent:
        yield "lstm-gru"
    yield from _normalisations(case)


def _unstable(case: Case) -> Iterator[str]:
    if case.is_critic:
        yield from ("gradient-penalty", "spectral-norm")
    yield "lower-learning-rate"
    if not case.clips:
        yield "clip-norm"
    yield "warm-up"
    if case.touches_input:
        yield "scaled-inputs"
    yield from _normalisations(case)


def _starts(case: Case) -> Iterator[str]:
    """Initialisations that fit the function behind the sick layers."""
    if case.is_recurrent:
        yield "orthogonal"
    elif not case.is_embedding:
        yield "xavier" if case.attends or (case.squashes and not case.rectifies) else "he"
    if case.is_residual:
        yield "depth-scaled"


def _normalisations(case: Case) -> Iterator[str]:
    if case.normalises or case.is_embedding:
        return
    if case.attends:
        yield from ("layer-norm", "rms-norm")
    elif case.is_recurrent or case.is_gated:
        yield "layer-norm"
    else:
        yield "batch-norm"
        if not case.is_convolution and not case.slopes_below_one:
            yield "layer-norm"


_CHOICES: dict[str, Callable[[Case], Iterator[str]]] = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "nonfinite": _nonfinite,
    "dead": _dead,
    "saturated": _saturated,
    "stalled": _stalled,
    "unstable": _unstable,
}
