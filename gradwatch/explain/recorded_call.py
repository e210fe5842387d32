"""Record a call of a model by reference, and repeat it on a replica.

A call is not repeated (``UnrepeatableError``) where its arguments have changed since, or the replica returns something
else.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.explain.replica import UnrepeatableError
from gradwatch.hooks.module_calls import tensors_in
from gradwatch.measure.samples import entries_of

__all__ = [
    "LARGEST_GRADIENT",
    "OUTPUT",
    "RecordedCall",
    "arguments_of",
    "given_tensors",
    "record_call",
    "record_output",
    "repeat",
    "was_changed",
]

OUTPUT = "gradwatch: returned by a model"
"""A mark in the metadata of a node: holding the node itself would hold its graph."""

SAMPLED = 16
"""Entries of what a model returned by which a repeated call is compared with the call."""

LARGEST_GRADIENT = 2**20
"""Entries of an output's gradient that are held. In place of a larger one, the repeated call uses noise."""


@dataclass(frozen=True)
class _Randomness:
    """States of the random number generators."""

    cpu: Tensor
    cuda: Tensor | None

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


@dataclass(eq=False)
class RecordedCall:
    """One call of a model, by reference.

    Attributes:
        name, type: of the model, and its class.
        inputs: its positional and keyword arguments.
        versions: of the tensors among them; they tell whether a tensor was changed in place.
        random: states of the generators before the call.
        autocast: device type, whether autocast was on, and its dtype.
        gradients: for each tensor that the call returned, the gradients that arrived; None for one too large to hold.
        returned: some entries of its first output.
        began: when it began, by ``time.monotonic``.
        seconds: that it took.
    """

    name: str
    type: str
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    versions: list[int]
    random: _Randomness
    autocast: tuple[str, bool, torch.dtype]
    gradients: list[list[Tensor | None]] = field(default_factory=list)
    returned: Tensor | None = None
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


