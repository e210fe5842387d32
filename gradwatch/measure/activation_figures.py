"""Measure the activations of a sampled forward pass, layer by layer, on the device.

The size of what a module returns is read when it returns. Dead units and saturated entries are read off the graph that
the forward pass leaves for the backward pass, because that holds what the activation functions have computed.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch import _torch
from gradwatch.hooks.graph import operation_of, upstream_nodes
from gradwatch.hooks.guard import Guard, observing, without_collecting
from gradwatch.hooks.module_calls import anything_is_compiled, is_compiled, tensors_in
from gradwatch.hooks.outermost_calls import Listener, OutermostCalls
from gradwatch.measure.activation_functions import (
    flat_entries,
    is_softmax_of_one,
    may_be_activation,
    may_shut_the_loss,
)
from gradwatch.measure.function_roles import factors_of, scales_of
from gradwatch.measure.layer_figures import LayerValues
from gradwatch.measure.layers import Layers, has_children, submodules
from gradwatch.measure.output_norms import OutputNorms
from gradwatch.measure.report import SILENT_SAMPLES
from gradwatch.measure.segments import Segments
from gradwatch.measure.target_reach import TargetReach, target_reach
from gradwatch.ranks.shards import local_part

__all__ = ["Activations"]

ROWS = 256
"""Inputs of each unit that are examined in one forward pass."""

SAMPLED_IMAGES = 16
"""Images of a batch that are examined, each at ``ROWS`` ÷ ``SAMPLED_IMAGES`` positions."""

NODES = 4096
"""Nodes of a graph that are examined between two calls. A GPT-2 of 12 layers has 700."""

NEAR = 64
"""Nodes between an activation function and the module whose output it takes."""

MADE_BY = "gradwatch: returned by a layer"
"""A mark in the metadata of a node, with a ``_Maker``."""

SEEN = "gradwatch: examined from here"
"""A mark in the metadata of a node: its inputs were examined already."""

PRODUCTS = frozenset(("mm", "bmm", "addmm", "addbmm", "baddbmm"))

_LISTS_OF_PARAMETERS = (nn.ParameterList, nn.ParameterDict)
"""Modules that nobody calls. Keras keeps the parameters of each of its layers in one."""

LAYOUTS = 16
"""Layouts of units that are kept: one for each set of layers that are taken together."""

Figures = dict[str, LayerValues]


class _Roles(NamedTuple):
    """The nodes of a graph whose functions are gates, belong to the loss, or make a scale of the loss."""

    factors: Collection[Any]
    of_loss: Collection[Any]
    scales: Collection[Any]


class _Maker(NamedTuple):
    """The layer that returned a tensor: its column, and the dimension in which the tensor has its units."""

    column: int
    units: int


@dataclass(eq=False)
class _LayerActivations:
    """The figures of one layer, from the forward passes since the last sample.

    Attributes:
        silent: (units,) whether the rectifier after the layer was flat on every input of each unit.
        saturated: () shares of entries at which the other functions after the layer were flat, one for each call.
        gates: the same of functions whose result is a factor, and of those in the loss.
        is_softmax_of_one: whether the single unit of the layer went through a softmax over units.
        silent_scale: () whether the rectifier after the layer that makes a scale of the loss was flat on every input.
        is_output: no module with parameters came after it.
    """

    silent: Tensor | None = None
    saturated: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)
    is_softmax_of_one: bool = False
    silent_scale: Tensor | None = None
    is_output: bool = True

    def add_silent(self, units: Tensor) -> None:
        """Add one more call. A unit is silent only if it was silent in all calls."""
        before = self.silent
        self.silent = units if before is None or before.shape != units.shape else before & units

    def hidden_shares(self) -> list[Tensor]:
        """Return the shares of flat entries of functions inside the model."""
        return [] if self.is_output else self.saturated

    def output_shares(self) -> list[Tensor]:
        """Return the shares of flat entries of gates, of functions in the loss, and of the last one of the model."""
        return [*(self.saturated if self.is_output else ()), *self.gates]


class Activations:
    """The activations of forward passes between ``begin`` and ``take``.

    Args:
        models: as watched.
        layers: the table. Figures of a module are those of the column of its first weight, else of its first parameter.
        guard: takes the faults.

    Attributes:
        guard: as given.
    """

    def __init__(self, models: Mapping[str, nn.Module], layers: Layers, guard: Guard | None = None) -> None:
        self.guard = guard or Guard()
        self._modules = [module for model in models.values() for _, module in submodules(model)]
        parts = [(module, *_first_parameter(module, layers)) for module in self._modules]
        # a module without parameters and children shows nothing that the graph does not show
        self._parts = [part for part in parts if part[1] is not None or has_children(part[0])]
        self._shapes = [() if is_lazy(tensor) else tuple(tensor.shape) for tensor in layers.tensors]
        self._outputs = OutputNorms()
        self._silent_for: dict[int, Tensor] = {}  # column → (units,) sampled passes since each was last active
        self._layouts: dict[tuple[int, ...], Segments] = {}  # units of several layers → how they lie in one vector
        self._depth = 0  # of the calls under way
        self._last: int | None = None  # column of the module with parameters that returned last
        self._units = -1  # the dimension of the units of the last weight
        self._now: dict[int, _LayerActivations] = {}
        self._reach: dict[int, list[TargetReach]] = {}  # by the column of the layer whose outputs have targets
        self._shut: tuple[int, Tensor] | None = None  # the last layer before the loss, share of flat entries after it
        self._calls: OutermostCalls | None = None

    @observing("activations: begin")
    def begin(self) -> None:
        """Measure from the next forward pass on."""
        if self._calls is None and not any(map(is_compiled, self._modules)) and not anything_is_compiled():
            self._calls = self._listen()

    @observing("activations: loss")
    def observe_loss(self, loss: Tensor) -> None:
        """Take the loss before its backward pass: its graph holds the functions after the last module.

        Those that no layer comes after belong to the loss. A rectifier there is a hinge: where it is flat, the loss is
        satisfied, and no unit is dead. A squashing function there counts as the last one of the model.
        """
        if self._calls and loss.grad_fn is not None:
            reach = target_reach(loss.grad_fn)
            of_loss = upstream_nodes([loss.grad_fn], MADE_BY, NODES)
            self._shut = _flat_before_loss(of_loss)
            self._examine([loss.grad_fn], of_loss)
            if reach is not None and (maker := _maker_of(reach.node)) is not None:
                self._reach.setdefault(maker.column, []).append(reach)

    @observing("activations: taking")
    def take(self, columns: Collection[int]) -> Figures:
        """Return the figures of these columns since ``begin``, or since they were taken; keep those of the others."""
        now = {column: self._now.pop(column) for column in [*self._now] if column in columns}
        reach = {column: self._reach.pop(column) for column in [*self._reach] if column in columns}
        taken = {
            **_reach_figures(reach),
            **self._shut_figures([*now], columns),
            "activation_rms": self._outputs.take(columns),
            **self._dead_figures(now),
            "saturated_share": _shares({column: each.hidden_shares() for column, each in now.items()}),
            "saturated_output_share": _shares({column: each.output_shares() for column, each in now.items()}),
            "softmax_of_one": _softmaxes_of_one(now),
            "silent_scale": _silent_scales(now),
        }
        return {name: figure for name, figure in taken.items() if figure is not None}

    def remove(self) -> None:
        """Stop listening, and forget what nobody has taken."""
        if self._calls is not None:
            self._calls.remove()
        self._calls = None
        self._depth, self._last = 0, None
        self._now, self._reach, self._shut = {}, {}, None
        self._outputs.clear()

    def _shut_figures(self, last: Sequence[int], columns: Collection[int]) -> Figures:
        """Return how flat the functions before the loss are, where they come after a layer that is not of ``columns``.

        ``shut_ahead`` belongs to the last layer of ``columns`` that was called, ``shut_after`` is that other layer.
        """
        if self._shut is None or not last or self._shut[0] in columns:
            return {}
        after, share = self._shut
        return {
            "shut_ahead": LayerValues([last[-1]], share.unsqueeze(0)),
            "shut_after": LayerValues([last[-1]], np.array([float(after)])),
        }

    def _dead_figures(self, now: Mapping[int, _LayerActivations]) -> Figures:
        """Return how many samples in a row, this one included, layers and units of them were silent in.

        ``dead_share`` is the share of units that were so in ``SILENT_SAMPLES`` samples, ``shut_samples`` the number of
        those in which every unit was.
        """
        silent = {column: each.silent for column, each in now.items() if each.silent is not None}
        if not silent:
            return {}
        columns, units = [*silent], self._layout([*silent.values()])
        passes = (self._silent_passes(silent) + 1) * torch.cat([*silent.values()])
        self._silent_for.update(zip(silent, passes.split(units.lengths), strict=True))
        filled = torch.cat([passes, passes.new_full((1,), torch.inf)])  # for layers that have fewer units
        rows = units.rows(filled)
        alive = (rows < SILENT_SAMPLES).sum(-1)
        return {
            "dead_share": LayerValues(columns, 1 - alive / units.counts),
            "shut_samples": LayerValues(columns, rows.amin(-1)),
        }

    def _layout(self, of_layers: Sequence[Tensor]) -> Segments:
        """Return how the units of several layers lie in one vector."""
        lengths = tuple(map(len, of_layers))
        if lengths not in self._layouts:
            if len(self._layouts) == LAYOUTS:
                self._layouts.clear()
            self._layouts[lengths] = Segments(lengths, of_layers[0].device)
        return self._layouts[lengths]

    def _silent_passes(self, silent: Mapping[int, Tensor]) -> Tensor:
        """Return (N,) for how many samples each unit of these layers has been silent before this one."""
        known = self._silent_for
        new = {column: units for column, units in silent.items() if len(known.get(column, ())) != len(units)}
        if new:
            none = torch.zeros(max(map(len, new.values())), device=next(iter(new.values())).device)
            known.update({column: none[: len(units)] for column, units in new.items()})
        return torch.cat([known[column] for column in silent])

    def _listen(self) -> OutermostCalls:
        listeners = [
            Listener(module, functools.partial(self._leave, column, dimensions), hears_inner=column is not None)
            for module, column, dimensions in self._parts
        ]
        return OutermostCalls(listeners, self._enter, self.guard)

    @observing("activations: calls")
    def _enter(self, args: Any, kwargs: Any) -> None:
        self._depth += 1

    @observing("activations: calls")
    def _leave(self, column: int | None, dimensions: int, _: None, output: Any) -> None:
        self._depth -= 1
        activations = [tensor for tensor in tensors_in(output) if _is_activation(tensor)]
        if column is not None and activations:
            self._take_output(column, dimensions, activations)
        if self._depth == 0:
            nodes = [tensor.grad_fn for tensor in activations if tensor.grad_fn is not None]
            self._examine(nodes)
            for node in nodes:
                node.metadata[SEEN] = True  # type: ignore[index]

    def _take_output(self, column: int, dimensions: int, activations: list[Tensor]) -> None:
        if dimensions > 1:
            self._units = 1 if dimensions > 2 else -1  # a normalisation keeps that of the layer before
        if self._last is not None and self._last != column:
            self._now.setdefault(self._last, _LayerActivations()).is_output = False
        self._last = column
        layer = self._now.setdefault(column, _LayerActivations())
        layer.is_output = True
        self._outputs.add(column, local_part(activations[0].detach()))
        if _torch.saved_tensors_are_packed():
            return  # a checkpoint would compute what it saves again
        for tensor in activations:
            if tensor.grad_fn is not None:
                tensor.grad_fn.metadata[MADE_BY] = _Maker(column, self._units)  # type: ignore[index]

    @without_collecting
    def _examine(self, outputs: Sequence[Any], of_loss: Sequence[Any] = ()) -> None:
        """Find the activation functions upstream of ``outputs``, and note where they are flat."""
        nodes = upstream_nodes(outputs, SEEN, NODES)
        after_layers = set(of_loss)
        found = [(node, maker) for node in filter(may_be_activation, nodes) if (maker := _maker_of(node)) is not None]
        self._note_softmaxes_of_one(found)
        asked = [(node, functools.partial(_rows, units=maker.units)) for node, maker in found]
        roles = _Roles(
            factors_of(nodes), after_layers, scales_of([node for node, _ in found if node in after_layers], nodes)
        )
        for flat in flat_entries(asked):
            figures = flat.silent_units() if flat.kind == "rectifier" else flat.shares()
            for place, figure in zip(flat.places, figures, strict=True):
                node, maker = found[place]
                if (layer := self._now.get(maker.column)) is not None:
                    _note(layer, node, flat.kind, figure, roles)

    def _note_softmaxes_of_one(self, found: Sequence[tuple[Any, _Maker]]) -> None:
        """Note layers of a single unit whose result, alone, is given to a softmax over units."""
        for node, maker in found:
            has_one_unit = self._shapes[maker.column][:1] == (1,)
            layer = self._now.get(maker.column)
            if has_one_unit and layer is not None and is_softmax_of_one(node) and not _takes_a_product(node):
                layer.is_softmax_of_one = True


def _flat_before_loss(of_loss: Sequence[Any]) -> tuple[int, Tensor] | None:
    """Return the layer that the functions before a loss come after, and () the largest share of flat entries of any."""
    found = [(node, maker) for node in filter(may_shut_the_loss, of_loss) if (maker := _maker_of(node)) is not None]
    asked = [(node, functools.partial(_rows, units=maker.units)) for node, maker in found]
    shares = [share for flat in flat_entries(asked) for share in flat.shares()]
    return (found[0][1].column, torch.stack(shares).amax()) if shares else None


def _note(layer: _LayerActivations, node: Any, kind: str, figure: Tensor, roles: _Roles) -> None:
    """Note where the function of ``node`` is flat."""
    if kind != "rectifier":
        is_last = node in roles.factors or node in roles.of_loss
        (layer.gates if is_last else layer.saturated).append(figure)
    elif node not in roles.of_loss:
        layer.add_silent(figure)
    elif node in roles.scales:
        layer.silent_scale = figure.all()


def _softmaxes_of_one(now: Mapping[int, _LayerActivations]) -> LayerValues | None:
    """Return 1 for each layer whose single unit went through a softmax over units."""
    found = [column for column, each in now.items() if each.is_softmax_of_one]
    return LayerValues(found, np.ones(len(found))) if found else None


def _silent_scales(now: Mapping[int, _LayerActivations]) -> LayerValues | None:
    """Return 1 for each layer whose scale of the loss was silent for every unit and input, 0 for other such layers."""
    found = {column: each.silent_scale for column, each in now.items() if each.silent_scale is not None}
    return LayerValues([*found], torch.stack([*found.values()])) if found else None


def _shares(of_layers: Mapping[int, Sequence[Tensor]]) -> LayerValues | None:
    """Return the shares of every call of each column."""
    columns = [column for column, parts in of_layers.items() for _ in parts]
    parts = [part for parts in of_layers.values() for part in parts]
    return LayerValues(columns, torch.stack(parts)) if parts else None


def _reach_figures(reach: Mapping[int, Sequence[TargetReach]]) -> dict[str, LayerValues]:
    """Return the figures of targets, of each loss that reaches a layer."""
    losses = [(column, loss) for column, of_layer in reach.items() for loss in of_layer]
    if not losses:
        return {}
    columns = [column for column, _ in losses]
    names = [*losses[0][1].figures]
    together = torch.stack([loss.figures[name] for name in names for _, loss in losses]).split(len(losses))
    bounds = np.array([loss.output for _, loss in losses], dtype=np.float64)
    return {
        **{name: LayerValues(columns, values) for name, values in zip(names, together, strict=True)},
        "output_low": LayerValues(columns, bounds[:, 0]),
        "output_high": LayerValues(columns, bounds[:, 1]),
    }


def _first_parameter(module: nn.Module, layers: Layers) -> tuple[int | None, int]:
    """Return the column of the first watched parameter that ``module`` itself holds, and the most dimensions of any.

    The first weight counts before the first parameter.
    """
    owned = _parameters_held_by(module)
    columns = [column for parameter in owned if (column := layers.column(parameter)) is not None]
    first = next((column for column in columns if layers.is_weight[column]), next(iter(columns), None))
    return first, max((0 if is_lazy(parameter) else parameter.ndim for parameter in owned), default=0)


def _parameters_held_by(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``module`` itself, those that it keeps in lists or dicts included."""
    holders = [module, *(child for child in module.children() if isinstance(child, _LISTS_OF_PARAMETERS))]
    kept = [parameter for holder in holders for parameter in _torch.own_parameters(holder).values()]
    return [parameter for parameter in kept if parameter is not None]


