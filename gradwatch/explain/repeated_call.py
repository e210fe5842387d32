"""One call of a model: what it was given and what came back, by reference; and the same call once more, on a replica.

Enters: arguments and outputs, as hooks see them. Leaves: a forward and backward pass of a replica, or
``UnrepeatableError`` where it is not the same. Knows nothing of why a call is made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.explain.replica import UnrepeatableError
from gradwatch.hooks.module_calls import tensors_in
from gradwatch.measure.samples import entries_of

__all__ = ["LARGEST_GRADIENT", "OUTPUT", "RecordedCall", "entered", "note_output", "repeat"]

OUTPUT = "gradwatch: returned by a model"  # in a node's metadata: holding the node itself would hold its graph
SAMPLED = 16  # entries of what a model returned, by which two runs are compared
LARGEST_GRADIENT = 2**20  # entries of an output's gradient that are held; beyond, the replay makes one up


@dataclass(eq=False)
class RecordedCall:
    """One call of a model, by reference.

    Attributes:
        name: of the model.
        inputs: its positional and keyword arguments.
        versions: of the tensors among them.
        random: states of the generators before it.
        autocast: device type, whether autocast was on, and its dtype.
        gradients: of each tensor that it returned, what arrived in the backward pass; None for one too large to hold.
        returned: some entries of its first output, by which the replay is known to be the same.
    """

    name: str
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    versions: list[int]
    random: tuple[Tensor, Tensor | None]
    autocast: tuple[str, bool, torch.dtype]
    gradients: list[list[Tensor | None]] = field(default_factory=list)
    returned: Tensor | None = None


def entered(name: str, args: Any, kwargs: Any) -> RecordedCall:
    """The call of the model ``name`` that begins."""
    given = [tensor for each in (*args, *kwargs.values()) for tensor in tensors_in(each)]
    device = given[0].device.type if given else "cpu"
    are_plain = len(given) == len(args) and not kwargs and all(tensor.grad_fn is None for tensor in given)
    return RecordedCall(
        name,
        (args, kwargs) if are_plain else _torch.tree_map(_cut_off, (args, kwargs)),
        [_torch.version_of(tensor) for tensor in given if not tensor.is_inference()],
        (torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None),
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
    )


def note_output(call: RecordedCall, output: Any, hold: Callable[[list[Tensor | None], Tensor], None]) -> None:
    """What ``call`` returned; ``hold`` is handed the gradient of each of its tensors, and the list to put it in."""
    call.returned = _sample(output)
    for tensor in _differentiable(output):
        held: list[Tensor | None] = []
        call.gradients.append(held)
        tensor.grad_fn.metadata[OUTPUT] = True  # type: ignore[union-attr, index]
        tensor.register_hook(functools.partial(hold, held))


def repeat(call: RecordedCall, replica: nn.Module, parameters: Sequence[Tensor]) -> Any:
    """Forward and backward of one call; returns what went in."""
    if _versions(call.inputs) != call.versions:
        raise UnrepeatableError("what the model was given was changed in place since")
    torch.set_rng_state(call.random[0])
    if call.random[1] is not None:
        torch.cuda.set_rng_state(call.random[1])
    device, is_on, dtype = call.autocast
    leaves: list[Tensor] = []
    args, kwargs = _torch.tree_map(functools.partial(_replayed, leaves), call.inputs)
    with torch.autocast(device, dtype, enabled=is_on):
        output = replica(*args, **kwargs)
    returned = _sample(output)
    if returned is not None and call.returned is not None and not _is_same(returned, call.returned):
        raise UnrepeatableError("the model returned something else")
    outputs = _differentiable(output)
    if len(outputs) != len(call.gradients):
        raise UnrepeatableError("the model returned something else")
    arrived = [(output, held) for output, held in zip(outputs, call.gradients, strict=True) if held]
    if arrived:
        gradients = [_sum(output, held) for output, held in arrived]
        wanted = [*parameters, *leaves]
        torch.autograd.grad([output for output, _ in arrived], wanted, gradients, allow_unused=True)
    return args, kwargs


def _sum(output: Tensor, held: Sequence[Tensor | None]) -> Tensor:
    """What arrived at ``output``; noise where it was too large to hold."""
    parts = [torch.randn_like(output) if gradient is None else gradient for gradient in held]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


@dataclass
class _Computed:
    """A tensor that was computed from something with a gradient: it is held, its graph is not."""

    tensor: Tensor


def _cut_off(thing: Any) -> Any:
    is_computed = isinstance(thing, Tensor) and thing.grad_fn is not None
    return _Computed(thing.detach()) if is_computed else thing


def _replayed(leaves: list[Tensor], thing: Any) -> Any:
    """What the replica is given for ``thing``; computed from one of ``leaves`` where it was computed in the run."""
    if isinstance(thing, _Computed):
        leaves.append(thing.tensor.detach().requires_grad_())
        return leaves[-1].view_as(leaves[-1])
    if isinstance(thing, Tensor) and thing.requires_grad:
        leaves.append(thing.detach().requires_grad_())
        return leaves[-1]
    return thing


def _versions(tree: Any) -> list[int]:
    leaves = (leaf.tensor if isinstance(leaf, _Computed) else leaf for leaf in _torch.tree_leaves(tree))
    return [_torch.version_of(leaf) for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]


def _sample(output: Any) -> Tensor | None:
    """A few entries of the first tensor that a model returned."""
    tensor = next((tensor for tensor in tensors_in(output) if tensor.numel() > 0), None)
    if tensor is None or tensor.layout is not torch.strided:
        return None
    return entries_of(tensor.detach(), SAMPLED).clone()


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, equal_nan=True)


def _differentiable(output: Any) -> list[Tensor]:
    """The tensors of what a model returned that were computed from something with a gradient."""
    return [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]
