"""Change the batches of a training run: scale them, leave out what is broken, cut them into smaller ones."""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.remedies.forward_pass import call_model, copy_batch, evaluating, listen
from gradwatch.remedies.remedy import NotApplicableError, PartlyAppliedWarning
from gradwatch.remedies.rows import Batch, keep_rows, largest_entries, length_of

__all__ = ["Scaling", "clean_batches", "scale_batches", "split_batches"]

LARGE = 3.0  # targets of a mean or deviation beyond this are scaled; probabilities and class weights never are
LABELS = ("label", "labels", "label_ids", "target", "targets", "y")  # names of what is no input in a batch
WILD = 100.0  # a row whose largest entry is so many times that of the median batch is left out


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each feature, or of all entries."""

    mean: Tensor
    deviation: Tensor

    @property
    def is_about_unit(self) -> bool:
        """True if the mean is about 0 and the deviation about 1."""
        return abs(float(self.mean.mean())) < 0.1 and 0.8 < float(self.deviation.mean()) < 1.25

    @property
    def is_large(self) -> bool:
        """True if any mean or deviation is beyond ``LARGE``."""
        return max(float(self.mean.abs().max()), float(self.deviation.max())) > LARGE

    def standardise(self, tensor: Tensor) -> Tensor:
        """Return (tensor − mean) / deviation."""
        return (tensor - self.mean) / self.deviation


@dataclass(frozen=True)
class Scaling:
    """The figures by which batches were scaled, for data that comes later and for the outputs of the trained model.

    Attributes:
        input_moments: None where inputs were left as they are.
        target_moments: None where targets were.
    """

    input_moments: Moments | None = None
    target_moments: Moments | None = None

    def inputs(self, inputs: Any) -> Any:
        """Return inputs as the model was trained on them."""
        features = _features(inputs)
        if self.input_moments is None or features is None:
            return inputs
        return _with_features(inputs, self.input_moments.standardise(features))

    def targets(self, targets: Any) -> Any:
        """Return targets as the model was trained on them."""
        return targets if self.target_moments is None else self.target_moments.standardise(targets)

    def outputs(self, outputs: Any) -> Any:
        """Return the model's outputs in the unit of the original targets."""
        moments = self.target_moments
        return outputs if moments is None else outputs * moments.deviation + moments.mean


def scale_batches(batches: Iterable[Batch], model: nn.Module) -> tuple[list[Batch], Scaling]:
    """Return batches whose inputs have mean 0 and deviation 1, and the figures; targets, too, where they are large.

    ∂²L/∂W₁² ∝ E[x²]: inputs 16 times as large allow 1/256 of the learning rate (LeCun et al. 1998). Features of
    (N, features) are scaled one by one, images and sequences by one figure. Of inputs that are a tuple or list the
    first is scaled, of a mapping the first that holds real numbers and is not called labels. Targets are scaled where
    their mean or deviation is above 3 and the model's outputs have as many entries.

    Args:
        batches: (inputs, targets); those with NaN or Inf do not count for the figures.
        model: is asked for the shape of its outputs, and left as it was.

    Raises:
        NotApplicableError: if there is nothing to scale.

    Examples:
        >>> x = torch.tensor([[0.0], [4.0]])
        >>> batches, scaling = scale_batches([(x, torch.tensor([0, 1]))], torch.nn.Linear(1, 2))
        >>> batches[0][0], scaling.inputs(torch.tensor([[2.0]]))
        (tensor([[-1.],
                [ 1.]]), tensor([[0.]]))
    """
    batches = list(batches)
    given = _moments([_features(inputs) for inputs, _ in batches])
    wanted, reason = _target_moments(batches, model)
    if wanted is None and given is None:
        raise NotApplicableError(f"the inputs are no finite real numbers{reason}")
    if wanted is None and given is not None and given.is_about_unit:
        raise NotApplicableError(f"the inputs have about unit variance already{reason}")
    if wanted is None and reason:
        _warn(f"only the inputs were scaled{reason}")
    scaling = Scaling(given, wanted)
    return [(scaling.inputs(inputs), scaling.targets(targets)) for inputs, targets in batches], scaling


