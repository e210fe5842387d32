"""Looks at the activations of one forward pass: how large they are, and where they have stopped to pass a gradient.

Enters: modules, for the length of a sampled forward pass. Leaves: per layer of the table, on the device, the root mean
square of what its module returned, and of the activation function that follows the share of dead units and of saturated
entries. Functions are seen whether a module calls them or the forward does by itself.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradwatch.calls import anything_is_compiled, is_compiled, listen
from gradwatch.harmless import harmless
from gradwatch.layers import Layers, submodules
from gradwatch.report import ACTIVATION_FIGURES, SILENT_SAMPLES
from gradwatch.slopes import SteepRange, steep_range

__all__ = ["Activations"]

ROWS = 256  # inputs of each unit that are looked at in one forward pass
SAMPLES = 16  # of a batch of convolutions, each at ROWS ÷ SAMPLES places
SILENT = 1e-3  # the slope of a unit that passes no gradient; a rectifier's is exactly 0
SATURATED = 0.05  # of its steepest slope: tanh beyond ±2.2, sigmoid beyond ±4.4

RECTIFIERS = {"relu", "relu_", "relu6", "gelu", "silu", "mish", "elu", "elu_", "selu", "selu_", "celu", "celu_",
              "hardswish", "threshold", "threshold_", "softplus", "leaky_relu"}  # fmt: skip
SQUASHING = {"sigmoid", "sigmoid_", "tanh", "tanh_", "hardtanh", "hardtanh_", "hardsigmoid", "softsign"}
"""Activation functions, by their names in ``torch``, ``torch.nn.functional`` and as methods of a tensor."""


@dataclass(eq=False)
class _Figures:
    """Of one layer, in the forward passes since the last sample.

    Attributes:
        rms: () of what its module returned.
        silent: (units,) whether the function behind it was flat on every input of each unit.
        saturated: () share of its entries where the function was flat.
        is_output: no module with parameters came after it.
    """

    rms: Tensor | None = None
    silent: Tensor | None = None
    saturated: Tensor | None = None
    is_output: bool = False


class Activations:
    """Looks at forward passes between ``begin`` and ``take``.

    Args:
        models: as watched.
        layers: the table.
    """

    def __init__(self, models: Mapping[str, nn.Module], layers: Layers) -> None:
        self.broken: set[str] = set()
        self._models, self._layers = models, layers
        self._functions = _Functions(self._look_at_function)
        self._steep: dict[tuple[str, Any], SteepRange] = {}  # by a function's name and settings
        self._silent_for: dict[int, Tensor] = {}  # column → (units,) sampled passes since each was last active
        self._inside = contextlib.ExitStack()
        self._is_inside = False
        self._owner: list[int] = []  # columns of the last module with parameters
        self._units = -1  # the dimension in which the units of the last weight lie
        self._now: dict[int, _Figures] = {}
        self._undo: list[Callable[[], None]] = []

    @harmless
    def begin(self) -> None:
        """From the next forward pass on."""
        modules = (module for model in self._models.values() for module in model.modules())
        if not self._undo and not any(map(is_compiled, modules)) and not anything_is_compiled():
            self._undo = [stop for model in self._models.values() for stop in self._listen(model)]

    @harmless
    def take(self) -> dict[str, dict[int, Tensor]]:
        """Ends it. {figure: {column: () value}}."""
        self.remove()
        found: dict[str, dict[int, Tensor]] = {name: {} for name in ACTIVATION_FIGURES}
        for column, figures in self._now.items():
            if figures.rms is not None:
                found["activation_rms"][column] = figures.rms
            if figures.silent is not None:
                found["dead_share"][column] = self._dead_share(column, figures.silent)
            if figures.saturated is not None:
                name = "saturated_output_share" if figures.is_output else "saturated_share"
                found[name][column] = figures.saturated
        self._now = {}
        return found

    @harmless
    def remove(self) -> None:
        """Listens no more."""
        while self._undo:
            self._undo.pop()()
        self._inside.close()  # where a call never left: a fault of ours, or this came in its midst
        self._owner, self._is_inside = [], False

    def _dead_share(self, column: int, silent: Tensor) -> Tensor:
        before = self._silent_for.get(column)
        if before is None or before.shape != silent.shape:
            before = torch.zeros_like(silent, dtype=torch.float32)
        self._silent_for[column] = passes = (before + 1) * silent
        return (passes >= SILENT_SAMPLES).float().mean()

    def _listen(self, model: nn.Module) -> Iterator[Callable[[], None]]:
        for _, module in submodules(model):
            owned = (self._layers.column(p) for p in module._parameters.values() if p is not None)
            columns = [column for column in owned if column is not None]
            stop = listen(module, self._enter, functools.partial(self._leave, columns))
            if stop is not None:
                yield stop

    @harmless
    def _enter(self, args: Any, kwargs: Any) -> bool:
        """Whether this is the outermost call, around which functions are seen."""
        if self._is_inside or self.broken:
            return False
        self._inside.enter_context(self._functions)
        self._is_inside = True
        return True

    @harmless
    def _leave(self, columns: list[int], is_outermost: bool | None, output: Any) -> None:
        if is_outermost:
            self._inside.close()
            self._is_inside = False
        if not columns:
            return
        leaves = [output] if isinstance(output, Tensor) else tree_leaves(output)
        tensor = next((leaf for leaf in leaves if _is_activation(leaf)), None)
        if tensor is not None:
            for column in self._owner:
                self._now.setdefault(column, _Figures()).is_output = False
            self._owner = columns
            rms = _rms(tensor.detach())
            for column in columns:
                self._now.setdefault(column, _Figures()).rms = rms

    @harmless
    def _look_at_function(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        if name.startswith("conv"):
            self._units = 1
        elif name in ("linear", "matmul", "embedding", "bmm", "addmm", "einsum"):
            self._units = -1
        if not self._owner or not args or not _is_activation(args[0]):
            return
        if name == "softmax":
            self._note(None, _flat_softmax(args[0], args, kwargs))
        elif name in RECTIFIERS or name in SQUASHING:
            flat = self._steep_range(name, function, args[1:], kwargs).is_outside(_rows(args[0].detach(), self._units))
            self._note(*((flat.all(0), None) if name in RECTIFIERS else (None, flat.float().mean())))

    def _steep_range(self, name: str, function: Callable[..., Any], rest: Any, kwargs: Any) -> SteepRange:
        """Asked of the function once, not of every entry: its slope costs more than the comparison with two numbers."""
        settings = tuple(value for value in (*rest, *kwargs.values()) if not isinstance(value, Tensor))
        known = self._steep.get((name, settings))
        if known is None:
            least = {"slope": SILENT} if name in RECTIFIERS else {"share": SATURATED}
            known = self._steep[name, settings] = steep_range(function, rest, kwargs, **least)
        return known

    def _note(self, silent: Tensor | None, saturated: Tensor | None) -> None:
        """Several calls of one function add up: a unit is as alive as it was at its best."""
        for column in self._owner:
            figures = self._now.setdefault(column, _Figures())
            if silent is not None:
                before = figures.silent
                fits = before is not None and before.shape == silent.shape
                figures.silent = silent if before is None or not fits else before & silent
            if saturated is not None:
                figures.saturated, figures.is_output = saturated, True


class _Functions(TorchFunctionMode):
    """Shows every call of a function of torch's to ``look`` before it is made."""

    def __init__(self, look: Callable[[str, Callable[..., Any], Any, Any], None]) -> None:
        super().__init__()
        self._look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look(getattr(func, "__name__", ""), func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _flat_softmax(logits: Tensor, args: Any, kwargs: Any) -> Tensor:
    """Share of rows of which one entry takes nearly all."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    rows = _rows(logits.detach().movedim(dim if dim is not None else -1, -1), -1)
    largest = rows.float().softmax(-1).amax(-1)
    return (4 * largest * (1 - largest) < SATURATED).float().logical_and(largest > 0.5).float().mean()


@torch.no_grad()
def _rms(tensor: Tensor) -> Tensor:
    rows = _rows(tensor, -1)
    norm = torch.linalg.vector_norm(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
    return norm.float() / math.sqrt(rows.numel())


@torch.no_grad()
def _rows(tensor: Tensor, units: int) -> Tensor:
    """(at most ROWS, units) evenly spaced rows of ``tensor``, the dimension of its units last."""
    if tensor.ndim == 1:
        return tensor[None]
    if units == 1 and tensor.ndim > 2:  # (samples, units, places...): few are taken before they are turned
        samples = min(len(tensor), SAMPLES)
        tensor = _spread(_spread(tensor.flatten(2), samples).transpose(0, 2), ROWS // samples)
        return tensor.transpose(1, 2).flatten(0, 1)
    return _spread(tensor.flatten(0, -2), ROWS)


def _spread(tensor: Tensor, count: int) -> Tensor:
    """At most ``count`` evenly spaced of its first dimension."""
    return tensor[:: max(1, len(tensor) // count)][:count]


def _is_activation(thing: Any) -> bool:
    if not isinstance(thing, Tensor) or thing.layout is not torch.strided:
        return False
    return thing.is_floating_point() and thing.ndim > 0 and thing.numel() > 0
