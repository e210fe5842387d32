"""Looks at every call of every module: hooks → ``Passage``s.

Enters: modules. Leaves: what each was given and returned since the last update, one reduction a tensor on the device.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gradwatch.harmless import harmless
from gradwatch.origin import Look, Passage, origin_of
from gradwatch.report import Origin

__all__ = ["Trace"]

KEPT = 64  # forward passes of a whole model that are kept: more than most accumulate before one update


class Trace:
    """Looks at every call of every module, from construction to ``remove``.

    Modules that are compiled or scripted are left alone, with all that is in them; so is what runs without gradients,
    and what a checkpoint computes again.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.broken: set[str] = set()
        modules = [pair for name, model in models.items() for pair in _visible(name, model)]
        self._passages: deque[Passage] = deque(maxlen=KEPT * max(1, len(modules)))
        self._under_way: list[Passage] = []
        self._looks: dict[int, tuple[weakref.ref[Tensor], int, Look]] = {}
        self._handles = [handle for name, module in modules for handle in self._hook(name, module)]

    @harmless
    def origin(self, passages: Sequence[Passage], loss: float | None, sick_layers: Sequence[str]) -> Origin | None:
        """As ``origin_of``."""
        return origin_of(passages, loss, sick_layers)

    @harmless
    def take(self) -> list[Passage]:
        """The calls since the last time, in the order in which they ended."""
        passages = list(self._passages)
        self._passages.clear()
        self._under_way.clear()
        self._looks.clear()
        return passages

    def remove(self) -> None:
        """Takes every hook off."""
        for handle in self._handles:
            handle.remove()
        self.take()

    def _hook(self, name: str, module: nn.Module) -> Iterator[Any]:
        kind = type(module).__name__
        is_builtin = type(module).__module__.startswith("torch.nn.") and not any(module.children())

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if _is_training_call():
                self._enter(name, kind, is_builtin, (args, kwargs))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if _is_training_call():
                self._leave(name, output)

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    @harmless
    def _enter(self, name: str, kind: str, is_builtin: bool, inputs: Any) -> None:
        given = _tensors(inputs)
        if not self._under_way:
            self._looks.clear()
        passage = Passage(name, kind, [self._look(tensor) for tensor in given], is_builtin=is_builtin)
        if not self._under_way:
            passage.is_whole, passage.batch = True, [weakref.ref(tensor) for tensor in given]
            passage.computed = [look for t, look in zip(given, passage.entered, strict=True) if t.grad_fn is not None]
        self._under_way.append(passage)

    @harmless
    def _leave(self, name: str, output: Any) -> None:
        while self._under_way:  # a forward pass that raised never left
            passage = self._under_way.pop()
            if passage.module == name:
                passage.left = [self._look(tensor) for tensor in _tensors(output)]
                self._passages.append(passage)
                return

    def _look(self, tensor: Tensor) -> Look:
        """What one module returns the next one is given: a tensor is looked at once, until it is changed in place."""
        version = 0 if tensor.is_inference() else tensor._version
        known, seen, look = self._looks.get(id(tensor), (None, 0, None))
        if look is None or known is None or known() is not tensor or seen != version:
            look = Look(_extremes(tensor))
            self._looks[id(tensor)] = weakref.ref(tensor), version, look
            if tensor.requires_grad:
                tensor.register_hook(self._note_in(look.gradients))
        return look

    def _note_in(self, gradients: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            self._note(gradients, gradient)

        return note

    @harmless
    def _note(self, gradients: list[tuple[Tensor, Tensor]], gradient: Tensor) -> None:
        if _has_entries(gradient):
            gradients.append(_extremes(gradient))


def _visible(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and its parts, less what is compiled or scripted."""
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        return
    if getattr(module, "_compiled_call_impl", None) is not None:
        return
    yield name, module
    for part, child in module.named_children():
        yield from _visible(f"{name}.{part}".lstrip("."), child)


def _is_training_call() -> bool:
    """Whether a call is worth a look: not compiled or traced, with gradients, not computed again by a checkpoint."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1


def _has_entries(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout is torch.strided


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and _has_entries(leaf)]


@torch.no_grad()
def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    tensor = tensor.detach()
    smallest, largest = torch.aminmax(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    return smallest, largest
