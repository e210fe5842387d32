"""Deep stacks whose gradients vanish or explode along depth."""

import torch
from torch import nn

from benchmarks.detection.data import digits
from benchmarks.detection.program import Training, faulty, supervised


@faulty("vanishing", layers=("0.*", "2.*"), attainable=0.5)
def deep_sigmoid(seed: int) -> Training:
    """Ten sigmoid layers: each multiplies the gradient by at most a quarter of its weights."""
    layers = [nn.Linear(64, 32), nn.Sigmoid()]
    for _ in range(9):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    x, y = digits()

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = torch.randint(len(x), (64,))
        return x[batch], y[batch]

    return supervised(model, torch.optim.SGD(model.parameters(), lr=0.1), draw, nn.functional.cross_entropy, 150)
