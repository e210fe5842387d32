"""One update of a treated model, and its loss on the held-out batches.

Enters: a setup and its optimizer. Leaves: losses. Knows nothing of findings, deadlines or seeds.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.prescription.problem import Problem, called, owned
from gradwatch.prescription.setup import Setup
from gradwatch.prescription.surgery.calls import evaluating

__all__ = ["forward", "held_out_losses", "stepper"]


def stepper(setup: Setup, optimizer: Optimizer, observe: Callable[[Tensor], None]) -> Callable[[int], float]:
    """A function that makes the update of a number from 0 on, and returns its loss."""
    rates = [group["lr"] for group in optimizer.param_groups]
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    needs_closure = closure is not None and closure.default is inspect.Parameter.empty  # LBFGS

    def step(number: int) -> float:
        warm = min(1.0, (number + 1) / setup.warm_up) if setup.warm_up else 1.0
        if setup.rate * warm != 1.0 or setup.warm_up:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * setup.rate * warm

        def backward() -> float:
            optimizer.zero_grad()
            with _at(f"in update {number}, on training batch {number % len(setup.batches)}"):
                return _backward(setup, number, observe)

        if needs_closure:
            loss = float(optimizer.step(backward))
        else:
            loss = backward()
            optimizer.step()
        if setup.after_update is not None:
            setup.after_update(setup.model)
        return loss

    return step


def held_out_losses(problem: Problem, setup: Setup, deadline: float) -> list[float]:
    """The user's loss of each held-out batch; NaN alone where the deadline passes meanwhile."""
    torch.manual_seed(0)  # models that draw noise meet the same noise in every trial
    with evaluating(setup.model), _within(setup):
        losses = []
        for number, (x, y) in enumerate(map(owned, problem.held_out)):
            if time.perf_counter() > deadline:
                return [math.nan]
            with _at(f"on held-out batch {number}"):
                outputs = setup.outputs_of(called(setup.model, setup.inputs_of(x)))
                losses.append(float(_scalar(setup.loss_fn(outputs, y))))
    return losses


def forward(setup: Setup, number: int) -> tuple[Any, Tensor]:
    """(inputs, loss) of the update of this number, before its backward pass."""
    inputs, targets = owned(setup.batches[number % len(setup.batches)])
    inputs = setup.inputs_of(inputs)
    with _within(setup):
        return inputs, _scalar(setup.loss_fn(called(setup.model, inputs), setup.targets_of(targets)))


def _backward(setup: Setup, number: int, observe: Callable[[Tensor], None]) -> float:
    inputs, loss = forward(setup, number)
    observe(loss)
    total = loss if setup.penalty is None else loss + setup.penalty(setup.model, inputs)
    (total * setup.loss_scale).backward()
    if setup.loss_scale != 1.0:
        _divide_gradients_(setup.model, setup.loss_scale)
    return float(loss.detach())


def _divide_gradients_(model: nn.Module, scale: float) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale


@contextlib.contextmanager
def _at(place: str) -> Iterator[None]:
    """What is raised within is given the place as a note: ``add_note``, which Python 3.10 does not have."""
    try:
        yield
    except Exception as error:
        error.__notes__ = [*getattr(error, "__notes__", ()), place]
        raise


@contextlib.contextmanager
def _within(setup: Setup) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in setup.modes:
            stack.enter_context(mode)
        yield


def _scalar(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    found = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise TypeError(f"loss_fn: expected it to return a scalar tensor, found {found}.")