def record_call(name: str, kind: str, args: Any, kwargs: Any) -> RecordedCall:
    """Return the call of the model ``name``, of the class ``kind``, that begins with these arguments."""
    given = [tensor for each in (*args, *kwargs.values()) for tensor in tensors_in(each)]
    device = given[0].device.type if given else "cpu"
    are_plain = len(given) == len(args) and not kwargs and all(tensor.grad_fn is None for tensor in given)
    return RecordedCall(
        name,
        kind,
        inputs=(args, kwargs) if are_plain else _torch.tree_map(_without_graph, (args, kwargs)),
        versions=_versions_of(given),
        random=_Randomness(torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None),
        autocast=(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
    )


def record_output(call: RecordedCall, output: Any, hold: Callable[[list[Tensor | None], Tensor], None]) -> None:
    """Note what ``call`` returned.

    Args:
        call: that has ended.
        output: of the model.
        hold: called with a list and each gradient that arrives, to put it there.
    """
    call.seconds = time.monotonic() - call.began
    call.returned = _sample(output)
    for tensor in _differentiable(output):
        held: list[Tensor | None] = []
        call.gradients.append(held)
        tensor.grad_fn.metadata[OUTPUT] = True  # type: ignore[union-attr, index]
        tensor.register_hook(functools.partial(hold, held))


def given_tensors(call: RecordedCall) -> list[tuple[Tensor, bool]]:
    """Return the tensors that ``call`` was given, each with whether it was computed from something with a gradient."""
    leaves = _torch.tree_leaves(call.inputs)
    found = [(leaf.tensor, True) if isinstance(leaf, _Computed) else (leaf, False) for leaf in leaves]
    return [(leaf, is_computed) for leaf, is_computed in found if isinstance(leaf, Tensor)]


def arguments_of(call: RecordedCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of ``call``; tensors that were computed have lost their graph."""
    args, kwargs = _torch.tree_map(lambda leaf: leaf.tensor if isinstance(leaf, _Computed) else leaf, call.inputs)
    return args, kwargs


def was_changed(call: RecordedCall) -> bool:
    """Return whether a tensor that ``call`` was given was changed in place since."""
    return _versions_of([tensor for tensor, _ in given_tensors(call)]) != call.versions


def repeat(call: RecordedCall, replica: nn.Module, parameters: Sequence[Tensor], *, goes_backward: bool = True) -> Any:
    """Run the forward pass of one call again, and its backward pass.

    Args:
        call: to repeat.
        replica: of its model.
        parameters: of the replica.
        goes_backward: False to leave the backward pass out.

    Returns:
        The arguments.

    Raises:
        UnrepeatableError: where it would not be the same call.
    """
    if was_changed(call):
        raise UnrepeatableError("an argument of the model was changed in place since")
    call.random.restore()
    device, is_on, dtype = call.autocast
    leaves: list[Tensor] = []
    args, kwargs = _torch.tree_map(functools.partial(_replayed, leaves), call.inputs)
    try:
        with torch.autocast(device, dtype, enabled=is_on):
            output = replica(*args, **kwargs)
    except Exception as error:  # it misses a file, a connection or another thread, or has had its turn
        raise UnrepeatableError("the model raises when it is called again") from error
    outputs = _differentiable(output)
    if not _is_same(_sample(output), call.returned) or len(outputs) != len(call.gradients):
        raise UnrepeatableError("the model returned something else")
    if goes_backward:
        _repeat_backward(call, outputs, [*parameters, *leaves])
    return args, kwargs


def _repeat_backward(call: RecordedCall, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Compute the gradients of ``wanted`` from those that arrived at the outputs, and keep none of them.

    Raises:
        UnrepeatableError: where autograd refuses.
    """
    arrived = [(output, held) for output, held in zip(outputs, call.gradients, strict=True) if held]
    if arrived:
        gradients = [_sum(output, held) for output, held in arrived]
        for leaf in wanted:
            leaf.register_hook(_without_entries)
        try:
            torch.autograd.grad([output for output, _ in arrived], wanted, gradients, allow_unused=True)
        except RuntimeError as error:  # a reentrant checkpoint, most often, which refuses this function
            raise UnrepeatableError("its backward pass cannot be run again") from error


def _without_entries(gradient: Tensor | None) -> Tensor | None:
    """Return, in place of a gradient that nobody asks for, one of that shape that takes no memory."""
    if gradient is None or gradient.layout is not torch.strided:
        return gradient
    return gradient.new_zeros(()).expand_as(gradient)


def _sum(output: Tensor, held: Sequence[Tensor | None]) -> Tensor:
    """Return the gradient that arrived at ``output``, with noise in place of one too large to hold."""
    parts = [torch.randn_like(output) if gradient is None else gradient for gradient in held]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


@dataclass
class _Computed:
    """A tensor that was computed from something with a gradient. It is held without its graph."""

    tensor: Tensor


def _without_graph(thing: Any) -> Any:
    is_computed = isinstance(thing, Tensor) and thing.grad_fn is not None
    return _Computed(thing.detach()) if is_computed else thing


def _replayed(leaves: list[Tensor], thing: Any) -> Any:
    """Return what the replica is given for ``thing``; new leaves of the graph are added to ``leaves``."""
    if isinstance(thing, _Computed):
        leaves.append(thing.tensor.detach().requires_grad_())
        return leaves[-1].view_as(leaves[-1])
    if isinstance(thing, Tensor) and thing.requires_grad:
        leaves.append(thing.detach().requires_grad_())
        return leaves[-1]
    return thing


def _versions_of(tensors: Sequence[Tensor]) -> list[int]:
    return [_torch.version_of(tensor) for tensor in tensors if not tensor.is_inference()]


def _sample(output: Any) -> Tensor | None:
    """Return a few entries of the first tensor that a model returned."""
    tensor = next((tensor for tensor in tensors_in(output) if tensor.numel() > 0), None)
    if tensor is None or tensor.layout is not torch.strided:
        return None
    return entries_of(tensor.detach(), SAMPLED).clone()


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Tell whether two samples are the same as far as is known."""
    if a is None or b is None:
        return True
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, equal_nan=True)


def _differentiable(output: Any) -> list[Tensor]:
    """Return the tensors of what a model returned that were computed from something with a gradient."""
    return [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]
