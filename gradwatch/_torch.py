"""Every name of torch that is private or differs between versions, one function each.

The rest of the package uses torch's documented interface alone; ``tests/test_torch_names.py`` enforces it. A new
release of torch is therefore checked here first. Where versions differ, the branch asks what torch has, not its number.
"""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo import eval_frame as _eval_frame
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

__all__ = [
    "BATCH_NORM",
    "FORWARD_HOOK_TABLES",
    "HOOK_TABLES",
    "TABLES",
    "DispatchMode",
    "anyone_follows_all_calls",
    "call_after_backward",
    "calling_module",
    "clear_compiled_call",
    "code_around_steps",
    "compiled_call_of",
    "compiled_graphs",
    "compiled_part_of",
    "compilers_callback",
    "current_node",
    "default_store",
    "event_file_of",
    "file_writer_of",
    "flat_shards",
    "foreach_mul_",
    "foreach_norm",
    "forget_overflow",
    "hide_frame",
    "in_backward",
    "is_capturing",
    "is_joining",
    "is_scripted",
    "is_tracing",
    "modules_set_so_far",
    "own_buffers",
    "own_modules",
    "own_parameters",
    "parameters_set_so_far",
    "past_dispatch_modes",
    "plain_call_of",
    "positions_by_device_and_dtype",
    "saved_tensor",
    "saved_tensors_are_packed",
    "scale_left_on",
    "scale_of",
    "schema_of",
    "sequence_number",
    "set_compiled_call",
    "tree_leaves",
    "tree_map",
    "unscales_itself",
    "uses_scaler",
    "version_of",
]

DispatchMode = TorchDispatchMode
"""The base class of modes that see every operation."""

BATCH_NORM = nn.modules.batchnorm._BatchNorm
"""The base class of all batch normalisations, lazy and synchronised ones included."""


# Trees of lists, tuples and dicts

_LEAVES = {bool, int, float, complex, str, bytes, types.NoneType, torch.dtype, torch.device}


def tree_leaves(tree: Any) -> list[Any]:
    """Return everything in ``tree`` that is no container.

    torch's function takes 30 times as long for what most calls are given, a tuple of tensors; other containers are its.
    """
    leaves: list[Any] = []
    _gather(tree, leaves)
    return leaves


def _gather(tree: Any, leaves: list[Any]) -> None:
    """Add to ``leaves`` everything in ``tree`` that is no container."""
    kind = type(tree)
    if kind is tuple or kind is list:
        for part in tree:
            _gather(part, leaves)
    elif kind is dict:
        for part in tree.values():
            _gather(part, leaves)
    elif kind in _LEAVES or isinstance(tree, Tensor):
        leaves.append(tree)
    else:
        leaves += _pytree.tree_leaves(tree)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to each of its leaves."""
    return _pytree.tree_map(function, tree)


# Modules


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children of ``module`` by name: the very dict that the module keeps."""
    return module._modules


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters of ``module`` itself by name: the very dict that the module keeps."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers of ``module`` itself by name: the very dict that the module keeps."""
    return module._buffers


