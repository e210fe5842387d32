"""Normalisations, residual connections, fewer layers, spectral norms."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradwatch import _torch
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.activations import ACTIVATIONS
from gradwatch.prescription.surgery.calls import CONVOLUTIONS, LAYERS, NORMS, Call, blocks_of, calls_of, replace

__all__ = ["Residual", "fewer_layers", "normalise", "residual", "spectral_norm"]

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}  # dimensions of a convolution


def normalise(setup: Setup, kind: str) -> None:
    """A ``batch``, ``layer`` or ``rms`` normalisation behind each hidden layer, hence before its activation."""
    calls = calls_of(setup.model, setup.batches[0][0])[:-1]
    followed = _already_normalised(setup.model)
    bare = [call for call in calls if call.name and call.name not in followed]
    norms = [(call, norm) for call in bare if (norm := _norm_for(call, kind)) is not None]
    if not norms:
        raise NotApplicableError(f"no hidden layer was found that {kind} normalisation could follow")
    for call, norm in norms:
        replace(setup.model, call.name, nn.Sequential(call.module, _placed(norm, call.module)))


def residual(setup: Setup) -> None:
    """A skip, x + f(x), around each layer and activation, or attention, that keeps its shape (arXiv:1512.03385)."""
    calls = calls_of(setup.model, setup.batches[0][0], (*LAYERS, nn.MultiheadAttention))
    same = {call.name: call for call in calls if call.name and call.given == call.made}
    blocks = {block.names[0]: block for block in blocks_of(setup.model, ACTIVATIONS)}
    hidden = [name for name in same if name in blocks or name != calls[-1].name]
    if not hidden:
        raise NotApplicableError("no block returns the shape that it was given")
    for name in hidden:
        parts = blocks[name].modules if name in blocks else (same[name].module,)
        replace(setup.model, name, Residual(*parts))
        for further in blocks[name].names[1:] if name in blocks else ():
            replace(setup.model, further, nn.Identity())


def fewer_layers(setup: Setup) -> None:
    """Every second layer that keeps its width goes, with its activation function."""
    same = {call.name for call in calls_of(setup.model, setup.batches[0][0]) if call.given == call.made}
    blocks = [block for block in blocks_of(setup.model, ACTIVATIONS) if block.names[0] in same]
    if len(blocks) < 2:
        raise NotApplicableError("there are not two layers in an nn.Sequential that keep their width")
    for block in blocks[1::2]:
        for name in block.names:
            replace(setup.model, name, nn.Identity())


def spectral_norm(setup: Setup) -> None:
    """W / σ(W) for every hidden layer (arXiv:1802.05957)."""
    calls = [
        call for call in calls_of(setup.model, setup.batches[0][0]) if isinstance(call.module.weight, nn.Parameter)
    ]
    if not calls:
        raise NotApplicableError("no linear or convolutional layer was found")
    for call in calls:
        parametrizations.spectral_norm(call.module)


class Residual(nn.Module):
    """x + f(x); of what returns several things (attention), the first."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.block = parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Any:
        made = self.block(x, *args, **named)
        return (x + made[0], *made[1:]) if isinstance(made, tuple) else x + made


def _norm_for(call: Call, kind: str) -> nn.Module | None:
    if isinstance(call.module, CONVOLUTIONS):
        channels = call.module.out_channels
        batch_norm = _BATCH_NORMS[len(call.module.kernel_size)]
        return {"batch": batch_norm(channels), "layer": nn.GroupNorm(1, channels)}.get(kind)
    width = call.made[-1]
    if kind == "batch":
        return nn.BatchNorm1d(width) if len(call.made) == 2 else None
    return nn.LayerNorm(width) if kind == "layer" else nn.RMSNorm(width)


def _placed(norm: nn.Module, like: nn.Module) -> nn.Module:
    weight = next(like.parameters())
    return norm.to(weight.device, weight.dtype)


def _already_normalised(model: nn.Module) -> set[str]:
    """Names of the layers behind which a normalisation stands in an ``nn.Sequential``."""
    found = set()
    for prefix, container in model.named_modules():
        if isinstance(container, nn.Sequential):
            for (key, _), (_, following) in itertools.pairwise(_torch.own_modules(container).items()):
                if isinstance(following, NORMS):
                    found.add(f"{prefix}.{key}".lstrip("."))
    return found
