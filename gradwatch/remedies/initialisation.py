"""Draw the weights of a model anew: He, Xavier, LeCun, orthogonal, scaled by depth.

All of them set biases to 0, normalisations to scale 1 and shift 0, and recurrent weights to orthogonal blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.remedies.forward_pass import LAYERS, NORMS, layer_calls
from gradwatch.remedies.remedy import NotApplicableError

__all__ = [
    "init_depth_scaled_", "init_he_", "init_lecun_", "init_nonfinite_", "init_orthogonal_", "init_xavier_",
    "init_zero_gains_",
]  # fmt: skip

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
Draw = Callable[[Tensor, bool], object]
"""(weight, whether its layer is hidden): draws the weight in place."""


def init_he_(model: nn.Module, x: Any) -> None:
    """Draw hidden weights from N(0, 2/fan_in), which keeps the mean square through ReLUs, and the last by Xavier.

    He et al. 2015, arXiv:1502.01852.

    Args:
        model: is changed in place.
        x: the inputs of one batch, to see which layer is called last.

    Raises:
        NotApplicableError: if the model has no layer of a known type.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.ReLU(), torch.nn.Linear(400, 2))
        >>> init_he_(model, torch.randn(3, 400))
        >>> round(model[0].weight.std().item() / (2 / 400) ** 0.5, 1)
        1.0
    """
    _redraw_(
        model,
        x,
        lambda weight, is_hidden: (
            nn.init.kaiming_normal_(weight, nonlinearity="relu") if is_hidden else nn.init.xavier_normal_(weight)
        ),
    )


def init_xavier_(model: nn.Module, x: Any) -> None:
    """Draw weights from U(±√(6 / (fan_in + fan_out))), which suits functions of slope 1 at 0.

    Glorot and Bengio 2010. Arguments and errors are those of ``init_he_``.
    """
    _redraw_(model, x, lambda weight, _: nn.init.xavier_uniform_(weight))


def init_nonfinite_(model: nn.Module) -> None:
    """Draw each weight that holds NaN or Inf from N(0, 1/n), n its inputs; set each vector that does to 0.

    ``torch.empty`` and ``torch.Tensor(8, 8)`` hold whatever was in memory.

    Args:
        model: is changed in place.

    Raises:
        NotApplicableError: if every parameter is finite.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> _ = torch.nn.init.constant_(model.weight, torch.nan)
        >>> init_nonfinite_(model)
        >>> model.weight.isfinite().all()
        tensor(True)
    """
    sick = [parameter for parameter in model.parameters() if not bool(parameter.isfinite().all())]
    if not sick:
        raise NotApplicableError("every parameter is finite")
    for parameter in sick:
        inputs = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
        nn.init.zeros_(parameter) if parameter.ndim < 2 else nn.init.normal_(parameter, std=inputs**-0.5)


def init_zero_gains_(model: nn.Module) -> None:
    """Set each normalisation's gain that is 0 throughout to 1.

    Args:
        model: is changed in place.

    Raises:
        NotApplicableError: if no gain is 0 throughout.

    Examples:
        >>> model = torch.nn.LayerNorm(3)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> init_zero_gains_(model)
        >>> model.weight.tolist()
        [1.0, 1.0, 1.0]
    """
    norms = [part for part in model.modules() if "Norm" in type(part).__name__]
    gains = [getattr(norm, "weight", None) for norm in norms]
    flat = [gain for gain in gains if isinstance(gain, nn.Parameter) and not bool(torch.any(gain))]
    if not flat:
        raise NotApplicableError("no gain of a normalisation is 0")
    for gain in flat:
        nn.init.ones_(gain)


def init_lecun_(model: nn.Module, x: Any) -> None:
    """Draw weights from N(0, 1/fan_in), the fixed point of SELU.

    Klambauer et al. 2017, arXiv:1706.02515. Arguments and errors are those of ``init_he_``.
    """
    _redraw_(model, x, lambda weight, _: nn.init.kaiming_normal_(weight, nonlinearity="linear"))


def init_orthogonal_(model: nn.Module, x: Any) -> None:
    """Draw orthogonal weights, WᵀW = I; hidden ones times √2 if the model has rectifiers.

    Saxe, McClelland and Ganguli 2013, arXiv:1312.6120. Arguments and errors are those of ``init_he_``.
    """
    rectifies = any(isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU)) for module in model.modules())
    gain = math.sqrt(2) if rectifies else 1.0
    _redraw_(model, x, lambda weight, is_hidden: nn.init.orthogonal_(weight, gain if is_hidden else 1.0))


def init_depth_scaled_(model: nn.Module, x: Any) -> None:
    """Draw weights as ``init_xavier_`` does, then divide those of the L layers that keep their width by √L.

    As GPT-2 does with its residual branches (Radford et al. 2019). Arguments are those of ``init_he_``.

    Raises:
        NotApplicableError: if no layer keeps its width.
    """
    init_xavier_(model, x)
    same = [call.module for call in layer_calls(model, x) if call.keeps_shape]
    if not same:
        raise NotApplicableError("no layer returns the shape that it was given")
    with torch.no_grad():
        for layer in same:
            layer.get_parameter("weight").div_(math.sqrt(len(same)))


@torch.no_grad()
def _redraw_(model: nn.Module, x: Any, draw: Draw) -> None:
    modules = list(model.modules())
    if not any(isinstance(module, (*LAYERS, *RECURRENT, nn.MultiheadAttention)) for module in modules):
        raise NotApplicableError("no linear, convolutional, recurrent or attention layer was found")
    calls = layer_calls(model, x)
    last = calls[-1].module if calls else None
    for module in modules:
        if isinstance(module, LAYERS):
            _redraw_layer_(module, draw, is_hidden=module is not last)
        elif isinstance(module, RECURRENT):
            _redraw_recurrent_(module, draw)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            draw(module.in_proj_weight, False)
        elif isinstance(module, NORMS):
            module.reset_parameters()


def _redraw_layer_(module: Any, draw: Draw, is_hidden: bool) -> None:
    weight, bias = module.weight.detach().clone(), module.bias
    draw(weight, is_hidden)
    if isinstance(module.weight, nn.Parameter):
        module.weight.copy_(weight)
    else:  # A parametrized weight (weight normalisation, say) is set through its parametrization.
        module.weight = weight
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)


def _redraw_recurrent_(module: nn.Module, draw: Draw) -> None:
    """Make each gate's square block orthogonal and biases 0, but 1 for an LSTM's forget gate: it begins open."""
    for name, parameter in module.named_parameters(recurse=False):
        if "weight_hh" in name:
            for block in parameter.split(parameter.shape[1]):
                nn.init.orthogonal_(block)
        elif "bias" not in name:
            draw(parameter, True)
        else:
            nn.init.zeros_(parameter)
            if isinstance(module, (nn.LSTM, nn.LSTMCell)) and "bias_ih" in name:
                quarter = len(parameter) // 4
                parameter[quarter : 2 * quarter] = 1.0
