"""Programs whose layers have more entries than are sampled, cut into parts in several ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import gradwatch

FIGURES = ("update_ratio", "weight_mean", "grad_norm_clipped_total")
POLICIES: dict[str, Any] = {"none": None, "value": gradwatch.clip.by_value(0.002)}


class Net(nn.Module):
    """Layers of 396, 972 and 1,350 entries; no size is a multiple of the number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(11, 36), nn.Linear(36, 27), nn.Linear(27, 50)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(rows)))))


def fsdp1() -> nn.Module:
    return FullyShardedDataParallel(Net(), use_orig_params=True, device_id=torch.device("cpu"))


def fsdp2() -> nn.Module:
    return fully_shard(Net(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def tensor_parallel() -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(Net(), mesh, {"a": ColwiseParallel(), "b": RowwiseParallel()})


MAKERS: dict[str, Callable[[], nn.Module]] = {"FSDP1": fsdp1, "FSDP2": fsdp2, "tensor parallel": tensor_parallel}


def trained(model: nn.Module, policy: str, optimizers: int, reads: str = "") -> dict[str, Any]:
    """Return figures of six updates of each optimizer, on equal batches on every rank; ``reads`` after each of them."""
    parameters = list(model.parameters())
    cuts = (parameters,) if optimizers == 1 else (parameters[:4], parameters[4:])
    steppers = [torch.optim.SGD(each, lr=0.5) for each in cuts]
    torch.manual_seed(3)
    with gradwatch.watch(model, steppers, clip=POLICIES[policy]) as watcher:
        for _ in range(6):
            for stepper in steppers:
                stepper.zero_grad()
            model(torch.randn(8, 11)).square().mean().backward()
            for stepper in steppers:
                stepper.step()
            if reads:
                len(getattr(watcher, reads))
    return {name: watcher.history[name].tolist() for name in FIGURES}


CASES = [(kind, policy, 1, "") for kind in MAKERS for policy in POLICIES]
CASES += [("FSDP2", "none", 2, ""), ("tensor parallel", "none", 2, "")]
CASES += [("FSDP2", "none", optimizers, reads) for optimizers in (1, 2) for reads in ("findings", "history")]
PROGRAMS = {" | ".join(map(str, case)): lambda case=case: trained(MAKERS[case[0]](), *case[1:]) for case in CASES}
