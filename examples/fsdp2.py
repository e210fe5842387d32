"""A model sharded with FSDP2: the norms, the clipping and the findings are those of the whole model, on every rank.

    torchrun --standalone --nproc-per-node 2 examples/fsdp2.py

Each rank holds a part of each weight. The norm of a part says little; `clip=` and every figure here are of the whole
gradient. The same loop with `torch.nn.utils.clip_grad_norm_` runs beside it and must come to the same weights.
"""

import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import gradwatch

STEPS, ROWS, LENGTH, WIDTH, WORDS = 20, 8, 12, 32, 50
MAX_NORM = 0.5


class LanguageModel(nn.Module):
    """Two blocks of a Transformer over a small vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor, targets: Tensor) -> Tensor:
        hidden = self.embedding(words)
        for block in self.blocks:
            hidden = block(hidden)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())


def sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the model in parts, one a rank, and its optimizer."""
    torch.manual_seed(0)
    model = LanguageModel()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def backward(model: nn.Module, step: int) -> None:
    """Compute the gradients of a step: repeat the word that is two places back."""
    generator = torch.Generator().manual_seed(1_000 * step + dist.get_rank())
    words = torch.randint(WORDS, (ROWS, LENGTH), generator=generator)
    model(words, words.roll(2, dims=1)).backward()


def train_with_torch() -> tuple[list[float], nn.Module]:
    """Clip with torch; return the norm of each step before clipping."""
    model, optimizer = sharded()
    norms = []
    for step in range(STEPS):
        backward(model, step)
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        norms.append((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())
        optimizer.step()
        optimizer.zero_grad()
    return norms, model


def train_watched() -> tuple[gradwatch.Watcher, nn.Module]:
    """Train with `clip=`: the same line on every rank, and nothing else."""
    model, optimizer = sharded()
    with gradwatch.watch(model, optimizer, clip=MAX_NORM) as watcher:
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
    return watcher, model


def main() -> None:
    dist.init_process_group("gloo")  # "nccl" on GPUs
    watcher, model = train_watched()
    norms, twin = train_with_torch()
    totals = watcher.history["grad_norm_total"].tolist()
    farthest = max(
        (mine.full_tensor() - theirs.full_tensor()).abs().max().item()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True)
    )
    weight = next(model.parameters())
    first = ", ".join(f"{total:.4f}" for total in totals[:5])
    print(
        f"rank {dist.get_rank()} holds {weight.to_local().numel()} of {weight.numel()} entries of the first weight.\n"
        f"  Norms of the whole gradient: {first}, … ({len(totals)} steps, {len(watcher.findings)} findings)\n",
        end="",  # in one write, since the ranks share a terminal
    )
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now
    if len(totals) != STEPS or max(abs(a / b - 1) for a, b in zip(totals, norms, strict=True)) > 1e-4:
        raise SystemExit(f"torch measures other totals: {norms[:5]}")
    if farthest > 1e-5:
        raise SystemExit(f"torch's clipping leads to other weights, by up to {farthest:.1e}")


if __name__ == "__main__":
    main()
