"""Copy a model in such a way that nothing done to the copy changes the run.

The copy, called a replica, shares the weights of the model. It has buffers, containers and gradients of its own.
"""

from __future__ import annotations

import contextlib
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch import _torch

__all__ = ["UnrepeatableError", "as_it_was", "replica_of"]


_PLAIN = (bool, int, float, str, types.NoneType)


class UnrepeatableError(Exception):
    """The reason why a step cannot be run again."""


def replica_of(thing: Any, known: dict[int, Any]) -> Any:
    """Return a replica of a module, or of anything that a module holds.

    Args:
        thing: weights are shared; buffers and containers are copied; any other object is returned as it is.
        known: replicas so far by the ids of their originals, so that shared parts stay shared.
    """
    if type(thing) in _PLAIN:
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
        made.update((key, replica_of(part, known)) for key, part in thing.items())
        return made
    return thing


def _replica_of_module(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    if _torch.is_scripted(module):
        raise UnrepeatableError("a part of the model is scripted")
    if (eager := _torch.compiled_part_of(module)) is not None:
        known[id(module)] = made = _replica_of_module(eager, known)
        return made
    known[id(module)] = made = module.__new__(type(module))
    tables = _torch.hook_tables(module)
    attributes = {name: value for name, value in module.__dict__.items() if name not in tables}
    made.__dict__ = {name: replica_of(value, known) for name, value in attributes.items()}
    _torch.clear_compiled_call(made)
    around_forward = _torch.forward_hook_tables(module)
    for name, hooks in tables.items():  # hooks of torch make the weight (``spectral_norm``, ``prune``)
        kept = [(i, hook) for i, hook in hooks.items() if name in around_forward and _is_of_torch(hook)]
        made.__dict__[name] = type(hooks)(kept)  # type: ignore[call-arg]
    return made


def _is_of_torch(hook: Callable[..., Any]) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")


@contextlib.contextmanager
def as_it_was() -> Iterator[None]:
    """Return a context with gradients on and anomaly mode off, after which every generator has its state again."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices), torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
