"""Every remedy as a change to a trial, with the code that makes the same change in the user's own program.

Enters: nothing. Leaves: ``TREATMENTS``, in the order in which those of a pair are applied. Knows nothing of when each
fits (``fitting``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import clip
from gradwatch.prescription import data, formulas
from gradwatch.prescription.problem import called
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery import activations, initialisation, recurrence, structure

__all__ = ["TREATMENTS", "Treatment", "name_of"]


@dataclass(frozen=True)
class Treatment:
    """One remedy in one strength.

    Attributes:
        remedy: its name in ``gradwatch.remedies``.
        code: the change, to paste.
        change: makes it to a setup, in place; raises ``NotApplicableError`` with the reason.
        strength: tells those of one remedy apart.
    """

    remedy: str
    code: str
    change: Callable[[Setup], None]
    strength: str = ""


def name_of(treatments: tuple[Treatment, ...]) -> str:
    """As trials name them: ``he + residual``."""
    return " + ".join(treatment.remedy for treatment in treatments)


def _set(**fields: Any) -> Callable[[Setup], None]:
    def change(setup: Setup) -> None:
        for name, value in fields.items():
            setattr(setup, name, value)

    return change


def _activation(make: Callable[[], nn.Module]) -> Callable[[Setup], None]:
    return lambda setup: activations.activate(setup, make())


def _rate(factor: float) -> Callable[[Setup], None]:
    return _set(rate=factor)


def _mode(make: Callable[[], torch.overrides.TorchFunctionMode]) -> Callable[[Setup], None]:
    return lambda setup: setup.modes.append(make())


def _decay(model: nn.Module, _: Any) -> Tensor:
    """α‖W‖² with α = 1e-3."""
    return 1e-3 * torch.stack([p.square().sum() for p in model.parameters() if p.ndim > 1]).sum()


def _gradient_penalty(model: nn.Module, inputs: Any) -> Tensor:
    """10 (‖∇ₓ f(x)‖ − 1)² on the batch itself (WGAN-GP, arXiv:1704.00028)."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise NotApplicableError("the inputs are not a tensor of real numbers")
    x = inputs.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(called(model, x).sum(), x, create_graph=True)
    return 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()


@torch.no_grad()
def _clip_weights(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.clamp_(-0.1, 0.1)


def _into_float32(setup: Setup) -> None:
    """Weights in float32, half-precision inputs widened, the loss scaled: what ``GradScaler`` keeps for the weights."""
    if not any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in setup.model.parameters()):
        raise NotApplicableError("no weight is in half precision")
    setup.model.float()
    setup.model.register_forward_pre_hook(lambda _, args: tuple(x.float() if _is_half(x) else x for x in args))
    setup.loss_scale = 1024.0


def _is_half(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)


LOWER, HIGHER = (0.1, 0.01, 1e-3, 1e-4), (10.0, 100.0)
_NORM = "nn.Sequential({layer}, nn.{norm}(width))  # in the place of each hidden layer"
_EACH = "for layer in model.modules():\n    if isinstance(layer, (nn.Linear, nn.Conv2d)):\n        "
_ZERO = "\n        nn.init.zeros_(layer.bias)"
_GROUPS = 'for group in optimizer.param_groups:\n    group["lr"] *= '

