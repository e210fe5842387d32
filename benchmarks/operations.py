"""What watching adds to a step on a GPU, counted: ``python -m benchmarks.operations [--write | --json]``.

Each model trains twice on ``benchmarks.counted_device``, with gradwatch watching and clipping, and with
``clip_grad_norm_`` alone. The difference at each kind of step is what gradwatch costs there, in launches, copies and
waits. These are exact, and the same on every machine; times are not measured. The figures that gradwatch reports are
held against those of the same training on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gradwatch
from benchmarks.counted_device import DEVICE, Counted, moved
from benchmarks.pages import write_between

PAGE = Path("docs/performance.md")
MARKERS = "<!-- bench-operations: begin -->", "<!-- bench-operations: end -->"
STEPS = 12
KINDS = {"plain": (3, 5, 6, 7, 9, 11), "sampled": (4, 8, 10), "first": (0,), "second": (1, 2)}
"""Steps of each kind that are counted. The first ones look up what later ones know."""


@dataclass(frozen=True)
class Cost:
    """What watching adds to one kind of step: the most of any step of the kind."""

    launches: int
    copies: int
    waits: int


Made = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]
"""A model, its loss for a batch, and the batch."""


def mlp() -> Made:
    """100 orthogonal layers of 64 units, so that gradients of all of them are of one size."""
    layers = [part for _ in range(100) for part in (nn.Linear(64, 64), nn.LeakyReLU(0.7))]
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, 1.15)
    return nn.Sequential(*layers, nn.Linear(64, 1)), mean_square, torch.randn(32, 64)


def rectified_mlp() -> Made:
    """30 layers of widths that differ, with ReLUs that change their input in place."""
    widths = [64 + 4 * layer for layer in range(31)]
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU(inplace=True))]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1)), mean_square, torch.randn(32, 64)


def autoencoder() -> Made:
    """Squashed outputs held against targets by a squared error."""
    layers = [part for a, b in ((64, 24), (24, 64)) for part in (nn.Linear(a, b), nn.Sigmoid())]
    return nn.Sequential(*layers), lambda model, x: nn.functional.mse_loss(model(x), x), torch.rand(32, 64)


def mixed() -> Made:
    """Layers of two types, as where normalisations stay in float32."""
    layers = [nn.Linear(64, 64), _InBfloat16(), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 1)]
    return nn.Sequential(*layers), mean_square, torch.randn(32, 64)


class _InBfloat16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.bfloat16()).float()


def mean_square(model: nn.Module, x: Tensor) -> Tensor:
    """Return a loss."""
    return model(x).square().mean()


def gpt() -> Made:
    """Hugging Face's GPT-2 of 6 layers, from a configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 6, "n_embd": 256, "n_head": 4, "vocab_size": 512, "n_positions": 64}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **special, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    return model, lambda model, x: model(input_ids=x, labels=x).loss, torch.randint(512, (8, 64))


def resnet() -> Made:
    """Hugging Face's ResNet-18, from a configuration, on images of 64 × 64."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=10))
    return model, lambda model, x: model(pixel_values=x).logits.square().mean(), torch.randn(4, 3, 64, 64)


MODELS: dict[str, Callable[[], Made]] = {
    "GPT-2 of 6 layers, 77 tensors": gpt,
    "ResNet-18, 62 tensors": resnet,
    "100 layers of 64 units, 202 tensors": mlp,
    "30 layers of 30 widths, in-place ReLU, 62 tensors": rectified_mlp,
    "autoencoder with sigmoids, 4 tensors": autoencoder,
    "float32 and bfloat16, 8 tensors": mixed,
}


def counts_of(make: Callable[[], Made]) -> dict[str, Cost]:
    """Return {kind of step: what watching adds to it}.

    Raises:
        AssertionError: where gradwatch reports other figures than on the CPU.
    """
    torch.manual_seed(0)
    model, loss_of, batch = make()
    twin, of_clipping = copy.deepcopy(model), copy.deepcopy(model)
    on_cpu, _ = trained(twin, loss_of, batch, watches=True)
    with Counted():
        on_device = batch.to(DEVICE)
    _, clipped = trained(moved(of_clipping), loss_of, on_device, watches=False)
    history, watched = trained(moved(model), loss_of, on_device, watches=True)
    compare(history, on_cpu)
    return {kind: most([cost_of(watched[step], clipped[step]) for step in steps]) for kind, steps in KINDS.items()}


def trained(
    model: nn.Module, loss_of: Callable[[nn.Module, Tensor], Tensor], batch: Tensor, *, watches: bool
) -> tuple[dict[str, np.ndarray], list[Counted]]:
    """Train a model, and return the history of gradwatch and what was counted at each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watcher = gradwatch.watch(model, optimizer, clip=1.0) if watches else None
    steps = [Counted() for _ in range(STEPS)]
    for counted in steps:
        with counted:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if watcher is None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
    if watcher is None:
        return {}, steps
    watcher.close()
    names = watcher.history.keys()
    return {name: np.asarray(watcher.history[name]) for name in names}, steps


def compare(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare the figures of two trainings.

    Raises:
        AssertionError: where they differ.
    """
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-6, err_msg=name)


def cost_of(watched: Counted, clipped: Counted) -> Cost:
    """Return what one step of one training takes beyond the same step of the other."""
    return Cost(
        *(
            sum(getattr(watched, what).values()) - sum(getattr(clipped, what).values())
            for what in ("launches", "copies", "waits")
        )
    )


def most(costs: Sequence[Cost]) -> Cost:
    """Return the most of each."""
    return Cost(*(max(getattr(cost, what) for cost in costs) for what in ("launches", "copies", "waits")))


def table(found: dict[str, dict[str, Cost]]) -> str:
    """Return a table of all counts."""
    lines = [f"| model | {' | '.join(f'{kind} step' for kind in KINDS)} | copies a step | waits |"]
    lines.append("|---" * (len(KINDS) + 3) + "|")
    for name, kinds in found.items():
        launches = " | ".join(str(cost.launches) for cost in kinds.values())
        waits = sum(cost.waits for cost in kinds.values())
        lines.append(f"| {name} | {launches} | {kinds['sampled'].copies} | {waits} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table, or write it to its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE}")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    arguments = parser.parse_args()
    found = {name: counts_of(make) for name, make in MODELS.items()}
    if arguments.json:
        print(json.dumps({name: {kind: asdict(cost) for kind, cost in kinds.items()} for name, kinds in found.items()}))
        return 0
    print(table(found))
    if arguments.write:
        write_between(PAGE, MARKERS, table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
