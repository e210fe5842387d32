"""Listens to the calls of a module, unseen by its copies, pickles, exports and scripts.

Enters: a module. Leaves: what it is given and returns, in training. Hooks would do the same at three prices: a pickle
holds them, a script refuses them, and a compiled graph is compiled again once they are gone. So this sits where
``Module.compile`` sits: in what a call goes through and every copy leaves behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch

__all__ = ["anything_is_compiled", "is_compiled", "listen", "tensors_in"]

Enter = Callable[[Any, Any], Any]
Leave = Callable[[Any, Any], None]


class _Listened:
    """What a module is called through, once someone listens to it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)  # the module holds this, and would else wait for the garbage collector
        self.listeners: list[tuple[Enter, Leave]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return _torch.call_plainly(self._module(), args, kwargs)  # type: ignore[arg-type]
        called = _torch.calling_module()  # DataParallel's replicas keep the attribute
        is_in_training = torch.is_grad_enabled() and not _torch.in_backward()
        if called is not self._module() or not is_in_training or _torch.is_tracing():
            return _torch.call_plainly(called, args, kwargs)
        began = [(enter(args, kwargs), leave) for enter, leave in self.listeners]
        output = None
        try:
            output = _torch.call_plainly(called, args, kwargs)
        finally:
            for token, leave in reversed(began):
                leave(token, output)
        return output


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of ``module`` itself are compiled or scripted."""
    if isinstance(module, torch.jit.ScriptModule) or _torch.compiled_part_of(module) is not None:
        return True
    return not isinstance(_torch.compiled_call_of(module), _Listened | None)


def anything_is_compiled() -> bool:
    """Whether ``torch.compile`` has compiled anything in this process."""
    return _torch.compiled_graphs() > 0


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor of what a module is given or returns."""
    if isinstance(tree, Tensor):  # most often; a walk through a tree costs ten times as much
        return [tree]
    return [leaf for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor)]


def listen(module: nn.Module, enter: Enter, leave: Leave) -> Callable[[], None] | None:
    """Around each call of ``module`` in training: ``leave(enter(args, kwargs), output)``.

    A call that raises leaves with None. Not listened to: what is compiled or traced, what runs without gradients, and
    what a checkpoint computes again within the backward pass.

    Returns:
        What ends it; None where the module is compiled or scripted.
    """
    if is_compiled(module):
        return None
    listened: Any = _torch.compiled_call_of(module)
    if listened is None:
        listened = _Listened(module)
        _torch.set_compiled_call(module, listened)
    listener = (enter, leave)
    listened.listeners.append(listener)
    known = weakref.ref(module)

    def stop() -> None:
        if listener in listened.listeners:
            listened.listeners.remove(listener)
        module = known()
        if not listened.listeners and module is not None and _torch.compiled_call_of(module) is listened:
            _torch.clear_compiled_call(module)  # else it was compiled since, and is the compiler's

    return stop
