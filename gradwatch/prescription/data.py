"""Changes to what is trained on: scaled, cleaned, cut into smaller batches.

Enters: a setup. Leaves: it, changed in place. Held-out batches and the user's loss on them stay what they are: outputs
of a model that is trained on scaled targets are brought back to their unit.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from typing import Any

import torch
from torch import Tensor

from gradwatch import _torch
from gradwatch.prescription.rows import kept, largest_entries, length_of
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.calls import evaluating, looked_at
from gradwatch.prescription.training import forward

__all__ = ["clean", "scale", "split"]

LARGE = 3.0  # targets of a mean or deviation beyond this are scaled; probabilities and class weights never are
WILD = 100.0  # a row whose largest entry is so many times that of the median batch is left out
SMALLER = 4  # parts that each batch is cut into


def scale(setup: Setup) -> None:
    """Inputs to mean 0 and deviation 1; targets, too, where they are numbers far from that."""
    given = _moments([inputs for inputs, _ in setup.batches])
    made, why = _target_scale(setup)
    if made is None and given is None:
        raise NotApplicableError(f"the inputs are not a tensor of finite real numbers{why}")
    if made is None and given is not None and _is_about_unit(*given):
        raise NotApplicableError(f"the inputs have about unit variance already{why}")
    if given is not None:
        setup.inputs_of = functools.partial(_scaled, by=given)
    if made is None and why:
        setup.not_done.append(f"only the inputs were scaled{why}")
    if made is not None:
        mean, deviation = made
        setup.targets_of = functools.partial(_scaled, by=made)
        setup.outputs_of = lambda outputs: outputs * deviation + mean


def clean(setup: Setup) -> None:
    """Rows that hold NaN, Inf or wild numbers are left out; whole batches where rows cannot be told.

    Then batches of which the untrained model has no finite loss, where it has one of others: of labels that are all
    ignored the mean is one over nothing. What is usual is the median over batches, not over rows: where most rows are
    next to zero, those that are not would be wild.
    """
    sizes = [largest_entries(batch) for batch in setup.batches]
    finite = [rows[rows.isfinite()] for rows in sizes]
    usual = statistics.median([float(rows.max()) for rows in finite if len(rows)] or [0.0])
    sound = [rows.isfinite() & (rows <= (WILD * usual or math.inf)) for rows in sizes]
    left = [kept(batch, rows) for batch, rows in zip(setup.batches, sound, strict=True)]
    setup.batches = [batch for batch in left if batch is not None]
    if not setup.batches:
        raise NotApplicableError("no batch would be left")
    has_loss = _have_finite_loss(setup)
    if all(rows.all() for rows in sound) and all(has_loss):
        raise NotApplicableError("no batch holds NaN, Inf or wild numbers, and each has a finite loss")
    lost = has_loss.count(False)
    if 2 * lost > len(has_loss):
        setup.not_done.append(
            f"{lost} of {len(has_loss)} batches have no finite loss and are left out: is it the loss?"
        )
    setup.batches = list(itertools.compress(setup.batches, has_loss))


def _have_finite_loss(setup: Setup) -> list[bool]:
    """For each batch; all, where none has: then it is no fault of a batch."""
    with evaluating(setup.model):
        found = [math.isfinite(forward(setup, number)[1]) for number in range(len(setup.batches))]
    return found if any(found) else [True] * len(found)


def split(setup: Setup) -> None:
    """Each batch becomes ``SMALLER`` ones."""
    setup.batches = [part for batch in setup.batches for part in _parts(batch)]


def _parts(batch: Any) -> list[Any]:
    length = length_of(batch)
    if length is None or length < 2 * SMALLER:
        raise NotApplicableError(
            f"no batch can be cut: its tensors do not begin with the same {2 * SMALLER} items or more"
        )
    size = -(-length // SMALLER)
    return [_between(batch, start, start + size) for start in range(0, length, size)]


def _between(batch: Any, start: int, end: int) -> Any:
    return _torch.tree_map(lambda leaf: leaf[start:end], batch)


def _moments(batches: list[Any], alike: bool = False) -> tuple[Tensor, Tensor] | None:
    """(mean, deviation) of each feature over all items; of images, sequences or where ``alike``, of all entries.

    None where these are not tensors of real numbers; what holds NaN or Inf does not count.
    """
    tensors = [tensor.detach() for tensor in batches if isinstance(tensor, Tensor) and tensor.isfinite().all()]
    if not tensors or not all(tensor.is_floating_point() and tensor.ndim for tensor in tensors):
        return None
    has_features = not alike and {tensor.shape[1:] for tensor in tensors} == {tensors[0].shape[1:2]}
    rows = torch.cat(tensors if has_features else [tensor.flatten() for tensor in tensors])
    mean = rows.mean(0)
    deviation = (rows - mean).square().mean(0).sqrt()
    return mean, deviation.where(deviation > 1e-3 * deviation.max().clamp(min=1e-12), deviation.max().clamp(min=1e-12))


def _scaled(tensor: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    return (tensor - by[0]) / by[1]


def _is_about_unit(mean: Tensor, deviation: Tensor) -> bool:
    return abs(float(mean.mean())) < 0.1 and 0.8 < float(deviation.mean()) < 1.25


def _target_scale(setup: Setup) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """Moments of targets that are large numbers; where they cannot be scaled, why not, to be said behind a reason.

    Outputs of as many entries in another shape, which the loss squeezes, say, take one scale for all.
    """
    targets = [targets for _, targets in setup.batches]
    found = _moments(targets)
    if found is None or max(float(found[0].abs().max()), float(found[1].max())) <= LARGE:
        return None, ""
    output = looked_at(setup.model, setup.batches[0][0])
    if not isinstance(output, Tensor) or output.numel() != targets[0].numel():
        deviation = float(found[1].max())
        return None, f"; targets have a deviation of {deviation:.3g}, but the model's outputs do not have their shape"
    return (found if output.shape == targets[0].shape else _moments(targets, alike=True)), ""
