"""A finding's kind → the remedies and pairs to try, the likeliest first.

Enters: a kind. Leaves: tuples of treatments. What does not fit the model says so itself, when it is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from gradwatch.findings import Kind
from gradwatch.prescription.treatments import TREATMENTS, Treatment

__all__ = ["candidates", "everything"]

_SIGNAL = ("relu", "leaky-relu", "elu", "gelu", "selu", "prelu", "maxout")
_DRAWN = ("he", "xavier", "orthogonal", "depth-scaled")
_NORMED = ("batch-norm", "layer-norm", "rms-norm")
_CLIPPED = ("clip-norm", "clip-value", "clip-adaptive")
_SAFE = ("safe-log", "safe-sqrt", "safe-division", "masked-softmax")
_RECURRENT = ("lstm-gru", "truncated-bptt")

# Singles in the order in which the literature would try them; a slow model is tried on the first of them alone.
_FITTING: dict[Kind, tuple[str, ...]] = {
    "vanishing": ("he", "relu", "batch-norm", "scaled-inputs", "lower-learning-rate", "residual", "xavier", "lstm-gru",
                  "layer-norm", "leaky-relu", "elu", "selu", "gelu", "orthogonal", "higher-learning-rate", "rms-norm",
                  "fewer-layers", "maxout", "prelu", "depth-scaled", "truncated-bptt", "loss-scaling", "clip-norm"),
    "exploding": ("lower-learning-rate", "clip-norm", "scaled-inputs", "clip-adaptive", "clip-value", "warm-up", "he",
                  "batch-norm", "lstm-gru", "layer-norm", "xavier", "orthogonal", "truncated-bptt", "clean-data",
                  "weight-regularisation", "spectral-norm", "gradient-penalty", "weight-clipping", "residual",
                  "rms-norm", "fewer-layers", "safe-log", "safe-division", "smaller-batches"),
    "nonfinite": ("lower-learning-rate", *_SAFE, "clean-data", "scaled-inputs", "clip-norm", "loss-scaling", "he",
                  "batch-norm", "clip-value", "clip-adaptive", "warm-up", "layer-norm", "xavier",
                  "weight-regularisation", "leaky-relu", "lstm-gru", "truncated-bptt", "spectral-norm"),
    "dead": ("he", "leaky-relu", "batch-norm", "lower-learning-rate", "scaled-inputs", "elu", "prelu", "layer-norm",
             "xavier", "gelu", "selu", "orthogonal", "rms-norm", "residual", "maxout", "warm-up", "clip-norm",
             "higher-learning-rate", "weight-regularisation", "fewer-layers"),
    "saturated": ("xavier", "scaled-inputs", "batch-norm", "lower-learning-rate", "relu", "he", "layer-norm",
                  "leaky-relu", "orthogonal", "elu", "gelu", "selu", "rms-norm", "lstm-gru", "masked-softmax",
                  "clip-norm", "warm-up", "residual", "weight-regularisation", "higher-learning-rate", "fewer-layers",
                  "maxout"),
    "stalled": ("higher-learning-rate", "he", "scaled-inputs", "relu", "leaky-relu", "batch-norm", "xavier",
                "layer-norm", "residual", "lower-learning-rate", "loss-scaling", "elu", "orthogonal", "selu"),
    "unstable": ("lower-learning-rate", "clip-norm", "warm-up", "scaled-inputs", "clip-adaptive", "clip-value",
                 "batch-norm", "layer-norm", "weight-regularisation", "he", "xavier", "residual", "smaller-batches"),
}  # fmt: skip

_PAIRS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("he", "xavier"), ("scaled-inputs", "lower-learning-rate", "higher-learning-rate", "batch-norm", "residual",
                        "relu", "leaky-relu", "clip-norm")),
    (("relu", "leaky-relu", "elu"), ("he", "batch-norm", "layer-norm", "residual", "lower-learning-rate",
                                     "higher-learning-rate", "scaled-inputs")),
    (("batch-norm", "layer-norm"), ("residual", "lower-learning-rate", "higher-learning-rate", "scaled-inputs")),
    (("scaled-inputs",), ("lower-learning-rate", "higher-learning-rate", "clip-norm")),
    (("clip-norm",), ("lower-learning-rate", "warm-up", "safe-log", "safe-sqrt", "safe-division", "lstm-gru")),
    (_SAFE, ("lower-learning-rate", "scaled-inputs", "clean-data")),
    (("safe-sqrt", "safe-log"), ("safe-division",)),
    (("clean-data",), ("clip-norm", "lower-learning-rate")),
    (("lstm-gru",), ("higher-learning-rate",)),
)  # fmt: skip


def candidates(kind: Kind) -> list[tuple[Treatment, ...]]:
    """Singles that fit ``kind``, in every strength, then pairs of which both do."""
    fitting = {name: place for place, name in enumerate(_FITTING[kind])}
    singles = sorted((t for t in TREATMENTS if t.remedy in fitting), key=lambda t: (_is_extreme(t), fitting[t.remedy]))
    pairs = [pair for pair in _sensible() if all(t.remedy in fitting for t in pair)]
    pairs.sort(key=lambda pair: sum(fitting[t.remedy] for t in pair))
    return [*((single,) for single in singles), *pairs]


def everything() -> list[tuple[Treatment, ...]]:
    """Every treatment and every sensible pair, whatever was found: what an exhaustive search tries."""
    return [*((single,) for single in TREATMENTS), *_sensible()]


def _sensible() -> Iterator[tuple[Treatment, ...]]:
    """Pairs in the order in which they are applied, each once; of several rates the gentler two."""
    wanted = {frozenset((one, other)) for left, right in _PAIRS for one in left for other in right if one != other}
    for one, other in itertools.combinations(TREATMENTS, 2):
        if frozenset((one.remedy, other.remedy)) in wanted and not _is_extreme(one) and not _is_extreme(other):
            yield one, other


def _is_extreme(treatment: Treatment) -> bool:
    """A strength that is tried alone, and after all others."""
    return treatment.strength in ("-0.001", "-0.0001", "-100")
