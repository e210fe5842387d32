"""Every remedy as a change to a trial, with the code that makes the same change in the user's own program.

Enters: nothing. Leaves: ``TREATMENTS``, in the order in which those of a pair are applied. Knows nothing of when each
is tried (``fitting``).
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
from gradwatch.remedies import LIBRARY
from gradwatch.remedies.learning_rate import multiplied

__all__ = ["TREATMENTS", "Treatment", "code_of", "name_of"]


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


def code_of(treatments: tuple[Treatment, ...], given: str = "x") -> str:
    """To paste, one after the other.

    Args:
        treatments: whose code.
        given: how a model is given ``x``, one batch's inputs.
    """
    code = "\n\n".join(treatment.code.rstrip() for treatment in treatments)
    return code.replace("model(x)", f"model({given})").replace("model.eval()(x)", f"model.eval()({given})")


def _set(**fields: Any) -> Callable[[Setup], None]:
    def change(setup: Setup) -> None:
        for name, value in fields.items():
            setattr(setup, name, value)

    return change


def _activation(make: Callable[[], nn.Module]) -> Callable[[Setup], None]:
    return lambda setup: activations.activate(setup, make())


def _mode(make: Callable[[], formulas.SafeForm]) -> Callable[[Setup], None]:
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


FACTORS = {"lower-learning-rate": (0.1, 0.01, 1e-3, 1e-4), "higher-learning-rate": (10.0, 100.0)}

_CHANGES: dict[str, Callable[[Setup], None]] = {
    "clean-data": data.clean,
    "lstm-gru": recurrence.gated,
    "fewer-layers": structure.fewer_layers,
    "maxout": activations.maxout,
    "relu": _activation(nn.ReLU),
    "leaky-relu": _activation(functools.partial(nn.LeakyReLU, 0.1)),
    "prelu": _activation(nn.PReLU),
    "elu": _activation(nn.ELU),
    "selu": activations.selu,
    "gelu": _activation(nn.GELU),
    "he": initialisation.he,
    "xavier": initialisation.xavier,
    "orthogonal": initialisation.orthogonal,
    "depth-scaled": initialisation.depth_scaled,
    "residual": structure.residual,
    "batch-norm": functools.partial(structure.normalise, kind="batch"),
    "layer-norm": functools.partial(structure.normalise, kind="layer"),
    "rms-norm": functools.partial(structure.normalise, kind="rms"),
    "spectral-norm": structure.spectral_norm,
    "truncated-bptt": recurrence.truncated,
    "scaled-inputs": data.scale,
    "smaller-batches": data.split,
    "loss-scaling": _into_float32,
    "safe-log": _mode(formulas.SafeLog),
    "safe-sqrt": _mode(formulas.SafeSqrt),
    "safe-division": _mode(formulas.SafeDivision),
    "masked-softmax": _mode(formulas.SafeSoftmax),
    "weight-regularisation": _set(penalty=_decay),
    "gradient-penalty": _set(penalty=_gradient_penalty),
    "weight-clipping": _set(after_update=_clip_weights),
    "clip-norm": _set(clip=1.0),
    "clip-value": lambda setup: setattr(setup, "clip", clip.by_value(0.1)),  # a policy for each trial: it may remember
    "clip-adaptive": _set(clip="auto"),
    "warm-up": _set(warm_up=50),
}


TREATMENTS: tuple[Treatment, ...] = (
    *(Treatment(remedy, LIBRARY[remedy].code, change) for remedy, change in _CHANGES.items()),
    *(
        Treatment(remedy, multiplied(factor), _set(rate=factor), f"-{factor:g}")
        for remedy, factors in FACTORS.items()
        for factor in factors
    ),
)