def clean_batches(batches: Iterable[Batch], model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> list[Batch]:
    """Return batches without rows that hold NaN, Inf or wild numbers, and without batches that have no finite loss.

    A number is wild beyond 100 times the largest one of the median batch. The median is over batches, not over rows:
    where most rows are next to zero, those that are not would be wild. A batch whose tensors do not all begin with the
    same number of items is left out as a whole. Batches without a finite loss (all labels ignored: a mean over nothing)
    stay if there are no others.

    Args:
        batches: (inputs, targets).
        model: untrained; it is left as it was.
        loss_fn: (outputs, targets) → scalar.

    Raises:
        NotApplicableError: if nothing is broken, or everything.

    Examples:
        >>> x = torch.tensor([[1.0], [torch.nan], [2.0]])
        >>> clean_batches([(x, torch.tensor([0, 1, 1]))], torch.nn.Linear(1, 2), torch.nn.functional.cross_entropy)
        [(tensor([[1.],
                [2.]]), tensor([0, 1]))]
    """
    batches = list(batches)
    sound = _sound_rows(batches)
    left = [keep_rows(batch, rows) for batch, rows in zip(batches, sound, strict=True)]
    cleaned: list[Batch] = [batch for batch in left if batch is not None]
    if not cleaned:
        raise NotApplicableError("no batch would be left")
    has_loss = _have_finite_loss(cleaned, model, loss_fn)
    if all(rows.all() for rows in sound) and all(has_loss):
        raise NotApplicableError("no batch holds NaN, Inf or wild numbers, and each has a finite loss")
    lost = has_loss.count(False)
    if 2 * lost > len(has_loss):
        _warn(f"{lost} of {len(has_loss)} batches have no finite loss and are left out: is it the loss?")
    return list(itertools.compress(cleaned, has_loss))


def split_batches(batches: Iterable[Batch], parts: int = 4) -> list[Batch]:
    """Return each batch cut into ``parts`` smaller ones, the last of which may be shorter.

    Raises:
        NotApplicableError: if the tensors of a batch do not all begin with the same number of items, ``2 * parts`` at
            least.

    Examples:
        >>> batches = split_batches([(torch.arange(8.0), torch.arange(8))], parts=2)
        >>> [targets.tolist() for _, targets in batches]
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    return [part for batch in batches for part in _parts(batch, parts)]


def _sound_rows(batches: Sequence[Batch]) -> list[Tensor]:
    """Return for each batch which of its rows hold neither NaN nor Inf nor wild numbers."""
    sizes = [largest_entries(batch) for batch in batches]
    finite = [rows[rows.isfinite()] for rows in sizes]
    usual = statistics.median([float(rows.max()) for rows in finite if len(rows)] or [0.0])
    return [rows.isfinite() & (rows <= (WILD * usual or math.inf)) for rows in sizes]


def _have_finite_loss(batches: Sequence[Batch], model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> list[bool]:
    """Return for each batch whether its loss is finite; True for all where none is, since then no batch is at fault."""
    with evaluating(model):
        found = []
        for inputs, targets in map(copy_batch, batches):
            found.append(math.isfinite(loss_fn(call_model(model, inputs), targets)))
    return found if any(found) else [True] * len(found)


def _parts(batch: Batch, parts: int) -> list[Any]:
    length = length_of(batch)
    if length is None or length < 2 * parts:
        raise NotApplicableError(
            f"no batch can be cut: its tensors do not begin with the same {2 * parts} items or more"
        )
    size = -(-length // parts)
    return [_rows_between(batch, start, start + size) for start in range(0, length, size)]


def _rows_between(batch: Batch, start: int, end: int) -> Any:
    return _torch.tree_map(lambda leaf: leaf[start:end], batch)


def _moments(tensors: Sequence[Any], alike: bool = False) -> Moments | None:
    """Return the moments of each feature over all items; of images, sequences or where ``alike``, of all entries.

    None where these are not tensors of real numbers; those that hold NaN or Inf do not count. A feature that hardly
    varies gets the largest deviation, so that it is not blown up.
    """
    finite = _finite_tensors(tensors)
    if not finite or not all(tensor.is_floating_point() and tensor.ndim for tensor in finite):
        return None
    has_features = not alike and {tensor.shape[1:] for tensor in finite} == {finite[0].shape[1:2]}
    rows = torch.cat(finite if has_features else [tensor.flatten() for tensor in finite])
    mean = rows.mean(0)
    deviation = (rows - mean).square().mean(0).sqrt()
    largest = deviation.max().clamp(min=1e-12)
    return Moments(mean, deviation.where(deviation > 1e-3 * largest, largest))


def _features(inputs: Any) -> Tensor | None:
    """Return the tensor among ``inputs`` that is scaled; None if there is none."""
    if inputs is None or isinstance(inputs, Tensor):
        return inputs
    key = _key_of_features(inputs)
    return None if key is None else _features(inputs[key])


def _with_features(inputs: Any, features: Tensor) -> Any:
    """Return ``inputs`` with ``features`` in the place of those that ``_features`` returns."""
    if isinstance(inputs, Tensor):
        return features
    key = _key_of_features(inputs)
    within = _with_features(inputs[key], features)
    if isinstance(inputs, Mapping):
        return {**inputs, key: within}
    parts = (within, *inputs[1:])
    return type(inputs)(parts) if type(inputs) in (tuple, list) else type(inputs)(*parts)  # a named tuple


def _key_of_features(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        numbers = (name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point())
        return next((name for name in numbers if name not in LABELS), None)
    return 0 if isinstance(inputs, (tuple, list)) and len(inputs) else None


def _finite_tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value.detach() for value in values if isinstance(value, Tensor) and value.isfinite().all()]


def _target_moments(batches: Sequence[Batch], model: nn.Module) -> tuple[Moments | None, str]:
    """Return the moments of targets that are large numbers; where they cannot be scaled, the reason instead.

    Outputs of as many entries in another shape, which the loss squeezes, say, take one figure for all.
    """
    targets = [targets for _, targets in batches]
    if not _torch.tree_leaves(targets):
        return None, _reason_of_targets_within(batches[0][0])
    found = _moments(targets)
    if found is None or not found.is_large:
        return None, ""
    output = listen(model, batches[0][0])
    if not isinstance(output, Tensor) or output.numel() != targets[0].numel():
        deviation = float(found.deviation.max())
        return None, f"; targets have a deviation of {deviation:.3g}, but the model's outputs do not have their shape"
    return (found if output.shape == targets[0].shape else _moments(targets, alike=True)), ""


def _reason_of_targets_within(inputs: Any) -> str:
    """Return why large targets that a model is given with its inputs, to compute its own loss, stay as they are."""
    features = _features(inputs)
    others = [leaf for leaf in _torch.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf is not features]
    moments = [found for other in others if (found := _moments([other], alike=True)) is not None and found.is_large]
    if not moments:
        return ""
    deviation = float(moments[0].deviation)
    return f"; targets have a deviation of {deviation:.3g}, but the model is given them to compute the loss itself"


def _warn(text: str) -> None:
    warnings.warn(text, PartlyAppliedWarning, stacklevel=3)
