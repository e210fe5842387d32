"""Make models from a model that the user gave in place of a function."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradwatch import _torch
from gradwatch.prescription.argument_errors import ArgumentTypeError
from gradwatch.prescription.loaded_batches import is_a

__all__ = ["ModelCopies"]

FIRST = 0  # the seed under which a copy keeps the weights of the original


@dataclass(frozen=True)
class ModelCopies:
    """A function that returns copies of a model.

    Under the first seed a copy keeps the weights as they are: it is they that may be sick. Under any other seed they
    are drawn anew by ``reset_parameters``. Hugging Face models always keep theirs, since they may have been loaded.
    """

    original: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> ModelCopies:
        """Return copies of ``model``.

        Raises:
            ArgumentTypeError: if it cannot be copied, or its weights cannot be drawn anew.
        """
        copies = cls(model)
        stuck = [] if copies.keeps_weights else [part for part in model.modules() if _is_stuck(part)]
        if stuck:
            raise ArgumentTypeError(
                f"make_model: found a model ({type(model).__name__}), whose weights each seed has to draw anew, but "
                f"{type(stuck[0]).__name__} holds parameters and has no reset_parameters(). Give a function that makes "
                f"the model: lambda: {type(model).__name__}(…)."
            )
        copies.copied()
        return copies

    @property
    def keeps_weights(self) -> bool:
        """Return whether the weights are the same under every seed."""
        return is_a(self.original, "PreTrainedModel", "PeftModel")

    def copied(self) -> nn.Module:
        """Return a copy with the same weights."""
        try:
            return copy.deepcopy(self.original)
        except Exception as error:
            name = type(self.original).__name__
            raise ArgumentTypeError(
                f"make_model: found a model ({name}) that cannot be copied: {type(error).__name__}: "
                f"{str(error).rstrip('.')}. Give a function that makes the model: lambda: {name}(…)."
            ) from error

    def __call__(self) -> nn.Module:
        model = self.copied()
        if not self.keeps_weights and torch.initial_seed() != FIRST:
            for part in model.modules():
                if _holds_parameters(part):
                    redrawn: Any = part
                    redrawn.reset_parameters()
        return model


def _holds_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in _torch.own_parameters(module).values())


def _is_stuck(module: nn.Module) -> bool:
    return _holds_parameters(module) and not callable(getattr(module, "reset_parameters", None))
