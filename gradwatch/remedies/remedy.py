"""What a remedy is: plain values."""

from __future__ import annotations

from dataclasses import dataclass

from gradwatch.findings import Kind

__all__ = ["PRELUDE", "Remedy"]

PRELUDE = """\
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch

model = nn.Sequential(nn.Linear(20, 32), nn.Sigmoid(), nn.Linear(32, 32), nn.Sigmoid(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss_fn = nn.CrossEntropyLoss()
x, y = torch.randn(64, 20), torch.randint(5, (64,))
batches = list(zip(x.split(16), y.split(16)))
loss = loss_fn(model(x), y)
"""
"""What every remedy's ``code`` stands for: a program of somebody's own, with these names."""


@dataclass(frozen=True)
class Remedy:
    """One thing to try against sick gradients.

    Attributes:
        name: its key: in findings (in brackets), in ``examples/remedies/`` and in docs/remedies.md.
        title: what it is called.
        advice: what a finding says; braces hold what is known of the case (``gradwatch.remedies.case.Case.words``).
        applies: to which findings and modules.
        kinds: of findings that it is tried against, whether they advise it or not.
        why: one formula, and what it says.
        source: the paper.
        code: to paste into a program that has the names of ``PRELUDE``: what ``gradwatch.prescribe`` does in a trial.
            What changes ``model`` belongs before its optimizer is made.
        cost: what it takes: time, memory, something else.
    """

    name: str
    title: str
    advice: str
    applies: str
    kinds: tuple[Kind, ...]
    why: str
    source: str
    code: str
    cost: str
