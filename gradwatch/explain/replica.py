"""Copy a model in such a way that nothing done to the copy changes the run.

The copy, called a replica, shares the weights of the model. It has buffers, containers and gradients of its own.
"""

from __future__ import annotations

import contextlib
import gc
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch import _torch

__all__ = ["PLAIN_TYPES", "UnrepeatableError", "as_it_was", "replica_of"]

PLAIN_TYPES = frozenset({bool, int, float, str, types.NoneType})
"""Types of most values that a module holds, which nothing changes in place."""


class UnrepeatableError(Exception):
    """The reason why a step cannot be run again."""


def replica_of(thing: Any, known: dict[int, Any]) -> Any:
    """Return a replica of a module, or of anything that a module holds.

    Args:
        thing: weights are shared; buffers and containers are copied; any other object is returned as it is.
        known: replicas so far by the ids of their originals, so that shared parts stay shared.
    """
    if type(thing) in PLAIN_TYPES:
        return thing
    if id(thing) not in known:
        if isinstance(thing, nn.Module):
            return _replica_of_module(thing, known)
        is_tensor = isinstance(thing, Tensor)
        known[id(thing)] = _replica_of_tensor(thing) if is_tensor else _replica_of_container(thing, known)
    return known[id(thing)]


def _replica_of_tensor(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):  # has no entries until its module is called
        lazy: Any = type(tensor)
        return lazy(tensor.requires_grad, tensor.device, tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), tensor.requires_grad)
    return tensor.detach() if tensor.grad_fn is not None else tensor.detach().clone()


def _replica_of_container(thing: Any, known: dict[int, Any]) -> Any:
    if type(thing) in (list, tuple, set, deque):
        return type(thing)(replica_of(part, known) for part in thing)
    if isinstance(thing, dict) and type(thing).__module__ in ("builtins", "collections"):
        made = thing.copy()  # with what else it holds: the factory of a ``defaultdict``
        for key, part in thing.items():
            made[key] = replica_of(part, known)
        return made
    return thing


def _replica_of_module(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    if _torch.is_scripted(module):
        raise UnrepeatableError("a part of the model is scripted")
    if (eager := _torch.compiled_part_of(module)) is not None:
        known[id(module)] = made = _replica_of_module(eager, known)
        return made
    known[id(module)] = made = module.__new__(type(module))
    held = {}
    for name, value in module.__dict__.items():
        if name in _torch.TABLES and not value:
            held[name] = type(value)()
        elif name in _torch.HOOK_TABLES:
            held[name] = type(value)(_kept_hooks(name, value))
        else:
            held[name] = value if type(value) in PLAIN_TYPES else replica_of(value, known)
    made.__dict__ = held
    _torch.clear_compiled_call(made)
    return made


def _kept_hooks(table: str, hooks: Mapping[int, Any]) -> list[tuple[int, Any]]:
    """Return the hooks around ``forward`` that are torch's own: they make the weight (``spectral_norm``, ``prune``)."""
    return [(i, hook) for i, hook in hooks.items() if table in _torch.FORWARD_HOOK_TABLES and _is_of_torch(hook)]


def _is_of_torch(hook: Callable[..., Any]) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Return a context with gradients on and anomaly mode off, after which every generator has its state again.

    No garbage is collected in it: what a replica of thousands of modules holds would be looked through many times.
    """
    states, collects = (random.getstate(), np.random.get_state()), gc.isenabled()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    gc.disable()
    try:
        with torch.random.fork_rng(devices), torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if collects:
            gc.enable()
