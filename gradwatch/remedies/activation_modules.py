"""Replace activation functions: modules by modules, and calls of functions inside ``forward`` by calls of another.

A bounded function that ends the model stays, because its range is meant (a sigmoid before a probability). One ends the
model if no layer with weights is called after it.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradwatch import _torch
from gradwatch.remedies.forward_pass import layer_blocks, listen, replace_, run_within_
from gradwatch.remedies.remedy import NotApplicableError, PartlyAppliedWarning

__all__ = ["ACTIVATIONS", "Maxout", "remove_output_activation_", "replace_activations_", "use_maxout_"]

BOUNDED = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid, nn.Softplus)
RECTIFYING = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
              nn.Hardswish)  # fmt: skip
ACTIVATIONS = (*BOUNDED, *RECTIFYING)
_SHARES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)


def _functions(names: str) -> set[Any]:
    """Return the functions and methods of these names, in place or not."""
    homes = (F, torch, Tensor)
    found = (getattr(home, name + end, None) for home in homes for name in names.split() for end in ("", "_"))
    return {function for function in found if function is not None}


BOUNDED_FUNCTIONS = _functions("sigmoid tanh hardtanh hardsigmoid softsign logsigmoid softplus")
FUNCTIONS = BOUNDED_FUNCTIONS | _functions("relu relu6 leaky_relu elu selu celu gelu silu mish hardswish")

CallSite = tuple[CodeType, int]
"""A place in a program: (code object, offset of the instruction)."""


def replace_activations_(model: nn.Module, x: Any, activation: nn.Module) -> None:
    """Put ``activation`` in the place of every hidden activation function that is not that one already.

    Modules are replaced. Functions that ``forward`` calls by name (``torch.tanh(h)``) are answered by ``activation``
    from then on; a warning says which, since it is better to write that into ``forward``.

    Args:
        model: is changed in place; what holds weights (``nn.PReLU``) must be put in before the optimizer is made.
        x: the inputs of one batch, to see which function is called last.
        activation: is copied for each place.

    Raises:
        NotApplicableError: if there is nothing to replace.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2))
        >>> replace_activations_(model, torch.randn(3, 4), torch.nn.ReLU())
        >>> model[1]
        ReLU()
    """
    names, others = _modules(model, x, activation)
    has_weights = any(True for _ in activation.parameters())
    kept, called_by_name = _functions_called(model, x, activation)
    if not names and (has_weights or not called_by_name):
        raise _nothing_found(others or ("other " if kept else ""), has_weights)
    weight = next(model.parameters(), torch.empty(0))
    for name in names:
        replace_(model, name, copy.deepcopy(activation).to(weight.device, weight.dtype))
    if not called_by_name:
        return
    called = " and ".join(called_by_name)
    if has_weights:
        _warn(f"{called}, which forward calls by name, stayed: no room for a weight")
    else:
        run_within_(model, _Answered(activation, kept))
        _warn(f"forward calls {called} by name: there write {activation} by hand")


def _nothing_found(others: str, has_weights: bool) -> NotApplicableError:
    reason = " as a module, and a function has no room for its weight" if has_weights else ""
    return NotApplicableError(f"no {others}activation function was found{reason}")


def remove_output_activation_(model: nn.Module, x: Any) -> None:
    """Let the outputs of the last layer be those of the model: take away the activation functions after it.

    A regression needs none, unless the range of the function holds the targets.

    Args:
        model: is changed in place.
        x: the inputs of one batch, to see which function is called last.

    Raises:
        NotApplicableError: if no activation function is called after the last layer with weights.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.ReLU())
        >>> remove_output_activation_(model, torch.randn(3, 4))
        >>> model[3]
        Identity()
    """
    names = _names_at_the_end(model, x)
    for name in names:
        replace_(model, name, nn.Identity())
    with _Recorded(nn.Identity()) as recorded:
        listen(model, x)
    called = sorted({call.name for call in recorded.calls if call.layers_before == recorded.layers})
    if not called and not names:
        raise NotApplicableError("no activation function is called after the last layer with weights")
    if not called:
        return
    kept: dict[CallSite, list[bool]] = {}
    for call in recorded.calls:
        kept.setdefault(call.site, []).append(call.layers_before < recorded.layers)
    run_within_(model, _Answered(nn.Identity(), kept))
    _warn(f"forward calls {' and '.join(called)} by name at its end: there leave it out by hand")


def _names_at_the_end(model: nn.Module, x: Any) -> list[str]:
    """Return the names of the activation modules that are called after the last layer with weights."""
    ending = [part for part in _ending(model, x) if isinstance(part, (*ACTIVATIONS, *_SHARES))]
    return [name for name, part in model.named_modules(remove_duplicate=False) if name and part in ending]


def use_maxout_(model: nn.Module) -> None:
    """Put max(W₁x + b₁, W₂x + b₂) in the place of each layer of an ``nn.Sequential`` and its activation function.

    Goodfellow et al. 2013, arXiv:1302.4389. The second layer is drawn anew, so call this before the optimizer is made.

    Raises:
        NotApplicableError: if there is no such layer.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> use_maxout_(model)
        >>> [type(part).__name__ for part in model]
        ['Maxout', 'Identity', 'Linear']
    """
    blocks = list(layer_blocks(model, ACTIVATIONS))
    if not blocks:
        raise NotApplicableError("no layer of an nn.Sequential is followed by an activation function")
    for block in blocks:
        replace_(model, block.names[0], Maxout(block.modules[0]))
        replace_(model, block.names[-1], nn.Identity())


class Maxout(nn.Module):
    """The larger of two layers' outputs, each layer with weights of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.one, self.other = layer, copy.deepcopy(layer)
        self.other.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.one(x), self.other(x))


