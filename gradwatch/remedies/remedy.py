"""What a remedy is: plain values."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRELUDE", "Remedy"]

PRELUDE = """\
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch

inputs, targets = torch.randn(64, 20), torch.randint(5, (64,))
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
"""What stands before every remedy's ``code``."""


@dataclass(frozen=True)
class Remedy:
    """One thing to try against sick gradients.

    Attributes:
        name: its key: in findings (in brackets), in ``examples/remedies/`` and in docs/remedies.md.
        title: what it is called.
        advice: what a finding says; braces hold what is known of the case (``gradwatch.remedies.case.Case.words``).
        applies: to which findings and modules.
        why: one formula, and what it says.
        source: the paper.
        code: how it is written in PyTorch; runs after ``PRELUDE``.
        cost: what it takes: time, memory, something else.
    """

    name: str
    title: str
    advice: str
    applies: str
    why: str
    source: str
    code: str
    cost: str
