"""Listen to the calls of a module, unseen by its copies, pickles, exports and scripts.

Hooks would do the same at three prices: a pickle holds them, a script refuses them, and a compiled graph is compiled
again once they are gone. So this sits where ``Module.compile`` sits: in what a call goes through and every copy leaves
behind.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.hooks.guard import Guard

__all__ = ["anything_is_compiled", "is_compiled", "listen", "tensors_in"]

Enter = Callable[[Any, Any], Any]
Leave = Callable[[Any, Any], None]


_LISTENING = "listening to calls of modules"
_UNDER_WAY: dict[int, _Listened] = {}  # by the ids of the modules that are being called and heard


class _Listened:
    """The way through which a module is called once someone listens to it."""

    def __init__(self, module: nn.Module, guard: Guard) -> None:
        self._guard = guard
        self._module = weakref.ref(module)  # the module holds this, and would else wait for the garbage collector
        self.listeners: list[tuple[Enter, Leave, bool]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing of gradwatch in a pickle: ``nn.LSTM`` keeps there what ``nn.Module`` leaves out."""
        return types.SimpleNamespace, (), {"call": None}

    def __deepcopy__(self, known: dict[int, Any]) -> _Listened:
        """Return one to which nobody listens: the copy of a module is not watched."""
        module = self._module()
        return _Listened(known.get(id(module), module), self._guard)  # type: ignore[arg-type]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; this is what the module holds, since Python counts a call of an object as two frames."""
        if torch.compiler.is_compiling() or _torch.compilers_callback() is not None:
            return _torch.plain_call_of(self._module())(*args, **kwargs)  # type: ignore[arg-type]
        called = _torch.calling_module()  # DataParallel's replicas keep the attribute
        plain_call = _torch.plain_call_of(called)
        began: list[tuple[Any, Leave]] = []
        try:
            is_heard = self._begin(began, called, args, kwargs)
        except Exception:  # the model runs all the same
            is_heard = True
            self._note_fault()
        if not is_heard:
            return plain_call(*args, **kwargs)
        output = None
        try:
            output = plain_call(*args, **kwargs)
        finally:
            try:
                self._step_back(called)
            except Exception:
                self._note_fault()
            for token, leave in reversed(began):
                leave(token, output)
        return output

    def _begin(self, began: list[tuple[Any, Leave]], called: nn.Module, args: Any, kwargs: Any) -> bool:
        """Let those who listen enter, each noted in ``began``, and step aside; return False where nobody may listen."""
        if called is not self._module() or not self._is_heard():
            return False
        has_graph = torch.is_grad_enabled()
        # whoever begins to listen within an `enter` hears this very call, so this is the list itself, not a copy
        for enter, leave, always in self.listeners:
            if has_graph or always:
                began.append((enter(args, kwargs), leave))
        self._step_aside(called)
        return True

    def _step_aside(self, module: nn.Module) -> None:
        """Be in nobody's way while ``module`` is called: it may call itself, and each call would be a frame deeper."""
        _UNDER_WAY[id(module)] = self
        _torch.clear_compiled_call(module)

    def _step_back(self, module: nn.Module) -> None:
        _UNDER_WAY.pop(id(module), None)
        if self.listeners and _torch.compiled_call_of(module) is None:
            _torch.set_compiled_call(module, self.call)

    def _note_fault(self) -> None:
        if not self._guard.leaves_out(_LISTENING):
            self._guard.note_fault(_LISTENING)

    @staticmethod
    def _is_heard() -> bool:
        """Return whether anybody may listen now: not where a checkpoint repeats a call, and not within a trace."""
        return not (_torch.in_backward() or _torch.is_tracing())


# else the compiler would begin at this frame, and take hooks of the user's into its graph that it leaves outside
for _function in (_Listened.call, _torch.plain_call_of):
    _torch.hide_frame(_function)


def _listened(module: nn.Module) -> _Listened | None:
    """Return the way through which ``module`` is called; None where nobody listens."""
    held = getattr(_torch.compiled_call_of(module), "__self__", None) or _UNDER_WAY.get(id(module))
    return held if isinstance(held, _Listened) else None


def is_compiled(module: nn.Module) -> bool:
    """Return whether calls of ``module`` itself are compiled or scripted."""
    if _torch.is_scripted(module) or _torch.compiled_part_of(module) is not None:
        return True
    return _torch.compiled_call_of(module) is not None and _listened(module) is None


def anything_is_compiled() -> bool:
    """Return whether ``torch.compile`` has compiled anything in this process."""
    return _torch.compiled_graphs() > 0


def tensors_in(tree: Any) -> list[Tensor]:
    """Return every tensor of what a module is given or returns."""
    if isinstance(tree, Tensor):  # most often; a walk through a tree costs ten times as much
        return [tree]
    return [leaf for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor)]


def listen(
    module: nn.Module, enter: Enter, leave: Leave, guard: Guard | None = None, *, also_without_grad: bool = False
) -> Callable[[], None] | None:
    """Call ``leave(enter(args, kwargs), output)`` around each call of ``module`` in training.

    ``output`` is None for a call that raises. Calls that are compiled or traced, or that a checkpoint repeats within
    the backward pass, are not listened to, nor calls of ``module`` within its own call.

    Args:
        module: the one to listen to.
        enter, leave: called before and after; what fails in them is theirs to guard.
        guard: takes the faults of listening itself: that of whoever listens first.
        also_without_grad: also listen to calls under ``no_grad``.

    Returns:
        A function that ends it; None where the module is compiled or scripted.
    """
    if is_compiled(module):
        return None
    listened = _listened(module)
    if listened is None:
        listened = _Listened(module, guard or Guard())
        _torch.set_compiled_call(module, listened.call)
    listener = (enter, leave, also_without_grad)
    listened.listeners.append(listener)
    known = weakref.ref(module)

    def stop() -> None:
        if listener in listened.listeners:
            listened.listeners.remove(listener)
        module = known()
        if not listened.listeners and module is not None and _listened(module) is listened:
            _torch.clear_compiled_call(module)  # else it was compiled since, and is the compiler's

    return stop
