"""Describe a remedy as plain values: the text about it, and the lines of Python that make its change.

``gradwatch.prescribe`` executes those very lines in its trials, and prints them for the user to paste.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from gradwatch.findings import Kind

__all__ = ["PRELUDE", "Change", "NotApplicableError", "PartlyAppliedWarning", "Place", "Remedy", "code_of"]

PRELUDE = """\
import torch
from torch import nn

import gradwatch

model = nn.Sequential(nn.Linear(20, 32), nn.Sigmoid(), nn.Linear(32, 32), nn.Sigmoid(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss_fn = nn.CrossEntropyLoss()
x, y = torch.randn(64, 20), torch.randint(5, (64,))
batches = list(zip(x.split(16), y.split(16)))
loss = loss_fn(model(x), y)
"""
"""The user's own program, with the names that the code of every remedy uses."""

Place = Literal["before the optimizer is made", "after the optimizer is made", "before loss.backward()",
                "after optimizer.step()"]  # fmt: skip
"""Where in a training program the lines of a change belong."""


class NotApplicableError(ValueError):
    """The reason why a remedy cannot be given to this model or this data."""


class PartlyAppliedWarning(UserWarning):
    """The part of a remedy that could not be done, and the reason."""


@dataclass(frozen=True)
class Change:
    """Lines of Python that make one change to a training program.

    Attributes:
        place: where in the program they belong.
        lines: the Python; the names that it uses are those of ``PRELUDE``.
        functions: names of ``gradwatch.remedies`` that the lines use.
    """

    place: Place
    lines: str
    functions: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        """The lines with their import, to paste or to execute."""
        return code_of([self])


def code_of(changes: Iterable[Change]) -> str:
    """Return the code of several changes: one import, then the lines of each place in the order of a training step."""
    changes = list(changes)
    functions = sorted({name for change in changes for name in change.functions}, key=str.swapcase)
    parts = [f"from gradwatch.remedies import {', '.join(functions)}\n"] if functions else []
    for place in get_args(Place):
        lines = [change.lines for change in changes if change.place == place]
        parts += [f"# {place}\n" + "\n".join(lines) + "\n"] if lines else []
    return "\n".join(parts).rstrip("\n")


@dataclass(frozen=True)
class Remedy:
    """One thing to try against sick gradients.

    Attributes:
        name: its key, in findings, in ``examples/remedies/`` and in docs/remedies.md.
        title: the heading of its section.
        advice: the text of an ``Advice``; braces hold what is known of the case (``Case.words``).
        applies: the findings and modules that it fits.
        kinds: of findings that it is tried against, whether they advise it or not.
        why: one formula, and what it says.
        source: the paper.
        change: the lines of Python that make the change.
        cost: time, memory or anything else that it takes.
        strengths: strength → the change in that strength, where there are several; ``change`` is the gentlest.
    """

    name: str
    title: str
    advice: str
    applies: str
    kinds: tuple[Kind, ...]
    why: str
    source: str
    change: Change
    cost: str
    strengths: Mapping[float, Change] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The change, to paste."""
        return self.change.code
