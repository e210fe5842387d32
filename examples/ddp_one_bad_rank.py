"""Two replicas train with DDP, and one of them gets a bad batch: which one was it?

    torchrun --standalone --nproc-per-node 2 examples/ddp_one_bad_rank.py

DDP averages gradients over the ranks, so that one NaN makes every gradient NaN on every rank. Here rank 1 reads one row
with a NaN. Every rank leaves that update out, at the same step, and the finding names the rank and the row.
"""

import logging
import math
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch

STEPS, ROWS, WIDTH = 60, 32, 16
BAD_STEP, BAD_RANK = 40, 1


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return the rows that a rank reads at a step; one of them is bad."""
    generator = torch.Generator().manual_seed(1_000 * step + rank)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    y = (x[:, :4].sum(1) > 0).long()
    if (step, rank) == (BAD_STEP, BAD_RANK):
        x[7, 3] = math.nan
    return x, y


def main() -> None:
    logging.getLogger("gradwatch").addHandler(logging.NullHandler())  # printed below instead
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    with gradwatch.watch(model, optimizer, clip=1.0, on_nonfinite="skip") as watcher:  # the same line on every rank
        for step in range(STEPS):
            x, y = batch(step, rank)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    report(watcher, loss)
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now


def report(watcher: gradwatch.Watcher, loss: Tensor) -> None:
    """Print on rank 0 what was found; fail if the ranks did not leave the same update out."""
    left_out = watcher.history["skipped"].nonzero()[0].tolist()
    everywhere: list[list[int] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, left_out)
    if any(steps != [BAD_STEP] for steps in everywhere):
        raise SystemExit(f"updates left out, a list a rank: {everywhere}")
    if dist.get_rank() != 0:
        return
    (finding,) = watcher.findings
    print(f"Every rank left out update {BAD_STEP}. The loss is {loss.item():.3f} at the end.\n\n{finding}")
    if finding.ranks != (BAD_RANK,):
        raise SystemExit(f"the finding names ranks {finding.ranks} where rank {BAD_RANK} had the bad row")


if __name__ == "__main__":
    main()