TREATMENTS: tuple[Treatment, ...] = (
    Treatment("clean-data", "batches = [b for b in batches if all(t.isfinite().all() for t in b)]", data.clean),
    Treatment("lstm-gru", "nn.GRU(…)  # in the place of nn.RNN(…)", recurrence.gated),
    Treatment("fewer-layers", "# every second hidden layer of the same width is left out", structure.fewer_layers),
    Treatment("maxout", "torch.maximum(one(x), other(x))  # in the place of activation(layer(x))", activations.maxout),
    Treatment("relu", "nn.ReLU()  # in the place of each activation function", _activation(nn.ReLU)),
    Treatment(
        "leaky-relu", "nn.LeakyReLU(0.1)  # in the place of each activation function",
        _activation(functools.partial(nn.LeakyReLU, 0.1)),
    ),
    Treatment("prelu", "nn.PReLU()  # in the place of each activation function", _activation(nn.PReLU)),
    Treatment("elu", "nn.ELU()  # in the place of each activation function", _activation(nn.ELU)),
    Treatment(
        "selu", 'nn.SELU()  # in the place of each activation function, with\n' + _EACH
        + 'nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")' + _ZERO, activations.selu,
    ),
    Treatment("gelu", "nn.GELU()  # in the place of each activation function", _activation(nn.GELU)),
    Treatment("he", _EACH + 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")' + _ZERO, initialisation.he),
    Treatment("xavier", _EACH + "nn.init.xavier_uniform_(layer.weight)" + _ZERO, initialisation.xavier),
    Treatment("orthogonal", _EACH + "nn.init.orthogonal_(layer.weight, 2**0.5)" + _ZERO, initialisation.orthogonal),
    Treatment(
        "depth-scaled", _EACH + "nn.init.xavier_uniform_(layer.weight)" + _ZERO
        + "\n# then layer.weight /= (number of layers) ** 0.5 in those that keep their width",
        initialisation.depth_scaled,
    ),
    Treatment("residual", "x = x + block(x)  # for each block that keeps its width", structure.residual),
    Treatment(
        "batch-norm", _NORM.format(layer="layer", norm="BatchNorm1d"), lambda setup: structure.normalise(setup, "batch")
    ),
    Treatment(
        "layer-norm", _NORM.format(layer="layer", norm="LayerNorm"), lambda setup: structure.normalise(setup, "layer")
    ),
    Treatment("rms-norm", _NORM.format(layer="layer", norm="RMSNorm"), lambda setup: structure.normalise(setup, "rms")),
    Treatment("spectral-norm", _EACH + "nn.utils.parametrizations.spectral_norm(layer)", structure.spectral_norm),
    Treatment("truncated-bptt", "state = state.detach()  # every 10 time steps", recurrence.truncated),
    Treatment(
        "scaled-inputs", "x = (x - x_train.mean(0)) / x_train.std(0)  # and y, where it is a large number", data.scale
    ),
    Treatment("smaller-batches", "DataLoader(…, batch_size=batch_size // 4)", data.split),
    Treatment("loss-scaling", "model.float()  # with torch.autocast and torch.amp.GradScaler", _into_float32),
    Treatment("safe-log", "x.clamp(min=1e-6).log()  # for each logarithm", _mode(formulas.SafeLog)),
    Treatment("safe-sqrt", "x.clamp(min=1e-6).sqrt()  # for each root, norm, acos and atanh", _mode(formulas.SafeSqrt)),
    Treatment(
        "safe-division", "a / torch.where(b.abs() < 1e-6, 1e-6, b)  # for each division", _mode(formulas.SafeDivision)
    ),
    Treatment(
        "masked-softmax", "hidden = (scores == -torch.inf).all(-1, keepdim=True)\n"
        "scores.masked_fill(hidden, 0.0).softmax(-1).masked_fill(hidden, 0.0)", _mode(formulas.SafeSoftmax),
    ),
    Treatment(
        "weight-regularisation", "weights = [p for p in model.parameters() if p.ndim > 1]\n"
        "loss = loss + 1e-3 * sum(weight.square().sum() for weight in weights)", _set(penalty=_decay),
    ),
    Treatment(
        "gradient-penalty", "(slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)\n"
        "loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()", _set(penalty=_gradient_penalty),
    ),
    Treatment(
        "weight-clipping", "for p in model.parameters():  # after optimizer.step()\n    p.data.clamp_(-0.1, 0.1)",
        _set(after_update=_clip_weights),
    ),
    Treatment("clip-norm", "gradwatch.watch(model, optimizer, clip=1.0)", _set(clip=1.0)),
    Treatment(
        "clip-value", "gradwatch.watch(model, optimizer, clip=gradwatch.clip.by_value(0.1))",
        lambda setup: _set(clip=clip.by_value(0.1))(setup),
    ),
    Treatment("clip-adaptive", 'gradwatch.watch(model, optimizer, clip="auto")', _set(clip="auto")),
    Treatment("warm-up", "torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=50)", _set(warm_up=50)),
    *(Treatment("lower-learning-rate", f"{_GROUPS}{factor:g}", _rate(factor), f"-{factor:g}") for factor in LOWER),
    *(Treatment("higher-learning-rate", f"{_GROUPS}{factor:g}", _rate(factor), f"-{factor:g}") for factor in HIGHER),
)  # fmt: skip
