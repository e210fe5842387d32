"""A device that counts what a real one would have had to launch, to copy, and to wait for; it computes on the CPU.

It stands in for a GPU where there is none. Its tensors are off the CPU for torch, for autograd and for gradwatch, and
hold real numbers. What a GPU would do at the same calls is counted:

- a **launch** for each operation that is no view and no allocation;
- a **copy** for each tensor that goes from the host to the device or back;
- a **wait** wherever the host would stand still until the device has caught up: to read a number, to learn a size, and
  at each copy that is not asked to be ``non_blocking``. ``torch.cuda.set_sync_debug_mode("error")`` raises at the same.

Importing this module gives torch one more device, once and for all, so it belongs into a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "Counted", "moved"]

_setup_privateuseone_for_python_backend("counted")

DEVICE = torch.device("counted", 0)

ALLOCATES = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"))
"""Operations that make a tensor and launch nothing."""

WAITS = frozenset(
    ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2", "unique_dim")
)
"""Operations whose result, or the size of it, the host has to know."""


class _OnDevice(Tensor):
    """A tensor of the device. Its numbers are in ``host``."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> _OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Event:
    """An event of the device: what was launched before it is done when the step is over in which it was recorded."""

    def __init__(self, device: torch.device) -> None:
        self._recorded_by: Counted | None = None

    def record(self) -> None:
        self._recorded_by = Counted.entered

    def query(self) -> bool:
        return self._recorded_by is not Counted.entered

    def synchronize(self) -> None:
        if not self.query() and Counted.entered is not None:
            Counted.entered.waits["event"] += 1


torch.Event = _Event  # type: ignore[misc, assignment]


class _Made(TorchFunctionMode):
    """Makes tensors of Python numbers, as ``torch.tensor`` does: on the host, from where they are copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if func not in (torch.tensor, torch.as_tensor) or wanted is None or torch.device(wanted).type == "cpu":
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(wanted)


class Counted(TorchDispatchMode):
    """Lets operations reach the device while it is entered, and counts them.

    Attributes:
        launches: by name.
        copies: by direction, ``"to device"`` and ``"to host"``.
        waits: by the name of the operation.
    """

    entered: ClassVar[Counted | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._made = _Made()

    def __enter__(self) -> Counted:
        Counted.entered = self
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)
        Counted.entered = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self)


def moved(model: nn.Module) -> nn.Module:
    """Move a model to the device. Parameters that several modules share stay shared."""
    known: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in known:
                known[parameter] = nn.Parameter(_OnDevice(parameter.detach()), parameter.requires_grad)
            setattr(module, name, known[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _OnDevice(buffer))
    return model


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], counted: Counted | None = None) -> Any:
    wanted = kwargs.get("device")
    is_of_device = [isinstance(leaf, _OnDevice) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    goes_to_device = wanted is not None and torch.device(wanted).type == DEVICE.type
    if not any(is_of_device) and not goes_to_device:
        return func(*args, **kwargs)
    goes_to_host = wanted is not None and not goes_to_device
    if counted is not None:
        _count(counted, func, args, kwargs, goes_to_host=goes_to_host)
    on_host = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    result = func(*tree_map(_host_of, tuple(args)), **tree_map(_host_of, dict(on_host)))
    if goes_to_host or (func is torch.ops.aten.copy_.default and not isinstance(args[0], _OnDevice)):
        return args[0] if func is torch.ops.aten.copy_.default else result.clone()
    return return_and_correct_aliasing(func, tuple(args), dict(kwargs), tree_map(_wrapped, result))


def _count(counted: Counted, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, goes_to_host: bool) -> None:
    name = func._schema.name.split("::")[-1]
    direction = _direction(name, args, kwargs, goes_to_host=goes_to_host)
    if direction is not None:
        counted.copies[direction] += 1
        is_asynchronous = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        if not is_asynchronous:
            counted.waits[f"copy {direction}"] += 1
    elif name in WAITS or (name == "segment_reduce" and not kwargs.get("unsafe", False)):
        counted.waits[name] += 1
    elif name in ("index", "index_put_") and _takes_a_mask(args):
        counted.waits["index by a mask"] += 1
    elif not func.is_view and name not in ALLOCATES:
        counted.launches[name] += 1


def _direction(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, goes_to_host: bool) -> str | None:
    """Return which way an operation copies between host and device; None where it does not."""
    if name == "copy_":
        to, source = (isinstance(tensor, _OnDevice) for tensor in args[:2])
        return None if to == source else "to device" if to else "to host"
    if name != "_to_copy" or kwargs.get("device") is None:
        return None
    if goes_to_host:
        return "to host"
    return None if isinstance(args[0], _OnDevice) else "to device"


def _takes_a_mask(args: Sequence[Any]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _host_of(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, _OnDevice) else leaf


def _wrapped(leaf: Any) -> Any:
    return _OnDevice(leaf) if isinstance(leaf, Tensor) else leaf
