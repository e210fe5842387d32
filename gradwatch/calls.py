"""Listens to the calls of a module, unseen by its copies, pickles, exports and scripts.

Enters: a module. Leaves: what it is given and returns, in training. Hooks would do the same at three prices: a pickle
holds them, a script refuses them, and a compiled graph is compiled again once they are gone. So this sits where
``Module.compile`` sits: in ``_compiled_call_impl``, which a call goes through and every copy leaves behind.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["listen"]


def listen(
    module: nn.Module, enter: Callable[[Any, Any], Any], leave: Callable[[Any, Any], None]
) -> Callable[[], None] | None:
    """Around each call of ``module`` in training: ``leave(enter(args, kwargs), output)``.

    A call that raises never leaves. Not listened to: what is compiled or traced, what runs without gradients, and what
    a checkpoint computes again within the backward pass.

    Returns:
        What ends it; None where the module is compiled, scripted, or listened to already.
    """
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        return None
    if getattr(module, "_compiled_call_impl", None) is not None:
        return None

    known = weakref.ref(module)  # the module holds ``call``, and would else wait for the garbage collector

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return known()._call_impl(*args, **kwargs)  # type: ignore[union-attr]
        called: nn.Module = sys._getframe(1).f_locals["self"]  # DataParallel's copies keep the attribute
        if called is not known() or not _is_in_training():
            return called._call_impl(*args, **kwargs)
        began = enter(args, kwargs)
        output = called._call_impl(*args, **kwargs)
        leave(began, output)
        return output

    def stop() -> None:
        listened = known()
        if listened is not None and listened._compiled_call_impl is call:  # compiled since, it is the compiler's
            listened._compiled_call_impl = None

    module._compiled_call_impl = call
    return stop


def _is_in_training() -> bool:
    if torch._C._get_tracing_state() is not None or not torch.is_grad_enabled():
        return False
    return torch._C._current_graph_task_id() == -1
