"""A run that saves itself: a bit of a weight flips, and the run goes back to where it was healthy.

    python examples/rewind.py

The same small classifier of handwritten digits trains three times: undisturbed, with a bit flipped after 150 updates,
and with the same flip under ``recover=gradwatch.Rewind()``.
"""

from __future__ import annotations

import logging

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gradwatch

FAULT = 150
STEPS = 400


def flip_a_bit(weight: Tensor) -> None:
    """Flip the highest bit of the exponent of one float32, as a faulty memory cell does."""
    with torch.no_grad():
        weight.view(torch.int32)[3, 7] ^= 1 << 30


def train(*, is_faulty: bool, recover: gradwatch.Rewind | None) -> tuple[float, list[str]]:
    """Return the mean loss of the last updates, and what was done to save the run."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    classes = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    with gradwatch.watch(model, optimizer, recover=recover) as watcher:
        for step in range(STEPS):
            if is_faulty and step == FAULT:
                flip_a_bit(model[2].weight)
            chosen = torch.randint(len(images), (64,))
            loss = nn.functional.cross_entropy(model(images[chosen]), classes[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    done = {action for finding in watcher.findings for action in finding.actions}  # two findings may share one
    return sum(losses[-50:]) / 50, sorted(done)


def main() -> None:
    """Train the three runs and print how each ends."""
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)  # what was done is printed below
    healthy, _ = train(is_faulty=False, recover=None)
    print(f"undisturbed:               loss {healthy:.4f}")
    broken, _ = train(is_faulty=True, recover=None)
    print(f"a bit flips:               loss {broken:.4f}")
    saved, done = train(is_faulty=True, recover=gradwatch.Rewind(every=25, confirm=10))
    print(f"a bit flips, with recover: loss {saved:.4f}")
    for action in done:
        print(f"  {action}")


if __name__ == "__main__":
    main()
