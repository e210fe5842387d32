"""Limit the slope of a critic (WGAN), and with it the gradient that the critic passes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradwatch.remedies.forward_pass import call_model, layer_calls
from gradwatch.remedies.remedy import NotApplicableError

__all__ = ["add_spectral_norms_", "gradient_penalty"]


def add_spectral_norms_(model: nn.Module, x: Any) -> None:
    """Replace W by W/σ₁(W) in every linear and convolutional layer (``nn.utils.parametrizations.spectral_norm``).

    Miyato et al. 2018, arXiv:1802.05957.

    Args:
        model: is changed in place.
        x: the inputs of one batch, to see which layers are called.

    Raises:
        NotApplicableError: if there is no such layer whose weight is not parametrized already.

    Examples:
        >>> critic = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> add_spectral_norms_(critic, torch.randn(3, 4))
        >>> torch.nn.utils.parametrize.is_parametrized(critic[0], "weight")
        True
    """
    calls = [call for call in layer_calls(model, x) if isinstance(call.module.weight, nn.Parameter)]
    if not calls:
        raise NotApplicableError("no linear or convolutional layer was found")
    for call in calls:
        parametrizations.spectral_norm(call.module)


def gradient_penalty(critic: nn.Module, x: Any) -> Tensor:
    """Return the mean of (‖∇ₓ critic(x)‖ − 1)² over a batch, a scalar to be added to the loss, times 10 say.

    Gulrajani et al. 2017, arXiv:1704.00028. In a GAN ``x`` are points between real and generated samples.

    Args:
        critic: (N, …) → one number per sample.
        x: floating point, (N, …).

    Raises:
        NotApplicableError: if ``x`` is not a tensor of real numbers.

    Examples:
        >>> critic = torch.nn.Linear(4, 1)
        >>> penalty = gradient_penalty(critic, torch.randn(3, 4))
        >>> torch.allclose(penalty, (critic.weight.norm() - 1) ** 2)
        True
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise NotApplicableError("the inputs are not a tensor of real numbers")
    points = x.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(call_model(critic, points).sum(), points, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
