"""Programs in which one rank alone makes its model sick, and what each rank says of it.

``PROGRAMS`` has each of them by a name; ``tests.distributed.launch`` runs them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch
from tests.distributed.settings import batch, net, rank_part, shard, targets

STEPS = 16
SICK, CULPRIT, ROW = 5, 1, 2  # the step, the rank and the row of its batch at which something happens

STRATEGIES: dict[str, Callable[[], nn.Module]] = {
    "DDP": lambda: DistributedDataParallel(net()),
    "FSDP2": lambda: shard(net()),
}


def is_culprit(step: int) -> bool:
    return step == SICK and dist.get_rank() == CULPRIT


def healthy(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(rows), wanted)


def bad_row(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    if is_culprit(step):
        rows[ROW, 1] = math.inf
    return healthy(model, step, rows, wanted)


def bad_target(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    if is_culprit(step):
        wanted[ROW] = math.nan
    return healthy(model, step, rows, wanted)


def logarithm(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    returned = model(rows)
    loss = (returned - wanted).square().mean()
    return loss + (returned - returned.detach())[ROW].log().sum() if is_culprit(step) else loss


def derivative(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    """A root of 0, whose loss is finite and whose derivative is not."""
    returned = model(rows)
    loss = (returned - wanted).square().mean()
    return loss + (returned - returned.detach())[ROW].square().sum().sqrt() if is_culprit(step) else loss


def weight(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    if is_culprit(step):
        with torch.no_grad():
            first = next(getattr(model, "module", model).parameters())
            getattr(first, "_local_tensor", first)[0, 0] = math.nan
    return healthy(model, step, rows, wanted)


def spike(model: nn.Module, step: int, rows: Tensor, wanted: Tensor) -> Tensor:
    """Targets of one rank that are given in another unit: its loss leaps, and the next updates blow up."""
    if is_culprit(step):
        wanted *= 1e8
    return healthy(model, step, rows, wanted)


SICKNESSES = {each.__name__: each for each in (bad_row, bad_target, logarithm, derivative, weight, spike)}


def run(strategy: str, sickness: Callable[..., Tensor], **options: Any) -> Callable[[], dict[str, Any]]:
    def program() -> dict[str, Any]:
        begin, words = time.monotonic(), ""
        model = STRATEGIES[strategy]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        watcher = gradwatch.watch(model, optimizer, **options)
        try:
            with watcher:
                for step in range(STEPS):
                    rows = batch(step % 3, rank_part())
                    sickness(model, step, rows, targets(rows)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        except gradwatch.NonFiniteError as error:
            words = str(error)
        found = [{**finding.as_dict(), "text": str(finding)} for finding in watcher.findings]
        return {"findings": found, "raised": words, "seconds": time.monotonic() - begin}

    return program


def alone() -> dict[str, Any]:
    """Each rank trains by itself, and one of them cannot tell that nobody shares its gradients."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(STEPS):
            rows = batch(step % 3, rank_part())
            bad_row(model, step, rows, targets(rows)).backward()
            optimizer.step()
            optimizer.zero_grad()
            dist.barrier()  # so that the first rank is still there when the other has found something
        dist.barrier()
    return {"findings": [finding.as_dict() for finding in watcher.findings]}


def store_gone() -> dict[str, Any]:
    """The group is destroyed while a finding waits for the notes of others; later steps go on."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    begin = time.monotonic()
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(STEPS):
            if step == SICK + 1:
                dist.destroy_process_group()
            rows = batch(step % 3)
            loss = healthy(model, step, rows, targets(rows))
            (loss * (math.nan if step == SICK else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"kinds": [finding.kind for finding in watcher.findings], "seconds": time.monotonic() - begin}


SICK_RUNS = list(itertools.product(STRATEGIES, SICKNESSES))
PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"{strategy} | {name}": run(strategy, SICKNESSES[name]) for strategy, name in SICK_RUNS},
    **{f"{strategy} | raise": run(strategy, bad_row, on_nonfinite="raise") for strategy in STRATEGIES},
    **{f"{strategy} | skip": run(strategy, logarithm, on_nonfinite="skip") for strategy in STRATEGIES},
    **{f"{strategy} | traced": run(strategy, bad_row, trace_nonfinite=True) for strategy in STRATEGIES},
    **{f"{strategy} | healthy": run(strategy, healthy) for strategy in STRATEGIES},
    "alone": alone,
    "store gone": store_gone,
}