@dataclass(frozen=True)
class _FunctionCall:
    """A call of an activation function by name.

    Attributes:
        site: where ``forward`` calls it.
        name: of the function.
        is_bounded: it is a sigmoid or the like.
        is_alike: the function that is to take its place is the same.
        layers_before: how many layers with weights were called before it.
    """

    site: CallSite
    name: str
    is_bounded: bool
    is_alike: bool
    layers_before: int


class _Recorded(TorchFunctionMode):
    """A mode that records calls of activation functions by name, and counts layers with weights."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation, self.layers = activation, 0
        self.calls: list[_FunctionCall] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function in FUNCTIONS and (site := _site()) is not None:
            settings = {name: value for name, value in named.items() if name != "input"}
            is_alike = _is_alike(lambda x: function(x, *args[1:], **settings), self.activation)
            is_bounded = function in BOUNDED_FUNCTIONS
            self.calls.append(_FunctionCall(site, function.__name__, is_bounded, is_alike, self.layers))
        self.layers += _applies_weights(function, args)
        return function(*args, **named)


class _Answered(TorchFunctionMode):
    """A mode that answers calls of activation functions by ``activation``.

    Args:
        activation: what answers.
        kept: call site → for each of its calls in a forward pass, True if the function stays. The last one holds for
            all further calls.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], kept: Mapping[CallSite, list[bool]]) -> None:
        super().__init__()
        self.activation, self.kept = activation, kept
        self.counts: Counter[CallSite] = Counter()

    def __enter__(self) -> Any:
        self.counts.clear()  # a forward pass begins
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FUNCTIONS and (site := _site()) is not None:
            kept = self.kept.get(site, [False])
            self.counts[site] += 1
            if not kept[min(self.counts[site], len(kept)) - 1]:
                return self.activation(args[0] if args else kwargs["input"])
        return function(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Answered:
        return _Answered(self.activation, self.kept)  # code objects cannot be copied, and need not be


def _modules(model: nn.Module, x: Any, activation: nn.Module) -> tuple[list[str], str]:
    """Return the names of the activation modules to replace, and the word for those that there are otherwise."""
    ending = _ending(model, x)
    found = _activation_modules(model)
    hidden = [(name, part) for name, part in found if isinstance(part, RECTIFYING) or part not in ending]
    names = [name for name, part in hidden if not _is_alike(part, activation)]
    return names, "other " if hidden else "hidden " if found else ""


def _activation_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, module) of each activation module, except for ``model`` itself."""
    named = model.named_modules(remove_duplicate=False)  # one activation may be in several places
    return [(name, part) for name, part in named if name and isinstance(part, ACTIVATIONS)]


def _ending(model: nn.Module, x: Any) -> set[nn.Module]:
    """Return the modules that are called after the last one with weights of its own."""
    order: list[nn.Module] = []
    listen(model, x, model.modules(), lambda part, *_: order.append(part))
    weighted = [place for place, part in enumerate(order) if _has_weights(part)]
    return set(order[max(weighted, default=-1) + 1 :])


def _has_weights(part: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in part.parameters(recurse=False))


def _functions_called(model: nn.Module, x: Any, activation: nn.Module) -> tuple[dict[CallSite, list[bool]], list[str]]:
    """Return call site → for each call whether the function stays, and the names of those that do not."""
    with _Recorded(activation) as recorded:
        listen(model, x)
    kept: dict[CallSite, list[bool]] = {}
    answered: set[str] = set()
    for call in recorded.calls:
        ends_model = call.is_bounded and call.layers_before == recorded.layers
        stays = call.is_alike or ends_model
        kept.setdefault(call.site, []).append(stays)
        if not stays:
            answered.add(call.name)
    return kept, sorted(answered)


def _site() -> CallSite | None:
    """Return where the user's code calls the function that a mode is asked about; None within torch's own modules."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename in _WAY:
        frame = frame.f_back
    return None if frame.f_code.co_filename == _MODULES else (frame.f_code, frame.f_lasti)


_WAY = {F.__file__, torch.overrides.__file__}
_MODULES = nn.modules.activation.__file__  # nn.Sigmoid's forward calls torch.sigmoid: it is replaced as a module


def _applies_weights(function: Any, args: Any) -> bool:
    """Return whether a weight is combined with a tensor that is no weight."""
    if getattr(function, "__name__", "").startswith(("linear", "conv")):
        return True
    tensors = [leaf for leaf in _torch.tree_leaves(args) if isinstance(leaf, Tensor)]
    weights = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter) and tensor.ndim > 1]
    return bool(weights) and any(not isinstance(tensor, nn.Parameter) for tensor in tensors)


def _is_alike(one: Callable[[Tensor], Tensor], other: nn.Module) -> bool:
    """Return whether both are the same function on 33 points."""
    if any(isinstance(each, nn.PReLU) for each in (one, other)):
        return False
    grid = torch.linspace(-4, 4, 33)
    return torch.equal(one(grid.clone()), other(grid.clone()))


def _warn(text: str) -> None:
    warnings.warn(text, PartlyAppliedWarning, stacklevel=3)
