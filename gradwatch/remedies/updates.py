"""Guard the update of an optimizer whose arithmetic has no bound."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

__all__ = ["leave_out_zero_gradients_"]


def leave_out_zero_gradients_(optimizer: Optimizer) -> None:
    """Leave each parameter whose gradient is 0 throughout out of the update, from now on.

    An update that is divided by a norm of the gradient is 0 ÷ 0 there. It works with optimizers that skip a parameter
    whose ``grad`` is None, as all of torch do. Reading the gradient waits for the device.

    Args:
        optimizer: gets a hook before each step.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight], eps=0.0)
        >>> leave_out_zero_gradients_(optimizer)
        >>> weight.grad = torch.zeros(2)
        >>> _ = optimizer.step()
        >>> weight.tolist()
        [1.0, 1.0]
    """
    optimizer.register_step_pre_hook(_leave_out)


def _leave_out(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not bool(parameter.grad.any()):
                parameter.grad = None
