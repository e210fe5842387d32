"""Make one update of a trial's model, and compute its loss on the held-out batches."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch.prescription.problem import ArgumentTypeError, Problem
from gradwatch.prescription.trial_program import LossFunction, TrialProgram
from gradwatch.remedies import NotApplicableError
from gradwatch.remedies.forward_pass import call_model, copy_batch, evaluating

__all__ = ["forward", "held_out_losses", "stepper"]


def stepper(program: TrialProgram, optimizer: Optimizer, observe: Callable[[Tensor], None]) -> Callable[[int], float]:
    """Return a function that makes the update of a number, from 0 on, and returns its loss."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    needs_closure = closure is not None and closure.default is inspect.Parameter.empty  # LBFGS
    scaler = program.scaler
    if needs_closure and scaler is not None:
        raise NotApplicableError(f"{type(optimizer).__name__} evaluates the loss by itself, which no scaler allows")

    def step(number: int) -> float:
        def backward() -> float:
            optimizer.zero_grad()
            with _noting(f"in update {number}, on training batch {number % len(program.batches)}"):
                return _backward(program, number, observe)

        if needs_closure:
            loss = float(optimizer.step(backward))
        else:
            loss = backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        program.execute("after optimizer.step()")
        return loss

    return step


def held_out_losses(
    problem: Problem, program: TrialProgram, deadline: float, loss_fn: LossFunction | None = None
) -> list[float]:
    """Return the loss of each held-out batch, in the user's own unit; NaN alone if the deadline passes meanwhile.

    Args:
        problem: holds the batches.
        program: holds the model.
        deadline: on ``time.perf_counter``.
        loss_fn: the program's, unless another is given.
    """
    torch.manual_seed(0)  # so that models that draw noise meet the same noise in every trial
    loss_fn = loss_fn or program.loss_fn
    with evaluating(program.model):
        losses = []
        for number, (x, y) in enumerate(map(copy_batch, problem.held_out)):
            if time.perf_counter() > deadline:
                return [math.nan]
            with _noting(f"on held-out batch {number}"):
                outputs = program.scaling.outputs(call_model(program.model, program.scaling.inputs(x)))
                losses.append(float(_scalar(loss_fn(outputs, y))))
    return losses


def forward(program: TrialProgram, number: int) -> tuple[Any, Tensor]:
    """Return (inputs, loss) of the update of this number, before its backward pass."""
    inputs, targets = copy_batch(program.batches[number % len(program.batches)])
    return inputs, _scalar(program.loss_fn(call_model(program.model, inputs), targets))


def _backward(program: TrialProgram, number: int, observe: Callable[[Tensor], None]) -> float:
    inputs, loss = forward(program, number)
    observe(loss)
    total = program.treated_loss(loss, inputs)
    (total if program.scaler is None else program.scaler.scale(total)).backward()
    return float(loss.detach())


@contextlib.contextmanager
def _noting(place: str) -> Iterator[None]:
    """Add ``place`` as a note to what is raised within, as ``add_note`` does from Python 3.11 on."""
    try:
        yield
    except Exception as error:
        error.__notes__ = [*getattr(error, "__notes__", ()), place]
        raise


def _scalar(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    found = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise ArgumentTypeError(f"loss_fn: expected it to return a scalar tensor, found {found}.")
