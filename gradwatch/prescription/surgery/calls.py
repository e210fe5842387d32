"""The weighted layers that a forward pass calls, in the order of their calls.

Enters: a model and one batch's inputs. Leaves: names, modules and shapes. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.prescription.problem import called, owned

__all__ = ["CONVOLUTIONS", "LAYERS", "Block", "Call", "blocks_of", "calls_of", "evaluating", "looked_at", "replace"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (
    _torch.BATCH_NORM,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
WHOLE = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # read their layers' weights by name


@dataclass(frozen=True)
class Call:
    """A layer's first call.

    Attributes:
        name: of the module, as ``named_modules`` has it.
        module: the layer.
        given: shape of its first input.
        made: shape of what it returned.
    """

    name: str
    module: nn.Module
    given: torch.Size
    made: torch.Size


@dataclass(frozen=True)
class Block:
    """A layer and the activation function behind it, neighbours in an ``nn.Sequential``.

    Attributes:
        names: of the layer, of a normalisation where one is between, of the activation.
        modules: the same.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]


def calls_of(model: nn.Module, inputs: Any, types: tuple[type[nn.Module], ...] = LAYERS) -> list[Call]:
    """The layers of these types, in the order of their first calls; those of whole transformer layers left out."""
    found: dict[str, Call] = {}
    inside = [name for name, module in model.named_modules() if isinstance(module, WHOLE)]
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, types) and not any(name.startswith(whole + ".") for whole in inside)
    }

    def hear(module: nn.Module, args: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple) else output
        if args and isinstance(args[0], Tensor) and isinstance(made, Tensor):
            found.setdefault(names[module], Call(names[module], module, args[0].shape, made.shape))

    looked_at(model, inputs, names, hear)
    return list(found.values())


def looked_at(
    model: nn.Module,
    inputs: Any,
    parts: Iterable[nn.Module] = (),
    hear: Callable[[nn.Module, Any, Any], None] = lambda part, args, output: None,
) -> Any:
    """What ``model`` returns for one batch's inputs, learning nothing.

    Args:
        model: is left as it was.
        inputs: are copied.
        parts: of the model.
        hear: is told of each call of one of them: (part, its inputs, its output).
    """
    handles = [part.register_forward_hook(hear) for part in parts]
    try:
        with evaluating(model):
            return called(model, owned(inputs))
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(model: nn.Module, activations: tuple[type[nn.Module], ...]) -> Iterator[Block]:
    """Every layer of an ``nn.Sequential`` that an activation function follows, directly or after a normalisation."""
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
                yield Block(names, modules)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts ``module`` in the place of the part called ``name``, in the mode of what was there."""
    module.training = model.get_submodule(name).training
    parent_name, _, key = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    _torch.own_modules(parent)[key] = module
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = (
            0  # else its short cut in eval mode goes by the activation that it was made with
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Meanwhile nothing of the model learns; afterwards each part is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
