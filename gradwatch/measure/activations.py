"""Looks at the activations of one forward pass: how large they are, and where they have stopped to pass a gradient.

Enters: modules, for the length of a sampled forward pass. Leaves: per layer of the table, on the device, the root mean
square of what its module returned, and of the activation functions that follow the share of dead units and of saturated
entries. These are read off the graph that the forward pass leaves for the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch import _torch
from gradwatch.hooks.graph import operation_of, upstream_nodes
from gradwatch.hooks.guard import harmless, without_collecting
from gradwatch.hooks.module_calls import anything_is_compiled, is_compiled, listen, tensors_in
from gradwatch.measure.activation_functions import flat_entries, may_be_activation
from gradwatch.measure.layers import Layers, submodules
from gradwatch.measure.report import ACTIVATION_FIGURES, SILENT_SAMPLES

__all__ = ["Activations"]

ROWS = 256  # inputs of each unit that are looked at in one forward pass
SMALL = 2**16  # entries that are read as quickly as fewer would be chosen
SAMPLES = 16  # of a batch of convolutions, each at ROWS ÷ SAMPLES places
NODES = 4096  # of a graph that are looked at between two calls; a GPT-2 of 12 layers has 700
NEAR = 64  # nodes between a function and the module whose output it takes
MADE_BY = "gradwatch: returned by a layer"  # in a node's metadata: (column, the dimension of its units)
SEEN = "gradwatch: behind this was looked"
PASSING_ON = {
    "rsub",
    "unsqueeze",
    "squeeze",
    "expand",
    "view",
    "reshape",
    "unsafeview",
    "transpose",
    "permute",
    "slice",
}


@dataclass(eq=False)
class _Figures:
    """Of one layer, in the forward passes since the last sample.

    Attributes:
        output: () L2 norm of what its module returned, or of part of it, and how many entries that is of.
        silent: (units,) whether the rectifier behind it was flat on every input of each unit.
        saturated: () shares of entries at which the functions behind it were flat, one a call.
        gates: the same of those whose result is a factor.
        is_output: no module with parameters came after it.
    """

    output: tuple[Tensor, int] | None = None
    silent: Tensor | None = None
    saturated: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)
    is_output: bool = True

    def add_silent(self, units: Tensor) -> None:
        """Of one more call: a unit is as alive as it was at its best."""
        before = self.silent
        self.silent = units if before is None or before.shape != units.shape else before & units


class Activations:
    """Looks at forward passes between ``begin`` and ``take``.

    Args:
        models: as watched.
        layers: the table. Figures of a module stand in the column of its first parameter.
    """

    def __init__(self, models: Mapping[str, nn.Module], layers: Layers) -> None:
        self.broken: set[str] = set()
        self._submodules = [module for model in models.values() for _, module in submodules(model)]
        parts = [(module, *_first_parameter(module, layers)) for module in self._submodules]
        # a leaf without parameters tells nothing that the graph does not
        self._parts = [part for part in parts if part[1] is not None or any(part[0].children())]
        self._silent_for: dict[int, Tensor] = {}  # column → (units,) sampled passes since each was last active
        self._depth = 0  # calls under way
        self._last: int | None = None  # column of the module with parameters that returned last
        self._units = -1  # the dimension in which the units of the last weight lie
        self._now: dict[int, _Figures] = {}
        self._undo: list[Callable[[], None]] = []

    @harmless
    def begin(self) -> None:
        """From the next forward pass on."""
        if not self._undo and not any(map(is_compiled, self._submodules)) and not anything_is_compiled():
            self._undo = list(self._listen())

    @harmless
    def observe_loss(self, loss: Tensor) -> None:
        """Takes the loss before its backward pass: functions behind the last module belong to it."""
        if self._undo and loss.grad_fn is not None:
            self._look_behind([loss.grad_fn])

    @harmless
    def take(self) -> dict[str, tuple[list[int], Tensor]]:
        """Ends it. {figure: (n columns, their (n,) values)}."""
        self.remove()
        found: dict[str, dict[int, Tensor]] = {name: {} for name in ACTIVATION_FIGURES}
        for column, figures in self._now.items():
            hidden, sure = ([], figures.saturated) if figures.is_output else (figures.saturated, [])
            for name, shares in (("saturated_share", hidden), ("saturated_output_share", sure + figures.gates)):
                if shares:
                    found[name][column] = shares[0] if len(shares) == 1 else torch.stack(shares).mean()
        taken = {name: (list(of), torch.stack(list(of.values()))) for name, of in found.items() if of}
        outputs = {column: figures.output for column, figures in self._now.items() if figures.output is not None}
        if outputs:
            norms, counts = zip(*outputs.values(), strict=True)
            taken["activation_rms"] = (
                list(outputs),
                torch.stack(norms) / torch.tensor(counts, device=norms[0].device).sqrt(),
            )
        silent = {column: figures.silent for column, figures in self._now.items() if figures.silent is not None}
        if silent:
            taken["dead_share"] = list(silent), self._dead_shares(silent)
        self._now = {}
        return taken

    @harmless
    def remove(self) -> None:
        """Listens no more."""
        while self._undo:
            self._undo.pop()()
        self._depth, self._last = 0, None

    def _dead_shares(self, silent: dict[int, Tensor]) -> Tensor:
        """(n,) of units that were silent in so many samples in a row, of the n layers of ``silent``."""
        before = [self._silent_for.get(column) for column in silent]
        lengths = [len(units) for units in silent.values()]
        none = silent[next(iter(silent))].new_zeros(max(lengths), dtype=torch.float32)
        earlier = [
            none[:length] if passes is None or len(passes) != length else passes
            for passes, length in zip(before, lengths, strict=True)
        ]
        passes = (torch.cat(earlier) + 1) * torch.cat(list(silent.values()))
        self._silent_for.update(zip(silent, passes.split(lengths), strict=True))
        dead = (passes >= SILENT_SAMPLES).float()
        return torch.segment_reduce(dead, "mean", lengths=torch.tensor(lengths, device=dead.device))

    def _listen(self) -> Iterator[Callable[[], None]]:
        for module, column, dimensions in self._parts:
            stop = listen(module, self._enter, functools.partial(self._leave, column, dimensions))
            if stop is not None:
                yield stop

    @harmless
    def _enter(self, args: Any, kwargs: Any) -> None:
        self._depth += 1

    @harmless
    def _leave(self, column: int | None, dimensions: int, _: None, output: Any) -> None:
        self._depth -= 1
        activations = [tensor for tensor in tensors_in(output) if _is_activation(tensor)]
        if column is not None and activations:
            self._take_output(column, dimensions, activations)
        if self._depth == 0:
            nodes = [tensor.grad_fn for tensor in activations if tensor.grad_fn is not None]
            self._look_behind(nodes)
            for node in nodes:
                node.metadata[SEEN] = True  # type: ignore[index]

    def _take_output(self, column: int, dimensions: int, activations: list[Tensor]) -> None:
        if dimensions > 1:
            self._units = 1 if dimensions > 2 else -1  # normalisations keep that of the layer before
        if self._last is not None and self._last != column:
            self._now.setdefault(self._last, _Figures()).is_output = False
        self._last = column
        figures = self._now.setdefault(column, _Figures())
        figures.output, figures.is_output = _norm(activations[0].detach()), True
        if _torch.saved_tensors_are_packed():
            return  # a checkpoint would compute what it saves again
        for tensor in activations:
            if tensor.grad_fn is not None:
                tensor.grad_fn.metadata[MADE_BY] = (column, self._units)  # type: ignore[index]

    @without_collecting
    def _look_behind(self, nodes: list[Any]) -> None:
        behind = upstream_nodes(nodes, SEEN, NODES)
        factors = _factors(behind)
        made = [(node, maker) for node in filter(may_be_activation, behind) if (maker := _maker_of(node))]
        asked = [(node, functools.partial(_rows, units=units)) for node, (_, units) in made]
        for flat in flat_entries(asked):
            is_rectifier = flat.kind == "rectifier"
            told = flat.entries.all(1) if is_rectifier else flat.entries.flatten(1).float().mean(1)
            for place, figure in zip(flat.places, told.unbind(), strict=True):
                node, (column, _) = made[place]
                figures = self._now.get(column)
                if figures is not None and is_rectifier:
                    figures.add_silent(figure)
                elif figures is not None:
                    (figures.gates if node in factors else figures.saturated).append(figure)


def _first_parameter(module: nn.Module, layers: Layers) -> tuple[int | None, int]:
    """(column of the first watched one that ``module`` itself holds, most dimensions of any)."""
    owned = [parameter for parameter in _torch.own_parameters(module).values() if parameter is not None]
    columns = (column for parameter in owned if (column := layers.column(parameter)) is not None)
    return next(columns, None), max((0 if is_lazy(p) else p.ndim for p in owned), default=0)


def _factors(nodes: list[Any]) -> set[Any]:
    """What is multiplied by something, or one less it is, reshaped or not."""
    factors = {factor for node in nodes if operation_of(node) == "mul" for factor, _ in node.next_functions}
    for node in reversed(nodes):
        if node in factors and operation_of(node) in PASSING_ON:
            factors.add(node.next_functions[0][0])
    return factors


def _maker_of(node: Any) -> tuple[int, int] | None:
    """(column, dimension of units) of the nearest layer behind ``node``."""
    ahead = [following for following, _ in node.next_functions if following is not None]
    for place, behind in enumerate(ahead):
        if (maker := behind.metadata.get(MADE_BY)) is not None:
            return maker
        if place < NEAR:
            ahead += [following for following, _ in behind.next_functions if following is not None]
    return None


def _norm(tensor: Tensor) -> tuple[Tensor, int]:
    """(L2 norm of a tensor without a graph, how many entries that is of): all of a small one, ROWS rows of a large."""
    part = tensor if tensor.numel() <= SMALL else _rows(tensor, -1)
    norm = torch.linalg.vector_norm(part, dtype=torch.promote_types(part.dtype, torch.float32))
    return norm.float(), part.numel()


def _rows(tensor: Tensor, units: int) -> Tensor:
    """(at most ROWS, units) evenly spaced rows of ``tensor``, the dimension of its units last."""
    if tensor.ndim <= 1:
        return tensor.reshape(1, -1)
    if units == 1 and tensor.ndim > 2:  # (samples, units, places...): few are taken before they are turned
        samples = min(len(tensor), SAMPLES)
        tensor = _spread(_spread(tensor.flatten(2), samples).transpose(0, 2), ROWS // samples)
        return tensor.transpose(1, 2).flatten(0, 1)
    return _spread(tensor.flatten(0, -2), ROWS)


def _spread(tensor: Tensor, count: int) -> Tensor:
    """At most ``count`` evenly spaced of its first dimension."""
    return tensor if len(tensor) <= count else tensor[:: len(tensor) // count][:count]


def _is_activation(tensor: Tensor) -> bool:
    is_strided = tensor.layout is torch.strided
    return is_strided and tensor.is_floating_point() and tensor.ndim > 0 and tensor.numel() > 0
