"""Other activation functions: modules replaced, calls of functions inside ``forward`` answered by another.

Functions that end a model are left where their range is meant (a sigmoid before a probability), not where they rectify.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradwatch.prescription.problem import called, owned
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.calls import LAYERS, blocks_of, evaluating, replace
from gradwatch.prescription.surgery.initialisation import reset

__all__ = ["ACTIVATIONS", "activate", "maxout", "selu"]

SQUASHING = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid)
RECTIFYING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
              nn.Softplus, nn.Hardswish)  # fmt: skip
ACTIVATIONS = (*SQUASHING, *RECTIFYING)
_NAMES = ("relu", "relu6", "sigmoid", "tanh", "hardtanh", "hardsigmoid", "softsign", "elu", "selu", "celu", "gelu",
          "silu", "leaky_relu", "softplus", "mish", "hardswish")  # fmt: skip
FUNCTIONS = {
    function
    for home in (F, torch, Tensor)
    for name in _NAMES
    for function in (getattr(home, name, None), getattr(home, f"{name}_", None))
    if function is not None
}


class _Answered(TorchFunctionMode):
    """Answers calls of activation functions by ``activation``, and counts them."""

    def __init__(self, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.activation, self.count = activation, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FUNCTIONS:
            self.count += 1
            if self.activation is not None:
                return self.activation(args[0] if args else kwargs["input"])
        return function(*args, **(kwargs or {}))


def activate(setup: Setup, activation: nn.Module) -> None:
    """Puts ``activation`` in the place of every activation function."""
    names = _hidden(setup.model)
    holds_weights = any(True for _ in activation.parameters())
    functions = _functions_called(setup) if not holds_weights else 0
    if not names and not functions:
        why = " as a module, and a function has no room for its weight" if holds_weights else ""
        raise NotApplicableError(f"no activation function was found{why}")
    weight = next(setup.model.parameters(), torch.empty(0))
    for name in names:
        replace(setup.model, name, copy.deepcopy(activation).to(weight.device, weight.dtype))
    if functions:
        setup.within(_Answered(activation))


def selu(setup: Setup) -> None:
    """SELU, with the initialisation that its fixed point needs: N(0, 1/n), biases 0 (arXiv:1706.02515)."""
    activate(setup, nn.SELU())
    reset(setup, lambda weight, _: nn.init.kaiming_normal_(weight, nonlinearity="linear"))


def maxout(setup: Setup) -> None:
    """max(W₁x + b₁, W₂x + b₂) in the place of each layer and its activation function (arXiv:1302.4389)."""
    blocks = list(blocks_of(setup.model, ACTIVATIONS))
    if not blocks:
        raise NotApplicableError("no layer of an nn.Sequential is followed by an activation function")
    for block in blocks:
        replace(setup.model, block.names[0], Maxout(block.modules[0]))
        replace(setup.model, block.names[-1], nn.Identity())


class Maxout(nn.Module):
    """The larger of two layers, each drawn for itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.one, self.other = layer, copy.deepcopy(layer)
        self.other.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.one(x), self.other(x))


def _hidden(model: nn.Module) -> list[str]:
    """Names of the activation modules, but for squashing ones behind the last layer with weights."""
    modules = list(model.named_modules(remove_duplicate=False))  # one activation may stand in several places
    last = max((place for place, (_, module) in enumerate(modules) if isinstance(module, LAYERS)), default=-1)
    return [
        name
        for place, (name, module) in enumerate(modules)
        if name and isinstance(module, ACTIVATIONS if place < last else RECTIFYING)
    ]


def _functions_called(setup: Setup) -> int:
    """How many calls of activation functions a forward pass makes by itself, not by modules."""
    mode = _Answered(None)
    own = sum(1 for module in setup.model.modules() if isinstance(module, ACTIVATIONS))
    with evaluating(setup.model), mode:
        called(setup.model, owned(setup.batches[0][0]))
    return max(0, mode.count - own)