def _maker_of(node: Any) -> _Maker | None:
    """Return the layer that returned the result of ``node`` itself, else the nearest one upstream of it."""
    if (maker := node.metadata.get(MADE_BY)) is not None:
        return maker
    ahead = _inputs_of(node)
    for place, upstream in enumerate(ahead):
        if (maker := upstream.metadata.get(MADE_BY)) is not None:
            return maker
        if place < NEAR:
            ahead += _inputs_of(upstream)
    return None


def _takes_a_product(node: Any) -> bool:
    """Return True if ``node`` is given a product of matrices, as attention is, before what a layer has returned."""
    ahead = node.next_functions[0][0]
    for _ in range(NEAR):
        if ahead is None or ahead.metadata.get(MADE_BY) is not None:
            return False
        if operation_of(ahead) in PRODUCTS:
            return True
        ahead = next(iter(_inputs_of(ahead)), None)
    return True


def _inputs_of(node: Any) -> list[Any]:
    return [upstream for upstream, _ in node.next_functions if upstream is not None]


def _rows(tensor: Tensor, units: int) -> Tensor:
    """Return at most ``ROWS`` evenly spaced rows of ``tensor``, a view: (rows, units) or (positions, images, units)."""
    if tensor.ndim <= 1:
        return tensor.reshape(1, -1)
    if units == 1 and tensor.ndim > 2:  # (images, units, positions...)
        images = min(len(tensor), SAMPLED_IMAGES)
        return _evenly(_evenly(tensor.flatten(2), images).transpose(0, 2), ROWS // images).transpose(1, 2)
    return _evenly(tensor.flatten(0, -2), ROWS)


def _evenly(tensor: Tensor, count: int) -> Tensor:
    """Return at most ``count`` evenly spaced slices of its first dimension."""
    return tensor if len(tensor) <= count else tensor[:: len(tensor) // count][:count]


def _is_activation(tensor: Tensor) -> bool:
    is_strided = tensor.layout is torch.strided
    return is_strided and tensor.is_floating_point() and tensor.ndim > 0 and tensor.numel() > 0
