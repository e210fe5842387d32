"""List what trials are given: every remedy of the library in every strength."""

from __future__ import annotations

from dataclasses import dataclass

from gradwatch import remedies
from gradwatch.remedies import LIBRARY, Change

__all__ = ["TREATMENTS", "Treatment", "code_of", "name_of"]


@dataclass(frozen=True)
class Treatment:
    """One remedy in one strength.

    Attributes:
        remedy: its name in ``gradwatch.remedies``.
        change: the lines that a trial executes and a user pastes.
        strength: of the remedy, or empty if it has a single one.
    """

    remedy: str
    change: Change
    strength: str = ""


def name_of(treatments: tuple[Treatment, ...]) -> str:
    """Return the names joined as trials show them: ``he + residual``."""
    return " + ".join(treatment.remedy for treatment in treatments)


def code_of(treatments: tuple[Treatment, ...]) -> str:
    """Return the code of several treatments, to paste."""
    return remedies.code_of(treatment.change for treatment in treatments)


_ORDER = (
    "clean-data", "initialise", "nonzero-gain", "lstm-gru", "fewer-layers", "linear-output", "maxout", "relu",
    "leaky-relu", "prelu", "elu", "selu", "gelu", "he", "xavier",
    "orthogonal", "depth-scaled", "residual", "batch-norm", "layer-norm", "rms-norm", "spectral-norm",
    "truncated-bptt", "scaled-layer-inputs", "scaled-inputs", "smaller-batches", "loss-scaling", "float32-weights",
    "bfloat16", "safe-log", "safe-sqrt", "safe-division", "masked-softmax", "safe-power", "safe-angle", "jitter",
    "softmax-over-classes", "output-probabilities", "weight-regularisation", "gradient-penalty", "weight-clipping",
    "optimizer-epsilon", "safe-update", "finite-rate", "skip-step", "own-parameters", "longer-schedule",
    "looser-clip", "clip-norm", "clip-value", "clip-adaptive", "warm-up",
    "lower-learning-rate", "higher-learning-rate",
    "clip-before-step", "zero-grad", "zero-grad-after-step", "unscale-first", "train-mode", "target-network",
    "non-saturating-loss",
)  # fmt: skip
"""The order in which two of a pair are applied: a function is replaced before weights are drawn for it, those before a
layer is wrapped, since what looks for layers would not find them inside another."""


def _in_every_strength(name: str) -> list[Treatment]:
    remedy = LIBRARY[name]
    if not remedy.strengths:
        return [Treatment(name, remedy.change)]
    return [Treatment(name, change, f"-{strength:g}") for strength, change in remedy.strengths.items()]


TREATMENTS: tuple[Treatment, ...] = tuple(each for name in _ORDER for each in _in_every_strength(name))
"""In the order in which those of a pair are applied."""
