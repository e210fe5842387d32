"""The models and losses of programs that train bare tensors and write out their losses: what GRIST's programs are.

Each is a layer with a sigmoid or a softmax, and a cross-entropy that takes the logarithm of its output. The facts are
read from the programs; that the losses agree with the programs' own, update by update, is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Written:
    """The facts of a program.

    Attributes:
        targets: the variable that holds them.
        loss: of (probabilities, targets).
        classes: 1 is a sigmoid.
        is_layer: it is an ``nn.Linear``, drawn as torch draws it; else its tensors begin as zeros.
    """

    targets: str
    loss: LossFunction
    classes: int = 1
    is_layer: bool = False


def two_classes(p: Tensor, y: Tensor) -> Tensor:
    """Return the mean binary cross-entropy."""
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def many_classes(p: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy."""
    return -(_one_hot(p, y) * torch.log(p)).sum(1).mean()


def many_classes_summed(p: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the cross-entropies."""
    return -(_one_hot(p, y) * torch.log(p)).sum()


def _one_hot(p: Tensor, y: Tensor) -> Tensor:
    return y if y.is_floating_point() else torch.zeros_like(p).scatter_(1, y.unsqueeze(1), 1)


WRITTEN = {
    "GRIST/26": Written("y_train", two_classes),
    "GRIST/32": Written("y_train", many_classes_summed, 3),
    "GRIST/33": Written("y_train", two_classes),
    "GRIST/34": Written("y_train", many_classes, 3),
    "GRIST/37": Written("Y", two_classes, is_layer=True),
    "GRIST/38": Written("Y", two_classes, is_layer=True),
    "GRIST/47": Written("y_train", many_classes, 3),
    "GRIST/54": Written("y_T", many_classes, 3),
    "GRIST/56": Written("y_train", two_classes),
}


class BareTensors(nn.Module):
    """A layer whose weight and bias begin as zeros; the bias may be one number for all classes."""

    def __init__(self, shapes: Sequence[torch.Size], activation: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(shape)) for shape in shapes)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x.matmul(self.weight) + self.bias)


def model_of(written: Written, weights: Sequence[Tensor]) -> nn.Module:
    """Return a fresh model; ``weights`` are those that the program begins with, whose shapes it has."""
    activation = nn.Sigmoid() if written.classes == 1 else nn.Softmax(1)
    if written.is_layer:
        return nn.Sequential(nn.Linear(*reversed(weights[0].shape)), activation)
    assert not any(weight.any() for weight in weights)
    return BareTensors([weight.shape for weight in weights], activation)
