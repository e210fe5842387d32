"""Turn the loss and the optimizer of a Keras program into torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from benchmarks.external.keras_layers import NoTranslationError

EPSILON = 1e-7
"""Keras keeps probabilities so far from 0 and 1."""

LossFunction = Callable[[Tensor, Tensor], Tensor]


def loss_of(name: str, takes_logits: bool) -> LossFunction:
    """Return the function that computes what Keras's loss ``name`` does.

    Raises:
        NoTranslationError: if there is none.
    """
    losses = {
        ("binary_crossentropy", False): _binary_cross_entropy,
        ("categorical_crossentropy", False): _cross_entropy,
        ("categorical_crossentropy", True): F.cross_entropy,
        ("sparse_categorical_crossentropy", False): _sparse_cross_entropy,
        ("mean_squared_error", False): F.mse_loss,
        ("mse", False): F.mse_loss,
        ("mean_absolute_error", False): F.l1_loss,
        ("mae", False): F.l1_loss,
    }
    if (name, takes_logits) not in losses:
        raise NoTranslationError(f"the loss {name}")
    return losses[name, takes_logits]


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy(outputs.clamp(EPSILON, 1 - EPSILON), targets)


def _log_shares(outputs: Tensor) -> Tensor:
    shares = outputs / outputs.sum(-1, keepdim=True)
    return shares.clamp(EPSILON, 1 - EPSILON).log()


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(targets * _log_shares(outputs)).sum(-1).mean()


def _sparse_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(_log_shares(outputs), targets)


def targets_of(targets: Tensor, outputs: Tensor, loss: str) -> Tensor:
    """Return the targets in the shape in which Keras compares them with the outputs."""
    if loss.startswith("sparse"):
        return targets.reshape(len(targets)).long()
    if targets.ndim == outputs.ndim - 1 and outputs.shape[-1] == 1:
        return targets.unsqueeze(-1)
    if targets.shape[1:] != outputs.shape[1:]:
        raise NoTranslationError(f"targets of {tuple(targets.shape)} for outputs of {tuple(outputs.shape)}")
    return targets


def optimizer_of(kind: str, config: dict[str, Any]) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return a function that makes torch's optimizer with the settings of Keras's.

    Raises:
        NoTranslationError: if there is none.
    """
    for name in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "amsgrad", "centered"):
        if config.get(name):
            raise NoTranslationError(f"an optimizer with {name}")
    if not isinstance(config["learning_rate"], float):
        raise NoTranslationError("a schedule of the learning rate")
    rate, epsilon = config["learning_rate"], config.get("epsilon")
    betas = config.get("beta_1"), config.get("beta_2")
    makers: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
        "SGD": lambda weights: torch.optim.SGD(
            weights, lr=rate, momentum=config["momentum"], nesterov=config["nesterov"] and config["momentum"] > 0
        ),
        "Adam": lambda weights: torch.optim.Adam(weights, lr=rate, betas=betas, eps=epsilon),
        # The decay of Keras's momentum is fixed, and torch's has a constant for it, which is then 1.
        "Nadam": lambda weights: torch.optim.NAdam(weights, lr=rate, betas=betas, eps=epsilon, momentum_decay=1.0),
        # Keras adds its constant within the root: √(v + ε), torch outside: √v + ε. At v = 0 both agree so.
        "RMSprop": lambda weights: torch.optim.RMSprop(
            weights, lr=rate, alpha=config["rho"], eps=math.sqrt(epsilon), momentum=config["momentum"]
        ),
    }
    if kind not in makers:
        raise NoTranslationError(f"the optimizer {kind}")
    return makers[kind]
