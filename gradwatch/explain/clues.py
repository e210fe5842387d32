"""Facts that join the cause of a finding, and the clues in them that remedies depend on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gradwatch.findings import Clue
from gradwatch.measure.report import Origin, StepReport

__all__ = ["Fact", "clues_of", "module_in_words"]


class Fact(NamedTuple):
    """One sentence of a cause, and what remedies depend on in it: a clue, and the weight that the sentence accuses."""

    words: str
    clue: Clue | None = None
    weight: str = ""


def module_in_words(name: str, *, begins: bool = False) -> str:
    """Return how a sentence calls the module ``name``; a number alone, as in ``nn.Sequential``, would be a riddle.

    Args:
        name: of the module; ``""`` is the model itself.
        begins: whether the sentence begins with it.

    Examples:
        >>> module_in_words("2"), module_in_words("encoder.2"), module_in_words("", begins=True)
        ('module 2', 'encoder.2', 'The model')
    """
    if name and not name.isdecimal():
        return name
    words = f"module {name}" if name else "the model"
    return f"{words[0].upper()}{words[1:]}" if begins else words


def clues_of(report: StepReport) -> Iterator[Clue]:
    """Yield what a step itself shows: where its NaN or Inf came from, and whether scaling can act on its gradients."""
    if report.origin is not None:
        yield from _clues_of_origin(report.origin)
        yield from _made_backward(report.origin, report.loss)
    if report.update == 0 and report.weight_nonfinite is not None and report.weight_nonfinite.any():
        yield "sick from the start"
    if report.overflowed:
        yield "scaler gave up"
    if report.gradients_are_finite and not math.isfinite(report.grad_norm_total):
        yield "norm overflows"


def _made_backward(origin: Origin, loss: float | None) -> Iterator[Clue]:
    if origin.where == "backward" and loss is not None and math.isfinite(loss):
        yield "made backward"


def _clues_of_origin(origin: Origin) -> Iterator[Clue]:
    yield from origin.operations
    yield from origin.clues
    if origin.where == "input":
        yield "bad batch"
    if origin.operation and not origin.operations:
        yield "another operation"
