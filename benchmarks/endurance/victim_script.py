"""A training script that ``gradwatch run`` watches: ``victim_script.py DESCRIPTOR SEED``.

It asks the loop that watches it what is safe, as no script of a user's would: its parent has to know the truth.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

import torch

from benchmarks.endurance.figure import draws_of
from benchmarks.endurance.victims import FLUSHED_SHARE, Watched, Witness, batches, small_model


def main(descriptor: int, seed: int) -> None:
    """Train; a batch that is sick leaves the weights as they were."""
    witness, model, draws = Witness(Connection(descriptor, readable=False)), small_model(), draws_of(seed, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step, x in enumerate(batches(seed)):
        healthy = [each.detach().clone() for each in model.parameters()]
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for each, before in zip(model.parameters(), healthy, strict=True):
                each.copy_(torch.where(each.isfinite(), each, before))
        if step == 0:
            witness.say("ready")
        if draws.random() < FLUSHED_SHARE:
            witness.note_flush(Watched(), step + 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
