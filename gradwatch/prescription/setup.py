"""How a trial trains: what a remedy changes.

Enters: a fresh model and the problem. Leaves: one object of plain fields that treatments change in place. Knows nothing
of which treatments there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradwatch.clip import Policy
from gradwatch.prescription.formulas import SafeForm
from gradwatch.prescription.problem import Batch

__all__ = ["NotApplicableError", "Setup"]


class NotApplicableError(Exception):
    """Why a remedy cannot be given to this model."""


@dataclass
class Setup:
    """One way to train.

    Attributes:
        model: the trial's own.
        batches: to train on.
        loss_fn: (outputs, targets) → scalar.
        inputs_of: inputs → those that the model is given.
        targets_of: targets → those that are trained on.
        outputs_of: outputs → the same in the unit of the targets that the user gave.
        rate: what every learning rate is multiplied by.
        warm_up: over so many updates the rate rises from next to nothing.
        clip: as ``gradwatch.watch`` takes it.
        penalty: (model, inputs) → what is added to the loss while training.
        loss_scale: what the loss is multiplied by before, and gradients are divided by after the backward pass.
        after_update: done to the model after each update.
        modes: what torch functions mean in the forward pass and in the loss.
        not_done: what of the treatments could not be done, or not by their code, and why.
    """

    model: nn.Module
    batches: list[Batch]
    loss_fn: Callable[[Any, Any], Tensor]
    inputs_of: Callable[[Any], Any] = lambda inputs: inputs
    targets_of: Callable[[Any], Any] = lambda targets: targets
    outputs_of: Callable[[Any], Any] = lambda outputs: outputs
    rate: float = 1.0
    warm_up: int = 0
    clip: float | str | Policy | None = None
    penalty: Callable[[nn.Module, Any], Tensor] | None = None
    loss_scale: float = 1.0
    after_update: Callable[[nn.Module], None] | None = None
    modes: list[SafeForm] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)

    def within(self, mode: TorchFunctionMode) -> None:
        """From now on the model's forward pass runs in ``mode``, the names of its parameters unchanged."""
        forward = self.model.forward

        @functools.wraps(forward)
        def treated(*args: Any, **named: Any) -> Any:
            with mode:
                return forward(*args, **named)

        self.model.forward = treated
