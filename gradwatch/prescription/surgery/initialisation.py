"""Weights drawn anew: He, Xavier, orthogonal, scaled by depth; biases 0, normalisations as they begin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.calls import LAYERS, NORMS, calls_of

__all__ = ["depth_scaled", "he", "orthogonal", "reset", "xavier"]

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
Draw = Callable[[Tensor, bool], object]
"""(weight, whether its layer is hidden): draws it anew, in place."""


def he(setup: Setup) -> None:
    """N(0, 2/n) for hidden layers (arXiv:1502.01852), Xavier's for the last."""
    reset(
        setup,
        lambda weight, hidden: (
            nn.init.kaiming_normal_(weight, nonlinearity="relu") if hidden else nn.init.xavier_normal_(weight)
        ),
    )


def xavier(setup: Setup) -> None:
    """U(±√(6 / (n + m))) (Glorot and Bengio 2010)."""
    reset(setup, lambda weight, _: nn.init.xavier_uniform_(weight))


def orthogonal(setup: Setup) -> None:
    """Orthogonal weights, times √2 where rectifiers follow (arXiv:1312.6120)."""
    rectifies = any(isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU)) for module in setup.model.modules())
    gain = math.sqrt(2) if rectifies else 1.0
    reset(setup, lambda weight, hidden: nn.init.orthogonal_(weight, gain if hidden else 1.0))


def depth_scaled(setup: Setup) -> None:
    """Xavier's, then 1/√L for each of L layers that keep their width (as GPT-2's residual branches)."""
    xavier(setup)
    same = [call.module for call in calls_of(setup.model, setup.batches[0][0]) if call.given == call.made]
    if not same:
        raise NotApplicableError("no layer returns the shape that it was given")
    with torch.no_grad():
        for layer in same:
            layer.get_parameter("weight").div_(math.sqrt(len(same)))


def reset(setup: Setup, draw: Draw) -> None:
    """Draws the weights of all layers anew by ``draw``; biases 0, recurrences orthogonal, normalisations 1 and 0."""
    modules = list(setup.model.modules())
    if not any(isinstance(module, (*LAYERS, *RECURRENT, nn.MultiheadAttention)) for module in modules):
        raise NotApplicableError("no linear, convolutional, recurrent or attention layer was found")
    calls = calls_of(setup.model, setup.batches[0][0])
    last = calls[-1].module if calls else None
    with torch.no_grad():
        for module in modules:
            if isinstance(module, LAYERS):
                _reset_layer(module, draw, is_hidden=module is not last)
            elif isinstance(module, RECURRENT):
                _reset_recurrent(module, draw)
            elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                draw(module.in_proj_weight, False)
            elif isinstance(module, NORMS):
                module.reset_parameters()


def _reset_layer(module: Any, draw: Draw, is_hidden: bool) -> None:
    weight, bias = module.weight.detach().clone(), module.bias
    draw(weight, is_hidden)
    if isinstance(module.weight, nn.Parameter):
        module.weight.copy_(weight)
    else:  # one that is computed, by weight normalisation say, takes what it is set to
        module.weight = weight
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)


def _reset_recurrent(module: nn.Module, draw: Draw) -> None:
    """Each gate's square block orthogonal; biases 0, but 1 for what an LSTM's forget gate adds up."""
    for name, parameter in module.named_parameters(recurse=False):
        if "bias" in name:
            nn.init.zeros_(parameter)
            if isinstance(module, (nn.LSTM, nn.LSTMCell)) and "bias_ih" in name:
                quarter = len(parameter) // 4
                parameter[quarter : 2 * quarter] = 1.0
        elif "weight_hh" in name:
            for block in parameter.split(parameter.shape[1]):
                nn.init.orthogonal_(block)
        else:
            draw(parameter, True)
