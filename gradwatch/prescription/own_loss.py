"""Take the loss from what a model returns, where it is given whole batches, and the optimizer that goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.prescription.argument_errors import ArgumentTypeError

__all__ = ["adam_of_trainer", "own_loss"]


def own_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the loss that a model has computed itself.

    Args:
        outputs: the loss; or an output that has it as ``.loss`` or ``["loss"]``, or is a tuple with one scalar.
        targets: are part of the batch that the model was given, so they are not used.

    Raises:
        ArgumentTypeError: if there is none.
    """
    loss = _loss_among(outputs)
    if isinstance(loss, Tensor):
        return loss
    found = "None" if outputs is None else f"{type(outputs).__name__} without one"
    raise ArgumentTypeError(
        "loss_fn: it is None, so the model or its training_step was expected to return the loss, as a scalar, .loss or "
        f'["loss"]; found {found}. Put the labels into the batches, or give loss_fn.'
    )


def adam_of_trainer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer that a Hugging Face ``Trainer`` makes without any settings: AdamW at a rate of 5e-5."""
    return torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.0)


def _loss_among(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    if isinstance(outputs, tuple) and not hasattr(outputs, "loss"):
        scalars = [each for each in outputs if isinstance(each, Tensor) and each.ndim == 0]
        return scalars[0] if len(scalars) == 1 else None
    return getattr(outputs, "loss", None)
