"""Look at one forward pass of a model: which layers it calls, in which order and with which shapes.

Every function here leaves the model as it was, but for ``replace_`` and ``run_within_``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch

__all__ = [
    "CONVOLUTIONS", "LAYERS", "NORMS", "LayerBlock", "LayerCall", "call_model", "copy_batch", "evaluating",
    "layer_blocks", "layer_calls", "listen", "replace_", "run_within_",
]  # fmt: skip

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (_torch.BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
WHOLE = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # read their layers' weights by name


@dataclass(frozen=True)
class LayerCall:
    """The first call of a layer in a forward pass.

    Attributes:
        name: of the module, as ``named_modules`` has it.
        module: the layer.
        input_shape: of its first argument.
        output_shape: of its output, or of the first output where it returns a tuple.
    """

    name: str
    module: nn.Module
    input_shape: torch.Size
    output_shape: torch.Size

    @property
    def keeps_shape(self) -> bool:
        """True where a sum of input and output makes sense."""
        return self.input_shape == self.output_shape


@dataclass(frozen=True)
class LayerBlock:
    """A layer of an ``nn.Sequential``, the normalisations after it and the activation function that follows.

    Attributes:
        names: of the layer, of the normalisations, of the activation function.
        modules: the same as modules.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Return ``model``'s output for the inputs of one batch.

    A mapping is handed over by name, a tuple or list in order. Where ``forward`` does not take them so, they are handed
    over as one argument.
    """
    if isinstance(inputs, Mapping) and _accepts(model, (), inputs):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)) and _accepts(model, inputs, {}):
        return model(*inputs)
    return model(inputs)


def copy_batch(batch: Any) -> Any:
    """Return ``batch`` with a copy of each tensor, so that a model that works in place does not change the user's."""
    return _torch.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


def layer_calls(model: nn.Module, x: Any, types: tuple[type[nn.Module], ...] = LAYERS) -> list[LayerCall]:
    """Return the layers of these types in the order of their first calls, those of whole transformer layers left out.

    Args:
        model: is left as it was.
        x: the inputs of one batch.
        types: of layers.
    """
    found: dict[str, LayerCall] = {}
    whole = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, WHOLE))
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, types) and not name.startswith(whole)
    }

    def note(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if args and isinstance(args[0], Tensor) and isinstance(first, Tensor):
            found.setdefault(names[module], LayerCall(names[module], module, args[0].shape, first.shape))

    listen(model, x, names, note)
    return list(found.values())


def listen(
    model: nn.Module,
    x: Any,
    parts: Iterable[nn.Module] = (),
    note: Callable[[nn.Module, Any, Any], None] = lambda part, args, output: None,
) -> Any:
    """Run one forward pass in eval mode and without gradients, and return its output.

    Args:
        model: is left as it was.
        x: the inputs of one batch; they are copied.
        parts: of the model.
        note: is called for each call of one of them with (part, its arguments, its output).
    """
    handles = [part.register_forward_hook(note) for part in parts]
    try:
        with evaluating(model):
            return call_model(model, copy_batch(x))
    finally:
        for handle in handles:
            handle.remove()


def layer_blocks(model: nn.Module, activations: tuple[type[nn.Module], ...]) -> Iterator[LayerBlock]:
    """Yield each layer of an ``nn.Sequential`` that an activation function follows, maybe after normalisations."""
    for prefix, container in list(model.named_modules()):
        if not isinstance(container, nn.Sequential):
            continue
        children = [(f"{prefix}.{key}".lstrip("."), child) for key, child in _torch.own_modules(container).items()]
        for start, (_, layer) in enumerate(children):
            end = start + 1
            while end < len(children) and isinstance(children[end][1], NORMS):
                end += 1
            if isinstance(layer, LAYERS) and end < len(children) and isinstance(children[end][1], activations):
                names, modules = zip(*children[start : end + 1], strict=True)
                yield LayerBlock(names, modules)


def replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule called ``name``, in the mode (train or eval) of that one."""
    module.training = model.get_submodule(name).training
    parent_name, _, key = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    _torch.own_modules(parent)[key] = module
    if isinstance(parent, nn.TransformerEncoderLayer):
        # Its fast path in eval mode computes the activation function that it was made with.
        parent.activation_relu_or_gelu = 0


def run_within_(model: nn.Module, context: AbstractContextManager[Any]) -> None:
    """Run every forward pass of ``model`` within ``context`` from now on.

    Hooks do it: the names of parameters stay, and a deep copy of the model gets a context of its own.
    """
    scope = _Scope(context)
    model.register_forward_pre_hook(scope.enter)
    model.register_forward_hook(scope.leave, always_call=True, prepend=True)


class _Scope:
    """The two hooks between which a context holds."""

    def __init__(self, context: AbstractContextManager[Any]) -> None:
        self.context, self.depth = context, 0

    def enter(self, model: nn.Module, args: Any) -> None:
        self.context.__enter__()
        self.depth += 1

    def leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.depth:  # an earlier hook may have raised before the context was entered
            self.depth -= 1
            self.context.__exit__(None, None, None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` in eval mode without gradients; restore the mode of each submodule afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _accepts(model: nn.Module, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **named)
    except (TypeError, ValueError):
        return False
    return True
