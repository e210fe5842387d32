"""Shorten the way of a gradient through a deep model: residual connections, or fewer layers."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor, nn

from gradwatch.remedies.activation_modules import ACTIVATIONS
from gradwatch.remedies.forward_pass import LAYERS, layer_blocks, layer_calls, replace_
from gradwatch.remedies.remedy import NotApplicableError

__all__ = ["Residual", "add_residuals_", "remove_layers_"]


def add_residuals_(model: nn.Module, x: Any) -> None:
    """Turn f(x) into x + f(x) for each layer with its activation function, and each attention, that keeps its shape.

    He et al. 2015, arXiv:1512.03385.

    Args:
        model: is changed in place.
        x: the inputs of one batch, to see which layers are called and with which shapes.

    Raises:
        NotApplicableError: if no hidden layer keeps its shape.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> add_residuals_(model, torch.randn(3, 8))
        >>> [type(part).__name__ for part in model]
        ['Residual', 'Identity', 'Linear']
    """
    blocks = {block.names[0]: block for block in layer_blocks(model, ACTIVATIONS)}
    hidden = _hidden_layers(model, x, blocks)
    if not hidden:
        raise NotApplicableError("no block returns the shape that it was given")
    for name, layer in hidden.items():
        if name not in blocks:
            replace_(model, name, Residual(layer))
            continue
        replace_(model, name, Residual(*blocks[name].modules))
        for further in blocks[name].names[1:]:
            replace_(model, further, nn.Identity())


def _hidden_layers(model: nn.Module, x: Any, blocks: Container[str]) -> dict[str, nn.Module]:
    """Return name → layer for those that keep their shape; a last one that begins none of ``blocks`` is left out."""
    calls = layer_calls(model, x, (*LAYERS, nn.MultiheadAttention))
    same = {call.name: call.module for call in calls if call.name and call.keeps_shape}
    return {name: layer for name, layer in same.items() if name in blocks or name != calls[-1].name}


def remove_layers_(model: nn.Module, x: Any) -> None:
    """Remove every second layer that keeps its width, with its activation function, from each ``nn.Sequential``.

    A factor qᴸ on the gradient becomes about its square root.

    Args:
        model: is changed in place.
        x: the inputs of one batch, to see which layers keep their width.

    Raises:
        NotApplicableError: if there are not two such layers.

    Examples:
        >>> layers = [torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh()]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2))
        >>> remove_layers_(model, torch.randn(3, 8))
        >>> [type(part).__name__ for part in model]
        ['Linear', 'Tanh', 'Identity', 'Identity', 'Linear']
    """
    same = {call.name for call in layer_calls(model, x) if call.keeps_shape}
    blocks = [block for block in layer_blocks(model, ACTIVATIONS) if block.names[0] in same]
    if len(blocks) < 2:
        raise NotApplicableError("there are not two layers in an nn.Sequential that keep their width")
    for block in blocks[1::2]:
        for name in block.names:
            replace_(model, name, nn.Identity())


class Residual(nn.Module):
    """x + f(x), where f is one module or several in a row; if f returns a tuple, x is added to its first entry."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.block = parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Any:
        made = self.block(x, *args, **named)
        return (x + made[0], *made[1:]) if isinstance(made, tuple) else x + made
