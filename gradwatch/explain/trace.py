"""Looks at every call of every module → ``ModuleCall``s.

Enters: modules. Leaves: what each was given and returned since the last update, one reduction a tensor on the device.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch import _torch
from gradwatch.explain.origin import ModuleCall, TensorSummary, origin_of
from gradwatch.hooks.guard import harmless
from gradwatch.hooks.module_calls import listen
from gradwatch.measure.report import Origin

__all__ = ["Trace"]

KEPT = 64  # forward passes of a whole model that are kept: more than most accumulate before one update


class Trace:
    """Looks at every call of every module, from construction to ``remove``.

    Modules that are compiled or scripted are left alone, with all that is in them; so is what runs without gradients,
    and what a checkpoint computes again.

    Args:
        models: {name: module}.
        keeps_all: calls without end, where somebody takes them soon.
    """

    def __init__(self, models: Mapping[str, nn.Module], *, keeps_all: bool = False) -> None:
        self.broken: set[str] = set()
        self._under_way: list[ModuleCall] = []
        self._summaries: dict[int, tuple[weakref.ref[Tensor], int, TensorSummary]] = {}
        self._on_leaves: list[RemovableHandle] = []
        self._undo = [stop for name, model in models.items() for stop in self._listen(name, model)]
        most = None if keeps_all else KEPT * max(1, len(self._undo))
        self._calls: deque[ModuleCall] = deque(maxlen=most)

    @harmless
    def origin(self, calls: Sequence[ModuleCall], loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
        """As ``origin_of``."""
        return origin_of(calls, loss, sick_layers)

    @harmless
    def take(self) -> list[ModuleCall]:
        """The calls since the last time, in the order in which they ended."""
        calls = list(self._calls)
        self._calls.clear()
        self._under_way.clear()
        self._summaries.clear()
        while self._on_leaves:
            self._on_leaves.pop().remove()
        return calls

    def module_under_way(self) -> str:
        """The name of the innermost module whose forward pass has begun and not ended."""
        return self._under_way[-1].module if self._under_way else ""

    def remove(self) -> None:
        """Listens no more."""
        for stop in self._undo:
            stop()
        self.take()

    def _listen(self, name: str, module: nn.Module) -> Iterator[Callable[[], None]]:
        """To the module and its parts, less what is compiled or scripted."""
        is_builtin = type(module).__module__.startswith("torch.nn.") and not any(module.children())
        stop = listen(module, partial(self._enter, name, type(module).__name__, is_builtin), self._leave)
        if stop is not None:
            yield stop
            for part, child in module.named_children():
                yield from self._listen(f"{name}.{part}".lstrip("."), child)

    @harmless
    def _enter(self, name: str, kind: str, is_builtin: bool, args: Any, kwargs: Any) -> ModuleCall:
        given = _tensors((args, kwargs))
        if not self._under_way:
            self._summaries.clear()
        call = ModuleCall(name, kind, [self._look(tensor) for tensor in given], is_builtin=is_builtin)
        if not self._under_way:
            call.is_whole, call.batch = True, [weakref.ref(tensor) for tensor in given]
            call.computed = [summary for t, summary in zip(given, call.entered, strict=True) if t.grad_fn is not None]
        self._under_way.append(call)
        return call

    @harmless
    def _leave(self, call: ModuleCall | None, output: Any) -> None:
        if call in self._under_way:
            del self._under_way[self._under_way.index(call) :]  # those after it raised, and never left
            call.left = [self._look(tensor) for tensor in _tensors(output)]
            self._calls.append(call)

    def _look(self, tensor: Tensor) -> TensorSummary:
        """What one module returns the next one is given: a tensor is looked at once, until it is changed in place."""
        version = 0 if tensor.is_inference() else _torch.version_of(tensor)
        known, seen, summary = self._summaries.get(id(tensor), (None, 0, None))
        if summary is None or known is None or known() is not tensor or seen != version:
            summary = TensorSummary(_extremes(tensor))
            self._summaries[id(tensor)] = weakref.ref(tensor), version, summary
            if tensor.requires_grad:
                handle = tensor.register_hook(self._note_in(summary.gradients))
                if tensor.is_leaf:  # it outlives the step
                    self._on_leaves.append(handle)
        return summary

    def _note_in(self, gradients: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            self._note(gradients, gradient)

        return note

    @harmless
    def _note(self, gradients: list[tuple[Tensor, Tensor]], gradient: Tensor) -> None:
        if _has_entries(gradient):
            gradients.append(_extremes(gradient))


def _has_entries(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor) and _has_entries(leaf)]


@torch.no_grad()
def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    tensor = tensor.detach()
    smallest, largest = torch.aminmax(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    return smallest, largest
