"""A short training, bare or watched, that leaves a digest of its weights: the program of the attack ``surroundings``.

``python surrounded.py FOLDER bare|watched [statement ...]``: the statements are executed first. Step 3 sees a NaN.
"""

import hashlib
import os
import sys

import torch
from torch import nn

FOLDER, HOW, *STATEMENTS = sys.argv[1:]
for statement in STATEMENTS:
    exec(statement)


def train() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, device="cpu"), nn.ReLU(), nn.Linear(8, 1, device="cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    watcher = None
    if HOW == "watched":
        import gradwatch

        sinks = [gradwatch.JsonLines(os.path.join(FOLDER, "run.jsonl"))]
        watcher = gradwatch.watch(model, optimizer, log_dir=os.path.join(FOLDER, "run"), sinks=sinks)
    for step in range(6):
        x = torch.randn(16, 6, device="cpu")
        if step == 3:
            x[0, 0] = torch.nan
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if watcher is not None:
        watcher.close()
    weights = b"".join(each.detach().double().numpy().tobytes() for each in model.parameters())
    with open(os.path.join(FOLDER, "digest"), "w", encoding="ascii") as file:
        file.write(hashlib.sha256(weights).hexdigest())


train()
