"""Programs whose replicas drift apart, and healthy ones whose replicas look as if they did.

``PROGRAMS`` has each of them by a name; ``tests.distributed.launch`` runs them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch
from tests.distributed.settings import batch, loss_of, net, rank_part

STEPS = 12


def train(model: nn.Module, watched: nn.Module, optimizer: torch.optim.Optimizer, **how: Any) -> dict[str, Any]:
    begin = time.monotonic()
    with gradwatch.watch(watched, optimizer) as watcher:
        for step in range(how.get("steps", STEPS)):
            how.get("before", lambda step: None)(step)
            loss_of(model, batch(step % 3, rank_part()), 0).backward()
            optimizer.step()
            optimizer.zero_grad()
            how.get("after", lambda step: None)(step)
    found = [{**finding.as_dict(), "text": str(finding)} for finding in watcher.findings]
    return {"findings": found, "seconds": time.monotonic() - begin}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02)


def healthy() -> dict[str, Any]:
    model = DistributedDataParallel(net())
    return train(model, model, sgd(model), steps=110)


def healthy_inside() -> dict[str, Any]:
    """The model inside is watched, the optimizer is sharded, gradients are accumulated."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its package warns of torch.jit

    inner = net()
    model = DistributedDataParallel(inner)
    optimizer = ZeroRedundancyOptimizer(inner.parameters(), torch.optim.Adam, lr=1e-3)
    return train(model, inner, optimizer)


def replaced() -> dict[str, Any]:
    """A head that is replaced after DDP was made: nobody averages its gradients."""
    model = DistributedDataParallel(net(), find_unused_parameters=True)  # else torch itself stops at once
    model.module[5] = nn.Linear(13, 1).double()
    return train(model, model, sgd(model))


def drawn() -> dict[str, Any]:
    """Weights that each rank draws from a random state of its own after DDP has made replicas alike."""
    model = DistributedDataParallel(net())
    torch.manual_seed(dist.get_rank())
    nn.init.xavier_uniform_(model.module[3].weight)
    return train(model, model.module, sgd(model))


def changed() -> dict[str, Any]:
    """One rank alone scales a weight at step 5."""
    model = DistributedDataParallel(net())

    def before(step: int) -> None:
        if step == 5 and dist.get_rank() == 1:
            with torch.no_grad():
                model.module[0].weight.mul_(1.5)

    return train(model, model, sgd(model), before=before)


def ignored() -> dict[str, Any]:
    """Parameters that DDP is told to leave alone, as experts are."""
    inner = net()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(inner, ["3.weight", "3.bias"])
    torch.manual_seed(dist.get_rank())
    nn.init.normal_(inner[3].weight)
    model = DistributedDataParallel(inner)
    return train(model, model, sgd(model))


def local_sgd() -> dict[str, Any]:
    """Ranks make steps of their own, and average their weights now and then."""
    inner = net()
    model = DistributedDataParallel(inner)
    optimizer = sgd(inner)

    def after(step: int) -> None:
        if step % 4 == 3:
            for weight in inner.parameters():
                dist.all_reduce(weight.data)
                weight.data /= dist.get_world_size()

    with model.no_sync():
        return train(model, model, optimizer, after=after)


def group_of_its_own() -> dict[str, Any]:
    """Each rank has DDP in a group of its own: these are two models."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    torch.manual_seed(dist.get_rank())
    inner = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)).double()
    model = DistributedDataParallel(inner, process_group=groups[dist.get_rank()])
    return train(model, model, sgd(model))


def without_ddp() -> dict[str, Any]:
    """Each rank trains a model of its own, without DDP."""
    torch.manual_seed(dist.get_rank())
    inner = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)).double()
    gc.collect()
    return train(inner, inner, sgd(inner))


HEALTHY = (healthy, healthy_inside, ignored, local_sgd, group_of_its_own, without_ddp)
SICK = (replaced, drawn, changed)
PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {each.__name__: each for each in (*HEALTHY, *SICK)}
