"""Other activation functions: modules replaced, calls of functions inside ``forward`` answered by another.

Functions that end a model are left where their range is meant (a sigmoid before a probability), not where they rectify.
One ends it if no layer with weights is called after it.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradwatch import _torch
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.calls import blocks_of, looked_at, replace
from gradwatch.prescription.surgery.initialisation import reset

__all__ = ["ACTIVATIONS", "activate", "maxout", "selu"]

BOUNDED = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid, nn.Softplus)
RECTIFYING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
              nn.Hardswish)  # fmt: skip
ACTIVATIONS = (*BOUNDED, *RECTIFYING)


def _functions(names: str) -> set[Any]:
    """The functions and methods of these names, in place or not."""
    homes = (F, torch, Tensor)
    found = (getattr(home, name + end, None) for home in homes for name in names.split() for end in ("", "_"))
    return {function for function in found if function is not None}


BOUNDED_FUNCTIONS = _functions("sigmoid tanh hardtanh hardsigmoid softsign logsigmoid softplus")
FUNCTIONS = BOUNDED_FUNCTIONS | _functions("relu relu6 leaky_relu elu selu celu gelu silu mish hardswish")

Site = tuple[CodeType, int]
"""A place in a program's code: (code, offset of the instruction)."""


class _Heard(TorchFunctionMode):
    """Listens to a forward pass: the calls of activation functions by name, and whether a weighted layer followed.

    Attributes:
        calls: (where, name, whether the function is bounded, whether ``answer`` says the same, how many layers came
            before).
        layers: how often a weight was put together with an activation.
    """

    def __init__(self, answer: nn.Module) -> None:
        super().__init__()
        self.answer, self.layers = answer, 0
        self.calls: list[tuple[Site, str, bool, bool, int]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function in FUNCTIONS and (site := _site()) is not None:
            settings = {name: value for name, value in named.items() if name != "input"}
            alike = _is_alike(lambda x: function(x, *args[1:], **settings), self.answer)
            self.calls.append((site, function.__name__, function in BOUNDED_FUNCTIONS, alike, self.layers))
        self.layers += _is_weighted(function, args)
        return function(*args, **named)


class _Answered(TorchFunctionMode):
    """Answers calls of activation functions by ``activation``.

    Args:
        activation: what answers.
        stays: for each place in the code, call by call, whether it is left alone; the last stands for all further ones.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], stays: Mapping[Site, list[bool]]) -> None:
        super().__init__()
        self.activation, self.stays = activation, stays
        self.counts: Counter[Site] = Counter()

    def __enter__(self) -> Any:
        self.counts.clear()  # a forward pass begins
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FUNCTIONS and (site := _site()) is not None:
            stays = self.stays.get(site, [False])
            self.counts[site] += 1
            if not stays[min(self.counts[site], len(stays)) - 1]:
                return self.activation(args[0] if args else kwargs["input"])
        return function(*args, **(kwargs or {}))


def activate(setup: Setup, activation: nn.Module) -> None:
    """Puts ``activation`` in the place of every activation function that is not that one already."""
    names, why = _modules(setup, activation)
    holds_weights = any(True for _ in activation.parameters())
    stays, called_by_name = _places(setup, activation)
    if not names and (holds_weights or not called_by_name):
        as_module = " as a module, and a function has no room for its weight" if holds_weights else ""
        raise NotApplicableError(f"no {why or ('other ' if stays else '')}activation function was found{as_module}")
    weight = next(setup.model.parameters(), torch.empty(0))
    for name in names:
        replace(setup.model, name, copy.deepcopy(activation).to(weight.device, weight.dtype))
    if called_by_name and not holds_weights:
        setup.within(_Answered(activation, stays))
        setup.not_done.append(f"forward calls {' and '.join(called_by_name)} by name: there write {activation} by hand")
    elif called_by_name:
        setup.not_done.append(
            f"{' and '.join(called_by_name)}, which forward calls by name, stayed: no room for a weight"
        )


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


def _modules(setup: Setup, activation: nn.Module) -> tuple[list[str], str]:
    """Names of the activation modules to replace; what kept others from it, in the words of an error."""
    ending = _ending(setup)
    named = setup.model.named_modules(remove_duplicate=False)  # one activation may stand in several places
    found = [(name, part) for name, part in named if name and isinstance(part, ACTIVATIONS)]
    hidden = [(name, part) for name, part in found if isinstance(part, RECTIFYING) or part not in ending]
    names = [name for name, part in hidden if not _is_alike(part, activation)]
    return names, "other " if hidden else "hidden " if found else ""


def _ending(setup: Setup) -> set[nn.Module]:
    """The parts that are called when no further one with weights of its own is."""
    order: list[nn.Module] = []
    looked_at(setup.model, setup.batches[0][0], setup.model.modules(), lambda part, *_: order.append(part))
    last = max((place for place, part in enumerate(order) if _has_weights(part)), default=-1)
    return set(order[last + 1 :])


def _has_weights(part: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in part.parameters(recurse=False))


def _places(setup: Setup, activation: nn.Module) -> tuple[dict[Site, list[bool]], list[str]]:
    """Where ``forward`` calls activation functions by name, and for each call whether it is left; the others' names."""
    with _Heard(activation) as heard:
        looked_at(setup.model, setup.batches[0][0])
    stays: dict[Site, list[bool]] = {}
    answered: list[str] = []
    for site, name, is_bounded, is_alike, layers in heard.calls:
        stays.setdefault(site, []).append(is_alike or (is_bounded and layers == heard.layers))
        answered += [] if stays[site][-1] else [name]
    return stays, sorted(set(answered))


def _site() -> Site | None:
    """Where the user's code calls the function that a mode is asked about; None in one of torch's own modules."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename in _WAY:
        frame = frame.f_back
    return None if frame.f_code.co_filename == _MODULES else (frame.f_code, frame.f_lasti)


_WAY = {F.__file__, torch.overrides.__file__}
_MODULES = nn.modules.activation.__file__  # nn.Sigmoid's forward calls torch.sigmoid: it is replaced as a module


def _is_weighted(function: Any, args: Any) -> bool:
    """Whether a weight meets what is not one."""
    if getattr(function, "__name__", "").startswith(("linear", "conv")):
        return True
    tensors = [leaf for leaf in _torch.tree_leaves(args) if isinstance(leaf, Tensor)]
    weights = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter) and tensor.ndim > 1]
    return bool(weights) and any(not isinstance(tensor, nn.Parameter) for tensor in tensors)


def _is_alike(one: Callable[[Tensor], Tensor], other: nn.Module) -> bool:
    """Whether both are one function."""
    if any(isinstance(each, nn.PReLU) for each in (one, other)):
        return False
    grid = torch.linspace(-4, 4, 33)
    return torch.equal(one(grid.clone()), other(grid.clone()))
