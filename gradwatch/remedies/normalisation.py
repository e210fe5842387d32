"""Insert normalisations after hidden layers, so that each activation function is given values of unit variance.

Or divide what a layer is given by its own scale, where a normalisation is there and what follows it is not.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Literal

from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.remedies.forward_pass import CONVOLUTIONS, LAYERS, NORMS, LayerCall, layer_calls, listen, replace_
from gradwatch.remedies.remedy import NotApplicableError

__all__ = ["insert_norms_", "scale_layer_inputs_"]

LARGE_INPUT = 3.0  # root mean square: a layer that keeps the variance then makes tanh and sigmoid flat

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}  # dimensions of a convolution


def insert_norms_(model: nn.Module, x: Any, kind: Literal["batch", "layer", "rms"] = "batch") -> None:
    """Insert y = γ(x − μ)/σ + β after each hidden layer that has no normalisation yet, before its activation function.

    ``"batch"``: over the batch (arXiv:1502.03167). ``"layer"``: over the units of a sample (arXiv:1607.06450), of
    convolutions over all channels. ``"rms"``: without the mean (arXiv:1910.07467). Linear layers of (N, time, features)
    get no batch normalisation, convolutions no RMS normalisation.

    Args:
        model: is changed in place, before its optimizer is made: the norms have weights.
        x: the inputs of one batch, to see which layers are called and with which shapes.
        kind: of normalisation.

    Raises:
        NotApplicableError: if there is no such layer.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> insert_norms_(model, torch.randn(3, 4), "layer")
        >>> [type(part).__name__ for part in model[0]]
        ['Linear', 'LayerNorm']
    """
    normalised = _normalised_layers(model)
    hidden = [call for call in layer_calls(model, x)[:-1] if call.name and call.name not in normalised]
    norms = [(call, norm) for call in hidden if (norm := _norm_for(call, kind)) is not None]
    if not norms:
        raise NotApplicableError(f"no hidden layer was found that {kind} normalisation could follow")
    for call, norm in norms:
        weight = next(call.module.parameters())
        replace_(model, call.name, nn.Sequential(call.module, norm.to(weight.device, weight.dtype)))


def scale_layer_inputs_(model: nn.Module, x: Any) -> None:
    """Divide what each layer is given by its root mean square in this batch, where that is above 3.

    Args:
        model: is changed in place: such layers get a forward pre-hook.
        x: the inputs of one batch.

    Raises:
        NotApplicableError: if no layer is given such values.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> scale_layer_inputs_(model, torch.full((3, 4), 100.0))
        >>> _ = torch.nn.init.ones_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
        >>> model(torch.full((1, 4), 100.0)).tolist()
        [[4.0, 4.0]]
    """
    given: dict[nn.Module, float] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            given.setdefault(module, float(args[0].detach().float().square().mean().sqrt()))

    listen(model, x, [module for module in model.modules() if isinstance(module, LAYERS)], note)
    large = {module: rms for module, rms in given.items() if rms > LARGE_INPUT}
    if not large:
        raise NotApplicableError(f"no layer is given values whose root mean square is above {LARGE_INPUT:g}")
    for module, rms in large.items():
        module.register_forward_pre_hook(functools.partial(_divide_first_argument, rms))


def _divide_first_argument(divisor: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0] / divisor, *args[1:]


def _norm_for(call: LayerCall, kind: str) -> nn.Module | None:
    if isinstance(call.module, CONVOLUTIONS):
        channels = call.module.out_channels
        batch_norm = _BATCH_NORMS[len(call.module.kernel_size)]
        return {"batch": batch_norm(channels), "layer": nn.GroupNorm(1, channels)}.get(kind)
    width = call.output_shape[-1]
    if kind == "batch":
        return nn.BatchNorm1d(width) if len(call.output_shape) == 2 else None
    return nn.LayerNorm(width) if kind == "layer" else nn.RMSNorm(width)


def _normalised_layers(model: nn.Module) -> set[str]:
    """Return the names of the layers that a normalisation follows directly in an ``nn.Sequential``."""
    found = set()
    for prefix, container in model.named_modules():
        if isinstance(container, nn.Sequential):
            for (key, _), (_, following) in itertools.pairwise(_torch.own_modules(container).items()):
                if isinstance(following, NORMS):
                    found.add(f"{prefix}.{key}".lstrip("."))
    return found
