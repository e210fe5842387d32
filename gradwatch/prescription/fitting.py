"""List the remedies and pairs to try, the likeliest first.

``gradwatch.remedies`` says which remedy fits which finding. What does not fit the model raises when it is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from gradwatch import remedies
from gradwatch.findings import Finding, Kind
from gradwatch.prescription.treatments import TREATMENTS, Treatment

__all__ = ["advised_for", "candidates", "everything"]

_SAFE = ("safe-log", "safe-sqrt", "safe-division", "masked-softmax")

_PAIRS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("he", "xavier"), ("scaled-inputs", "lower-learning-rate", "higher-learning-rate", "batch-norm", "residual",
                        "relu", "leaky-relu", "clip-norm")),
    (("relu", "leaky-relu", "elu"), ("he", "batch-norm", "layer-norm", "residual", "lower-learning-rate",
                                     "higher-learning-rate", "scaled-inputs")),
    (("batch-norm", "layer-norm"), ("residual", "lower-learning-rate", "higher-learning-rate", "scaled-inputs")),
    (("scaled-inputs",), ("lower-learning-rate", "higher-learning-rate", "clip-norm")),
    (("clip-norm",), ("lower-learning-rate", "warm-up", "safe-log", "safe-sqrt", "safe-division", "lstm-gru")),
    (_SAFE, ("lower-learning-rate", "scaled-inputs")),
    (("safe-sqrt", "safe-log"), ("safe-division",)),
    (("clean-data",), ("clip-norm", "lower-learning-rate")),
    (("lstm-gru",), ("higher-learning-rate",)),
    # An output that passes no gradient hides what else is wrong: nothing shows until it is mended.
    (("linear-output", "softmax-over-classes", "output-probabilities"), ("scaled-inputs", "lower-learning-rate",
                                                                         "higher-learning-rate", "batch-norm")),
)  # fmt: skip


def candidates(kind: Kind, findings: Sequence[Finding] = ()) -> list[tuple[Treatment, ...]]:
    """Return the treatments that fit ``kind``, in every strength, then pairs of which both fit.

    First come the remedies that ``findings`` of this kind advise, in their order, then the rest of the library: a slow
    model is given the first of them alone. Strengths far from the user's own come last among singles.
    """
    places = {name: place for place, name in enumerate(_fitting_remedies(kind, findings))}
    singles = sorted((t for t in TREATMENTS if t.remedy in places), key=lambda t: (_is_extreme(t), places[t.remedy]))
    pairs = [pair for pair in _sensible() if all(t.remedy in places for t in pair)]
    pairs.sort(key=lambda pair: sum(places[t.remedy] for t in pair))
    return [*((single,) for single in singles), *pairs]


def everything() -> list[tuple[Treatment, ...]]:
    """Return every treatment and every sensible pair, whatever was found, for an exhaustive search."""
    return [*((single,) for single in TREATMENTS), *_sensible()]


def _fitting_remedies(kind: Kind, findings: Sequence[Finding]) -> list[str]:
    """Return the names of the remedies that fit ``kind``: those that its findings advise, then the others."""
    names = dict.fromkeys([*advised_for(kind, findings), *remedies.LIBRARY])
    return [name for name in names if kind in remedies.LIBRARY[name].kinds]


def advised_for(kind: Kind, findings: Sequence[Finding]) -> list[str]:
    """Return the names of the remedies that findings of ``kind`` advise, in their order."""
    return [advice.name for found in findings if found.kind == kind for advice in found.remedies]


def _sensible() -> Iterator[tuple[Treatment, ...]]:
    """Yield each pair once, in the order in which its parts are applied; of several rates the gentler ones."""
    wanted = {frozenset((one, other)) for left, right in _PAIRS for one in left for other in right if one != other}
    for one, other in itertools.combinations(TREATMENTS, 2):
        if frozenset((one.remedy, other.remedy)) in wanted and not _is_extreme(one) and not _is_extreme(other):
            yield one, other


def _is_extreme(treatment: Treatment) -> bool:
    """Return whether a strength is tried alone, and after all others."""
    return treatment.strength in ("-0.001", "-0.0001", "-100")
