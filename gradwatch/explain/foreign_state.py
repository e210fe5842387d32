"""Prove that a call can be repeated in this process, because it changes nothing but buffers and random state.

It is proved where nobody but torch has written what runs: torch's own modules, which hold tensors and plain values, and
are given such. A replica has buffers of its own, and the generators of random numbers are put back. Code of the user's
may read an iterator, count calls, write a file or move weights; nothing is proved of it.
"""

from __future__ import annotations

import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.explain.recorded_call import RecordedCall, arguments_of
from gradwatch.explain.replica import PLAIN_TYPES

__all__ = ["is_free_of_foreign_state"]

_PLAIN = (bool, int, float, complex, str, bytes, types.NoneType, types.EllipsisType, torch.dtype, torch.device,
          torch.layout, torch.memory_format, weakref.ref)  # fmt: skip
_CONTAINERS = (list, tuple, set, frozenset, torch.Size)
_TENSORS = (Tensor, nn.Parameter)
_SAYS_HOW_IT_IS_MADE = {"__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__parameters__",
                        "__orig_bases__", "__firstlineno__", "__static_attributes__"}  # fmt: skip
_WRITES_WEIGHTS = ("max_norm",)  # an embedding's, whose forward pass shrinks the rows that it reads


def is_free_of_foreign_state(calls: Iterable[RecordedCall], models: Iterable[nn.Module]) -> bool:
    """Return whether repeating ``calls`` of ``models`` on replicas is proved to change nothing of this process."""
    if not all(map(_is_plain, map(arguments_of, calls))) or _torch.anyone_follows_all_calls():
        return False
    modules = [module for model in models for module in model.modules()]
    return all(map(_runs_torchs_code_only, {type(module) for module in modules})) and all(map(_holds_plain, modules))


def _runs_torchs_code_only(kind: type[nn.Module]) -> bool:
    is_torchs = all(map(_is_torchs_code, (kind.forward, kind.__call__)))
    return is_torchs and all(map(_adds_nothing_that_runs, kind.__mro__))


def _holds_plain(module: nn.Module) -> bool:
    """Return whether ``module`` holds tensors and plain values alone, and its forward pass writes no weight."""
    if any(vars(module).get(name) is not None for name in _WRITES_WEIGHTS):
        return False
    tensors = [*_torch.own_parameters(module).values(), *_torch.own_buffers(module).values()]
    held = vars(module).items()
    suspects = [value for name, value in held if type(value) not in PLAIN_TYPES and name not in _torch.TABLES]
    return _is_plain(tensors) and _is_plain(suspects)


def _adds_nothing_that_runs(kind: type) -> bool:
    """Return whether torch has written ``kind``, or it adds to its bases no more than how its modules are made."""
    return kind is object or _is_torchs_class(kind) or vars(kind).keys() <= _SAYS_HOW_IT_IS_MADE


def _is_torchs_class(kind: type) -> bool:
    """Return whether ``kind`` is a class of ``torch.nn``, or one that a parametrisation makes of any class."""
    if kind.__module__ == "torch.nn.utils.parametrize" and kind.__name__.startswith("Parametrized"):
        return True
    is_in_home = kind.__module__.startswith(("torch.nn.modules.", "torch.nn.utils.parametriz"))
    return is_in_home and vars(sys.modules[kind.__module__]).get(kind.__qualname__) is kind


def _is_torchs_code(function: Callable[..., Any]) -> bool:
    """Return whether torch has written ``function``: not only what is around it, such as ``torch.no_grad()``."""
    return str(getattr(inspect.unwrap(function), "__globals__", {}).get("__name__")).startswith("torch.")


def _is_plain(value: Any) -> bool:
    """Return whether ``value`` is a tensor, a plain value, a function of torch, or a container of such."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, Tensor):
        return type(value) in _TENSORS
    if type(value) in _CONTAINERS:
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return type(value).__module__ in ("builtins", "collections") and all(map(_is_plain, value.values()))
    return _is_torchs_function(value)


def _is_torchs_function(value: Any) -> bool:
    if not isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return False
    home = str(value.__module__)
    return home.startswith("torch") and getattr(sys.modules.get(home), value.__name__, None) is value