def modules_set_so_far(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return ``own_modules`` of a module that may be under construction; runs no code of the module's class."""
    return module.__dict__.get("_modules", {})


def parameters_set_so_far(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return ``own_parameters`` of a module that may be under construction; runs no code of the module's class."""
    return module.__dict__.get("_parameters", {})


def plain_call_of(module: nn.Module) -> Callable[..., Any]:
    """Return how to call ``module`` with its hooks, past whatever ``Module.compile`` put in the way."""
    return module._call_impl


def code_around_calls() -> CodeType:
    """Return the code of torch's own frame around every call of a module."""
    return nn.Module._wrapped_call_impl.__code__


def calling_module() -> nn.Module:
    """Return the module whose call led to the function that asks, where it stands in ``Module.compile``'s place."""
    module: nn.Module = sys._getframe(2).f_locals["self"]
    return module


def compiled_call_of(module: nn.Module) -> Any:
    """Return what calls of ``module`` go through instead of its hooks and ``forward``; None where they do not."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Callable[..., Any]) -> None:
    """Send calls of ``module`` through ``call``; its copies, pickles and scripts do not inherit that."""
    module.__dict__["_compiled_call_impl"] = call  # past ``nn.Module.__setattr__``, which takes ten times as long


def clear_compiled_call(module: nn.Module) -> None:
    """Undo ``set_compiled_call``; fine where nothing was set."""
    module.__dict__.pop("_compiled_call_impl", None)


def compiled_part_of(module: nn.Module) -> nn.Module | None:
    """Return the module that ``torch.compile(module)`` wrapped; None for any other module."""
    is_wrapper = type(module).__name__ == "OptimizedModule"  # importing its class would import the compiler
    return own_modules(module)["_orig_mod"] if is_wrapper else None


_WRAPPED_AS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def wrapped_part_of(module: nn.Module) -> nn.Module | None:
    """Return what FSDP1, torch's ``checkpoint_wrapper`` or Fabric has wrapped; None for any other module."""
    is_known = type(module).__module__.partition(".")[0] in ("torch", "lightning", "lightning_fabric")
    children = own_modules(module) if is_known else {}  # that of a scripted module is a mapping without get()
    return next((part for name in _WRAPPED_AS if name in children and (part := children[name]) is not None), None)


HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if name.endswith("_hooks"))
"""The attributes of a module that hold its hooks."""

FORWARD_HOOK_TABLES = frozenset(name for name in HOOK_TABLES if name.startswith("_forward"))
"""Those of ``HOOK_TABLES`` whose hooks run before or after ``forward``."""

TABLES = {name for name, held in vars(nn.Module()).items() if isinstance(held, dict | set)} | {"_compiled_call_impl"}
"""The attributes of a module in which torch keeps its parameters, buffers, children, hooks and compiled call."""


def anyone_follows_all_calls() -> bool:
    """Return whether someone's hooks run at the calls of all modules, or someone's modes at all operations."""
    hooks = [table for name, table in vars(nn.modules.module).items() if re.fullmatch(r"_global_\w+_hooks", name)]
    modes = [mode for mode in _get_current_function_mode_stack() if not type(mode).__module__.startswith("torch.")]
    return any(hooks) or bool(modes or _get_current_dispatch_mode_stack())


def compiled_graphs() -> int:
    """Return how many graphs ``torch.compile`` has compiled in this process, without importing the compiler."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else dynamo.counters["stats"]["unique_graphs"]


compilers_callback: Callable[[], Any] = getattr(_eval_frame, "get_eval_frame_callback", lambda: None)
"""Return what the compiler does with each new frame of Python, None where it is not at work; makes no frame itself."""


def hide_frame(function: Callable[..., Any]) -> None:
    """Keep the compiler from compiling ``function`` by itself; what it calls is compiled as if it were not there."""
    try:
        strategy = _eval_frame._FrameExecStrategy(_eval_frame._FrameAction.SKIP, _eval_frame._FrameAction.DEFAULT)
        _eval_frame.set_code_exec_strategy(function.__code__, strategy)
    except AttributeError:  # of other versions of torch
        return


def is_scripted(module: nn.Module) -> bool:
    """Return whether ``torch.jit.script`` or ``torch.jit.trace`` made ``module``."""
    return isinstance(module, torch.jit.ScriptModule)  # torch 2.14 warns of both


def is_tracing() -> bool:
    """Return whether ``torch.jit.trace`` is under way."""
    return torch._C._get_tracing_state() is not None


# Gradients and the autograd graph


def is_capturing() -> bool:
    """Tell whether what runs now is captured in a CUDA graph, whose replays call no hook."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def in_backward() -> bool:
    """Return whether this thread is within a backward pass."""
    return torch._C._current_graph_task_id() != -1


def current_node() -> Any:
    """Return the node of the graph whose derivative is being computed; None outside a backward pass."""
    return torch._C._current_autograd_node()


def call_after_backward(function: Callable[[], None]) -> None:
    """Have ``function`` called once the backward pass that is under way has delivered every gradient."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def sequence_number(node: Any) -> int:
    """Return a number that grows in the order in which operations of the forward pass ran."""
    return int(node._sequence_nr())


def saved_tensor(node: Any, name: str) -> Any:
    """Return what ``node`` has saved under ``name``, None where it saves nothing under it.

    Raises:
        RuntimeError: where the tensor is freed, or was changed in place since.
    """
    return getattr(node, f"_saved_{name}", None)


def version_of(tensor: Tensor) -> int:
    """Return a number that grows with every change of ``tensor`` in place.

    Raises:
        RuntimeError: for an inference tensor, which counts none.
    """
    return tensor._version


def _has_hooks_on_top() -> bool:
    """Return whether the stack of hooks on saved tensors holds any (newer torch)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _cannot_forbid_hooks() -> bool:
    """Return the same on torch 2.6 and 2.7: such hooks can be forbidden only where there are none."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("gradwatch asks whether there are any"):
            return False
    except RuntimeError:
        return True


_has_top = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
_are_packed = _has_hooks_on_top if _has_top else _cannot_forbid_hooks


def saved_tensors_are_packed() -> bool:
    """Return whether hooks take what operations save now: a checkpoint's, say, which compute it again when asked."""
    return _are_packed()


# Operations


def past_dispatch_modes() -> AbstractContextManager[None]:
    """Return a context in which no ``DispatchMode`` sees an operation."""
    guard: AbstractContextManager[None] = torch._C._DisableTorchDispatch()
    return guard


def schema_of(operation: Any) -> Any:
    """Return the schema of an operation that a ``DispatchMode`` sees: its name, and whether it writes in place."""
    return operation._schema


def foreach_norm(tensors: list[Tensor], order: float, dtype: torch.dtype | None = None) -> Sequence[Tensor]:
    """Return the norm of each of ``tensors`` in one batched call; all share a device and a dtype."""
    return torch._foreach_norm(tensors, order, dtype=dtype)


def foreach_div(tensors: Sequence[Tensor], divisors: Sequence[float]) -> Sequence[Tensor]:
    """Return each of ``tensors`` divided by its number, in one batched call."""
    return torch._foreach_div(tuple(tensors), [float(divisor) for divisor in divisors])


def foreach_mul_(tensors: list[Tensor], factors: Tensor | list[Tensor]) -> None:
    """Multiply ``tensors`` in place in one batched call: by a () factor, or by a () factor each."""
    torch._foreach_mul_(tensors, factors)


def positions_by_device_and_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the positions of the tensors of each (device, dtype)."""
    groups = _group_tensors_by_device_and_dtype([list(tensors)], with_indices=True)
    return [positions for _, positions in groups.values()]


# Optimizers and gradient scalers


def code_around_steps() -> CodeType:
    """Return the code that torch wraps around each ``optimizer.step``, hooks included; its frames have ``self``."""
    return Optimizer.profile_hook_step(lambda: None).__code__


def step_hooks_of(optimizer: Optimizer) -> Mapping[int, Any] | None:
    """Return the hooks on the steps of ``optimizer``; None where some wrapper left ``Optimizer.__init__`` out."""
    return getattr(optimizer, "_optimizer_step_pre_hooks", None)


def clipping_function() -> tuple[Any, str]:
    """Return the module and the name of the function through which all clipping by the total norm goes.

    ``clip_grad_norm_`` looks it up at each call, so that whoever follows it also sees callers that have imported
    ``clip_grad_norm_`` itself. Its arguments are the parameters, the limit and the total norm.
    """
    module = sys.modules["torch.nn.utils.clip_grad"]
    return module, "_clip_grads_with_norm_" if hasattr(module, "_clip_grads_with_norm_") else "clip_grad_norm_"


def scale_left_on(optimizer: Optimizer) -> Tensor | None:
    """Return the loss scale that a ``GradScaler`` leaves a fused ``optimizer`` to divide out; None without one."""
    return getattr(optimizer, "grad_scale", None)


def uses_scaler(optimizer: Optimizer) -> bool:
    """Return whether a ``GradScaler`` calls this step of a fused ``optimizer``."""
    return hasattr(optimizer, "found_inf")


def unscales_itself(optimizer: Optimizer) -> bool:
    """Return whether ``optimizer`` is a fused one, which divides the loss scale out in its own step."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def leave_out_on_device(optimizer: Optimizer, flag: Tensor | None) -> None:
    """Have the next step of a fused ``optimizer`` move nothing if the () ``flag`` is 1; None: take that back."""
    if flag is None:
        del optimizer.found_inf  # type: ignore[attr-defined]
    else:
        optimizer.found_inf = flag  # type: ignore[attr-defined]


def scale_of(scaler: GradScaler) -> Tensor:
    """Return the () loss scale on its device, without a host sync."""
    scale: Tensor = scaler._get_scale_async()  # type: ignore[assignment]
    return scale


# Process groups


def forget_overflow(scaler: GradScaler) -> None:
    """Let ``scaler`` forget that the gradients of the update under way were not finite; its scale stays."""
    for state in scaler._per_optimizer_states.values():
        for found in state["found_inf_per_device"].values():
            found.zero_()


def default_store() -> Any:
    """Return the store that the processes of the default group met at."""
    return torch.distributed.distributed_c10d._get_default_store()


def is_joining(module: nn.Module) -> bool:
    """Return whether a ``DistributedDataParallel`` is within its ``join()``: some ranks may have run out of batches."""
    return bool(getattr(getattr(module, "_join_config", None), "enable", False))


def flat_shards(module: nn.Module) -> list[tuple[Tensor, int, int | None, int]]:
    """Return what ``FullyShardedDataParallel`` (FSDP1) has left: (parameter, parts, first entry here, entries of all).

    The first entry is None where none is here, or where that is not known. The parameters are its flat ones, or under
    ``use_orig_params=True`` those of which these are made.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    found: list[tuple[Tensor, int, int | None, int]] = []
    for part in [] if fsdp is None else fsdp.FullyShardedDataParallel.fsdp_modules(module):
        handle = part._handle
        if handle is not None and handle.uses_sharded_strategy:
            flat, parts = handle.flat_param, handle.process_group.size()
            if handle._use_orig_params:
                begins = [info.intra_param_start_idx for info in flat._shard_param_infos]
                sizes = [math.prod(shape) for shape in flat._shapes]
                found += zip(flat._params, [parts] * len(sizes), begins, sizes, strict=True)
            else:
                found.append((flat, parts, None, 0))
    return found


def averages_weights_later(wrapper: Any) -> bool:
    """Return whether a ``DistributedDataParallel`` leaves replicas to differ between two averages of their weights."""
    hooks = [hook for hook, _ in getattr(wrapper, "_comm_hooks", ())]
    return any("localsgd" in getattr(hook, "__name__", "").replace("_", "").lower() for hook in hooks)


# TensorBoard


def file_writer_of(writer: Any) -> Any:
    """Return the file writer of a ``SummaryWriter``, which takes whole summaries."""
    return writer._get_file_writer()


def event_file_of(writer: Any) -> str:
    """Return the path of the event file that a ``SummaryWriter`` writes; "" where a version of it does not say."""
    return str(getattr(getattr(writer.file_writer, "event_writer", None), "_file_name", ""))
