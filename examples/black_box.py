"""A step fails in the middle of a run: the black box keeps it, and ``gradwatch replay`` runs it again.

One of 1,000 images is broken. Run ``python examples/black_box.py``: it trains until that image comes, shows what the
file holds, and replays the step with the functions ``make_model`` and ``loss_fn`` of this very file.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import gradwatch

FILE = Path("failed-step.pt")


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, classes = batch
    return nn.functional.cross_entropy(model(images), classes)


def train() -> None:
    torch.manual_seed(0)
    images, classes = torch.randn(1000, 64), torch.randint(10, (1000,))
    images[613, 40] = float("nan")
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    try:
        with gradwatch.watch(model, optimizer, black_box=FILE, on_nonfinite="raise") as watcher:
            for start in range(0, 1000, 50):
                batch = images[start : start + 50], classes[start : start + 50]
                watcher.black_box.note_batch(batch)  # the targets, too, which the model is never given
                loss_fn(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
    except gradwatch.NonFiniteError as error:
        print(f"The run has died: step {error.step}.\n")


def replay(*options: str) -> None:
    command = ["replay", str(FILE), *options]
    print("$ gradwatch", *command)
    folder = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from gradwatch.cli import main; main()"
    print(subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    train()
    replay()
    replay("--model", "black_box:make_model", "--loss", "black_box:loss_fn")
