"""One program run without gradwatch, every figure in float64: what the labels are proven on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.detection.program import Program, Training


@dataclass(frozen=True)
class Bare:
    """What a bare run did, over S updates of P parameters in order of registration.

    Attributes:
        names: (P,).
        grad_norm: (S, P) float64, L2 norm of the accumulated gradient as the last backward pass left it (before the
            loop's own clipping); NaN where there was none.
        grad_rms: (S, P) the same over the root of the number of entries.
        nonfinite: (S, P) how many entries are NaN or Inf.
        weight_norm: (S, P) before the update; of finite entries.
        change: (S, P) L2 norm of the update.
        loss: (S,) the mean of the losses observed since the update before; NaN where none was.
        observed: (S,) bool, whether any was.
    """

    names: tuple[str, ...]
    grad_norm: NDArray[np.float64]
    grad_rms: NDArray[np.float64]
    nonfinite: NDArray[np.int64]
    weight_norm: NDArray[np.float64]
    change: NDArray[np.float64]
    loss: NDArray[np.float64]
    observed: NDArray[np.bool_]


def start(program: Program, seed: int) -> Training:
    """The program, ready to run, under its seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return program.make(seed)


def run_bare(program: Program, seed: int) -> Bare:
    """Runs the program to its end and measures every update."""
    training = start(program, seed)
    named = dict(named_parameters(training))
    parameters = list(named.values())
    latest: dict[int, Tensor] = {}
    rows: list[tuple[list[float], list[float], list[int], list[float]]] = []
    changes, losses, has_loss, observed = [], [], [], []
    before: dict[int, Tensor] = {}

    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: latest.__setitem__(id(p), _wide(p.grad)))

    def enter(optimizer, _args, _kwargs):
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        present = [id(p) in mine and p.grad is not None for p in parameters]
        gradients = [latest.get(id(p), _wide(p.grad)) if has else None for p, has in zip(parameters, present)]
        norms = [np.nan if g is None else _norm(g) for g in gradients]
        sizes = [max(p.numel(), 1) ** 0.5 for p in parameters]
        rows.append(
            (
                norms,
                [norm / size for norm, size in zip(norms, sizes)],
                [0 if g is None else int((~torch.isfinite(g)).sum()) for g in gradients],
                [_norm(_wide(p)[torch.isfinite(p)]) for p in parameters],
            )
        )
        before.update({id(p): _wide(p).clone() for p in parameters})
        losses.append(float(np.mean(observed)) if observed else np.nan)
        has_loss.append(bool(observed))
        observed.clear()

    def leave(optimizer, _args, _kwargs):
        changes.append([_norm(_wide(p) - before[id(p)]) for p in parameters])
        latest.clear()

    for optimizer in training.optimizers:
        optimizer.register_step_pre_hook(enter)
        optimizer.register_step_post_hook(leave)
    for number in range(training.steps):
        training.step(number, lambda loss: observed.append(float(loss.detach())))
    columns = [np.array(column) for column in zip(*rows)]
    return Bare(tuple(named), *columns, np.array(changes), np.array(losses), np.array(has_loss))


def named_parameters(training: Training) -> Iterator[tuple[str, Tensor]]:
    """Names as gradwatch gives them; a tied tensor once, by its first."""
    models = {"": training.model} if isinstance(training.model, nn.Module) else training.model
    seen: set[int] = set()
    for prefix, model in models.items():
        for name, parameter in model.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), parameter


def _wide(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    tensor = tensor.detach()
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
    return tensor.abs().double() if tensor.is_complex() else tensor.double()


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
