"""Define a program of this benchmark: a small training run, and where its first NaN or Inf is made.

Nothing here uses gradwatch, or depends on how the truths are proven.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.detection.program import Training

Make = Callable[[int], Training]

PLACES = ("forward", "backward", "loss", "input", "between")
CAUSES = (
    "log", "sqrt", "division", "exp", "softmax", "norm", "pow", "acos", "atan2", "overflow", "input", "weight",
    "diverged", "loss scale", "derivative", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """The place where the first NaN or Inf of a run is made; ``prove.py`` proves it.

    Attributes:
        module: dotted name of the innermost module whose forward (or backward) pass was given finite values and
            returned a value that is not; "" for the model's own forward, and for a place outside the model.
        place: ``forward`` or ``backward`` pass of that module; ``loss``, computed from the model's outputs (its value
            or its derivative); ``input``, the data; ``between``, made by the loop between two calls of modules.
        cause: one of ``CAUSES``.
        operation: torch's name of the operation; in a backward pass, of the operation whose derivative failed.
        note: one sentence that says why: the first line of the program's docstring.
        rows: the bad rows of the batch; for ``input`` alone.
        weight: name of the corrupt parameter or buffer; for the cause ``weight`` alone.
    """

    module: str
    place: str
    cause: str
    operation: str
    note: str
    rows: tuple[int, ...] = ()
    weight: str = ""


ORIGINS: dict[str, tuple[Make, Truth]] = {}


def origin(
    module: str, place: str, cause: str, operation: str, *, rows: tuple[int, ...] = (), weight: str = ""
) -> Callable[[Make], Make]:
    """Register a program under the name of the function that makes it."""
    if place not in PLACES or cause not in CAUSES:
        raise ValueError(f"place={place!r}, cause={cause!r}: expected one of {PLACES} and one of {CAUSES}")

    def register(make: Make) -> Make:
        if make.__name__ in ORIGINS:
            raise ValueError(f"two programs are called {make.__name__!r}")
        note = (make.__doc__ or "").splitlines()[0]
        ORIGINS[make.__name__] = make, Truth(module, place, cause, operation, note, rows, weight)
        return make

    return register


def is_measured(name: str) -> bool:
    """Tell whether a program belongs to the half that is only measured, and that nothing is tuned on."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1
