"""Changes to what is trained on: scaled, cleaned, cut into smaller batches.

Enters: a setup. Leaves: it, changed in place. Held-out batches and the user's loss on them stay what they are: a model
of scaled inputs and targets scales by itself whenever it does not train.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradwatch.prescription.problem import called, is_finite, owned, tensors_of
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.calls import evaluating

__all__ = ["Scaled", "clean", "scale", "split"]

LARGE = 3.0  # targets of a mean or deviation beyond this are scaled; probabilities and class weights never are
WILD = 100.0  # a batch whose largest entry is so many times that of the median batch is left out
SMALLER = 4  # parts that each batch is cut into


class Scaled(nn.Module):
    """Inputs to mean 0 and deviation 1; while it does not train, outputs back to the unit of the targets."""

    def __init__(self, model: nn.Module, given: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.given, self.made = given, made

    def forward(self, x: Tensor) -> Any:
        output = self.model((x - self.given[0]) / self.given[1])
        return output if self.training or self.made is None else output * self.made[1] + self.made[0]


def scale(setup: Setup) -> None:
    """Inputs to mean 0 and deviation 1; targets, too, where they are numbers far from that, of the outputs' shape."""
    inputs = [inputs for inputs, _ in setup.batches if is_finite(inputs)]
    if not inputs or not all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0 for x in inputs):
        raise NotApplicableError("the inputs are not a tensor of real numbers")
    made = _target_scale(setup)
    given = _moments(inputs)
    if made is None and abs(float(given[0].mean())) < 0.1 and 0.8 < float(given[1].mean()) < 1.25:
        raise NotApplicableError("inputs and targets have about unit variance already")
    if made is not None:
        mean, deviation = made
        setup.targets_of = lambda targets: (targets - mean) / deviation
    was_training = setup.model.training
    setup.model = Scaled(setup.model, given, made)
    setup.model.training = was_training


def clean(setup: Setup) -> None:
    """Batches that hold NaN, Inf or wild numbers are left out."""
    finite = [batch for batch in setup.batches if is_finite(batch)]
    sizes = [
        max((float(tensor.abs().max()) for tensor in tensors_of(batch) if tensor.numel()), default=0.0)
        for batch in finite
    ]
    usual = statistics.median(sizes) if sizes else 0.0
    kept = [batch for batch, size in zip(finite, sizes, strict=True) if usual == 0 or size <= WILD * usual]
    if not kept or len(kept) == len(setup.batches):
        raise NotApplicableError("no batch holds NaN, Inf or wild numbers" if kept else "no batch would be left")
    setup.batches = kept


def split(setup: Setup) -> None:
    """Each batch becomes ``SMALLER`` ones."""
    setup.batches = [part for batch in setup.batches for part in _parts(batch)]


def _parts(batch: Any) -> list[Any]:
    lengths = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in tree_leaves(batch)}
    length = next(iter(lengths)) if len(lengths) == 1 else None
    if length is None or length < 2 * SMALLER:
        raise NotApplicableError(f"not all tensors of a batch begin with the same {2 * SMALLER} items or more")
    size = -(-length // SMALLER)
    return [_between(batch, start, start + size) for start in range(0, length, size)]


def _between(batch: Any, start: int, end: int) -> Any:
    return tree_map(lambda leaf: leaf[start:end], batch)


def _moments(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of each feature over all items; of images, for all pixels alike."""
    rows = torch.cat([tensor.detach() for tensor in tensors if tensor.ndim])
    over = 0 if rows.ndim == 2 else tuple(range(rows.ndim))
    mean = rows.mean(over)
    deviation = (rows - mean).square().mean(over).sqrt()
    return mean, deviation.where(deviation > 1e-3 * deviation.max().clamp(min=1e-12), deviation.max().clamp(min=1e-12))


def _target_scale(setup: Setup) -> tuple[Tensor, Tensor] | None:
    targets = [targets for _, targets in setup.batches if is_finite(targets)]
    if not targets or not all(isinstance(y, Tensor) and y.is_floating_point() and y.ndim > 0 for y in targets):
        return None
    inputs, first = setup.batches[0]
    with evaluating(setup.model):
        output = called(setup.model, owned(inputs))
    if not isinstance(output, Tensor) or output.shape != first.shape:
        return None
    mean, deviation = _moments(targets)
    return (mean, deviation) if max(float(mean.abs().max()), float(deviation.max())) > LARGE else None
