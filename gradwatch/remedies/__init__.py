"""Say what to do about a finding, best remedy first.

Enters: a ``Case``, which is a kind, the table of layers and what the cause says. Leaves: sentences, each with the name
of its remedy in brackets; ``LIBRARY`` has all remedies. Knows nothing of figures, and loads no torch.
"""

from __future__ import annotations

from gradwatch.remedies import (
    activations,
    clipping,
    data,
    initialisation,
    learning_rate,
    lipschitz,
    normalisation,
    precision,
    recurrent,
    redesign,
    residual,
    safe_forms,
)
from gradwatch.remedies.case import Case
from gradwatch.remedies.choice import fitting
from gradwatch.remedies.remedy import PRELUDE, Remedy

__all__ = ["FAMILIES", "LIBRARY", "PRELUDE", "Case", "Remedy", "advise", "fitting", "name_of"]

FAMILIES: dict[str, tuple[Remedy, ...]] = {
    "learning_rate": learning_rate.REMEDIES,
    "data": data.REMEDIES,
    "safe_forms": safe_forms.REMEDIES,
    "clipping": clipping.REMEDIES,
    "initialisation": initialisation.REMEDIES,
    "normalisation": normalisation.REMEDIES,
    "activations": activations.REMEDIES,
    "residual": residual.REMEDIES,
    "recurrent": recurrent.REMEDIES,
    "precision": precision.REMEDIES,
    "redesign": redesign.REMEDIES,
    "lipschitz": lipschitz.REMEDIES,
}
"""Remedies by family, which is a file here, one in ``examples/remedies/`` and a heading of docs/remedies.md.

First those that leave the model as it is, then those that change its weights, its layers, all of it: the order in which
``gradwatch.prescribe`` tries what no finding has advised.
"""

LIBRARY: dict[str, Remedy] = {remedy.name: remedy for family in FAMILIES.values() for remedy in family}
"""Every remedy by name."""


def advise(case: Case) -> tuple[str, ...]:
    """What a finding says under "what to try": those that fit the sick layers and the cause, best first."""
    return tuple(f"{LIBRARY[name].advice.format(**case.words)} ({name})" for name in fitting(case))


def name_of(advice: str) -> str:
    """The name of the remedy that a sentence of ``advise`` speaks of."""
    return advice.rpartition("(")[2].rstrip(")")
