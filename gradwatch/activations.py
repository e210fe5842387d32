"""Looks at the activations of one forward pass: how large they are, and where they have stopped to pass a gradient.

Enters: modules, for the length of a sampled forward pass. Leaves: per layer of the table, on the device, the root mean
square of what its module returned, and of the activation function that follows the share of dead units and of saturated
entries. Functions are seen whether a module calls them or the forward does by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradwatch.calls import anything_is_compiled, is_compiled, listen
from gradwatch.harmless import harmless
from gradwatch.layers import Layers, submodules
from gradwatch.report import ACTIVATION_FIGURES, SILENT_SAMPLES

__all__ = ["Activations"]

ROWS = 256  # inputs of each unit that are looked at in one forward pass
SILENT = 1e-3  # the slope of a unit that passes no gradient; a rectifier's is exactly 0
SATURATED = 0.05  # of its steepest slope: tanh beyond ±2.2, sigmoid beyond ±4.4

RECTIFIERS = {"relu", "relu_", "relu6", "gelu", "silu", "mish", "elu", "elu_", "selu", "selu_", "celu", "celu_",
              "hardswish", "threshold", "threshold_", "softplus", "leaky_relu"}  # fmt: skip
SQUASHING = {"sigmoid", "sigmoid_", "tanh", "tanh_", "hardtanh", "hardtanh_", "hardsigmoid", "softsign"}
"""Activation functions, by their names in ``torch``, ``torch.nn.functional`` and as methods of a tensor."""
STEEPEST = {"sigmoid": 0.25, "hardsigmoid": 1 / 6}


@dataclass(eq=False)
class _Figures:
    """Of one layer, in the forward passes since the last sample.

    Attributes:
        mean_square: () of what its module returned.
        slopes: (units,) the steepest slope at which the function behind it was met at each unit.
        saturated: () share of its entries where the function was flat.
        is_output: no module with parameters came after it.
    """

    mean_square: Tensor | None = None
    slopes: Tensor | None = None
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
            if figures.mean_square is not None:
                found["activation_rms"][column] = figures.mean_square.sqrt()
            if figures.slopes is not None:
                found["dead_share"][column] = self._dead_share(column, figures.slopes)
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

    def _dead_share(self, column: int, slopes: Tensor) -> Tensor:
        before = self._silent_for.get(column)
        if before is None or before.shape != slopes.shape:
            before = torch.zeros_like(slopes)
        self._silent_for[column] = silent = torch.where(slopes.abs() <= SILENT, before + 1, 0.0)  # NaN is no silence
        return (silent >= SILENT_SAMPLES).float().mean()

    def _listen(self, model: nn.Module) -> Iterator[Callable[[], None]]:
        for _, module in submodules(model):
            owned = (self._layers.column(p) for p in module._parameters.values() if p is not None)
            columns = [column for column in owned if column is not None]
            stop = listen(module, self._enter, partial(self._leave, columns))
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
        tensor = next((leaf for leaf in tree_leaves(output) if _is_activation(leaf)), None)
        if columns and tensor is not None:
            for column in self._owner:
                self._now.setdefault(column, _Figures()).is_output = False
            self._owner = columns
            with torch.no_grad():
                mean_square = _rows(tensor.detach(), -1).float().square().mean()
            for column in columns:
                self._now.setdefault(column, _Figures()).mean_square = mean_square

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
            slope = _slope(_rows(args[0].detach(), self._units), function, args[1:], kwargs)
            if name in RECTIFIERS:
                self._note(slope.abs().amax(0), None)
            else:
                steepest = STEEPEST.get(name.rstrip("_"), 1.0)
                self._note(None, (slope.abs() < SATURATED * steepest).float().mean())

    def _note(self, slopes: Tensor | None, saturated: Tensor | None) -> None:
        """Several calls of one function add up: a unit is as alive as it was at its best."""
        for column in self._owner:
            figures = self._now.setdefault(column, _Figures())
            if slopes is not None:
                before = figures.slopes
                fits = before is not None and before.shape == slopes.shape
                figures.slopes = slopes if before is None or not fits else torch.maximum(before, slopes)
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


def _slope(rows: Tensor, function: Callable[..., Any], rest: Any, kwargs: Any) -> Tensor:
    """The function's derivative at each entry."""
    kwargs = {name: value for name, value in kwargs.items() if name not in ("inplace", "out")}
    with torch.enable_grad(), saved_tensors_hooks(_same, _same):  # not to be counted by a checkpoint around us
        x = rows.float().clone().requires_grad_()
        rest = tuple(False if isinstance(value, bool) else value for value in rest)  # ``inplace``, by position
        y = function(x * 1, *rest, **kwargs)
        slope = torch.autograd.grad(y.sum(), x)[0]
    return torch.where(x.detach().isnan(), torch.nan, slope)  # a rectifier's would be 0 there


def _same(tensor: Tensor) -> Tensor:
    return tensor


@torch.no_grad()
def _flat_softmax(logits: Tensor, args: Any, kwargs: Any) -> Tensor:
    """Share of rows of which one entry takes nearly all."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    rows = _rows(logits.detach().movedim(dim if dim is not None else -1, -1), -1)
    largest = rows.float().softmax(-1).amax(-1)
    return (4 * largest * (1 - largest) < SATURATED).float().logical_and(largest > 0.5).float().mean()


@torch.no_grad()
def _rows(tensor: Tensor, units: int) -> Tensor:
    """(at most ROWS, units) evenly spaced rows of ``tensor``, the dimension of its units last."""
    flat = tensor.movedim(units, -1).flatten(0, -2) if tensor.ndim > 1 else tensor[None]
    return flat[:: max(1, len(flat) // ROWS)][:ROWS]


def _is_activation(thing: Any) -> bool:
    if not isinstance(thing, Tensor) or thing.layout is not torch.strided:
        return False
    return thing.is_floating_point() and thing.ndim > 0 and thing.numel() > 0
