"""Define the report of one step: figures on the host, as numpy rows with a column per layer.

Detectors judge reports, and sinks write them. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradwatch.findings import Clue
from gradwatch.fork_safety import lazy_property

__all__ = [
    "ACTIVATION_FIGURES",
    "LAYER_FIGURES",
    "SILENT_SAMPLES",
    "Floats",
    "LayerFigure",
    "Operation",
    "Origin",
    "Ownership",
    "StepReport",
    "Where",
]

Floats = NDArray[np.floating]
Where = Literal["forward", "backward", "between", "input", "loss", "update"]
Operation = Literal[
    "logarithm",
    "root",
    "division",
    "softmax",
    "exponential",
    "power",
    "arc",
    "decomposition",
    "overflow",
    "overflow of float16",
]

SILENT_SAMPLES = 5  # a unit is dead once it has passed no gradient in so many sampled forward passes in a row
ActivationFigure = Literal["activation_rms", "dead_share", "saturated_share", "saturated_output_share"]
LayerFigure = Literal[
    "grad_max",
    "grad_mean",
    "grad_std",
    "grad_zero_fraction",
    "weight_norm",
    "weight_mean",
    "weight_std",
    "update_ratio",
    ActivationFigure,
]
ACTIVATION_FIGURES: tuple[ActivationFigure, ...] = get_args(ActivationFigure)
LAYER_FIGURES: tuple[LayerFigure, ...] = get_args(LayerFigure)
"""Per-layer figures beyond ``grad_norm``.

They are measured at sampled and logged steps only, those of activations at sampled steps only:

- ``activation_rms``: root mean square of what the layer's module returned.
- ``dead_share``: share of the layer's units that passed no gradient through the activation function after the layer,
  for ``SILENT_SAMPLES`` samples in a row.
- ``saturated_share``: share of entries at which the activation function after the layer is flat.
- ``saturated_output_share``: the same for gates (their result is a factor) and for the last function of the model.

A sampled step whose loss is an error between targets and a function of bounded range has figures beside these, for the
layer before that function (``gradwatch.measure.target_reach``), which detectors read and nobody logs: ``target_floor``,
``target_error``, ``target_size``, ``target_low``, ``target_high``, ``output_low`` and ``output_high``. So is
``softmax_of_one``, 1 for a layer of one unit after which a softmax goes over units, and ``shut_samples``, the number of
samples in a row in which not one unit after the layer passed a gradient. ``silent_scale`` is there for layers whose
rectifier makes a scale of the loss, which divides something and whose logarithm is taken: 1 if not one unit passed any.
``shut_ahead`` is there where the loss is computed by layers of another optimizer, or of none, after the layer: the
share of entries at which the functions between them and the loss are flat. ``shut_after`` is the column of the last of
those layers.
"""


@dataclass(frozen=True)
class Origin:
    """The place where a NaN or Inf came from.

    Attributes:
        module: dotted name, ``""`` for the model itself; else the one next to it.
        where: ``"forward"`` or ``"backward"`` through that module, ``"input"`` of the batch, or outside all modules:
            ``"between"`` two calls of them, or the ``"loss"``; ``"update"`` where an optimizer made it.
        words: a sentence.
        evidence: ``"observed"`` in that step's own forward and backward pass, or ``"inferred"`` from which gradients
            are finite.
        operations: which family of operations made it, where that is known; several, where any of them may have.
        operation: the name of the one that made it, where that is known and it belongs to no family.
        clues: what else remedies depend on.
        is_told: the finding of another optimizer tells of it already.
        is_own: this process made it; False where another rank may have, since gradients are means over the ranks.
    """

    module: str
    where: Where
    words: str
    evidence: Literal["observed", "inferred"] = "observed"
    operations: tuple[Operation, ...] = ()
    operation: str = ""
    clues: tuple[Clue, ...] = ()
    is_told: bool = False
    is_own: bool = True


@dataclass(frozen=True)
class Ownership:
    """The answer to "who updates what?" at one update of one optimizer.

    Attributes:
        held: (P,) bool, the layers that this optimizer holds.
        frozen: (P,) bool, those whose ``requires_grad`` is False.
        unowned: (P,) bool, those with a gradient that no optimizer holds and that have not moved since the last look.
        replaced: (P,) bool, those by whose name the model holds another tensor than when watching began.
        strangers: how many tensors this optimizer holds that are no parameters of the model and have no gradient.
        others: how many other optimizers are watched.
        cut_off: columns of its layers that have no gradient, though what they compute came back to the loss without a
            graph.
        left_out: columns of its layers that have no gradient, though a loss was computed from them.
        unowned_are_new: whether the unowned weights are as torch makes those of new layers; False before update 90.
    """

    held: NDArray[np.bool_]
    frozen: NDArray[np.bool_]
    unowned: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    strangers: int
    others: int
    cut_off: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    unowned_are_new: bool = False


@dataclass(frozen=True)
class StepReport:
    """One attempted update of one optimizer, over P watched layers in the model's order.

    The arrays are the report's own, or read-only: a kept report does not change.

    Attributes:
        step: attempted updates so far, over all watched optimizers, counted from 0.
        optimizer: index of the optimizer that stepped.
        update: that optimizer's own updates so far, counted from 0.
        layers: P parameter names, in order of registration.
        depth: (P,) int64, place of each from input to output, as far as it was known at this step.
        size: (P,) int64, entries of each.
        measured: (P,) bool, where the layer had a gradient at this step.
        grad_norm: (P,) float64, L2 norm before clipping, in the gradient's own unit; NaN where not measured.
        nonfinite: (P,) int64, how many entries are NaN or Inf.
        grad_norm_total: L2 norm over all measured gradients, before clipping.
        grad_norm_clipped_total: the same after clipping; equal where nothing was clipped.
        loss: mean of the losses observed for this step, None where none was.
        skipped: no update was made from this step.
        overflowed: skipped by a gradient scaler, which then lowers its loss scale.
        already_clipped: the loop changed the gradients before they were measured, so every figure is one after that.
        clipped_by_loop: the loop made the gradients smaller, and ``grad_norm`` is what they were before.
        sampled: the figures below may be judged by detectors (they are measured at logged steps, too).
        figures: (P,) float64 for each name of ``LAYER_FIGURES`` measured at this step; NaN where not measured.
        weight_nonfinite: (P,) int64, NaN or Inf among the weights before the update; counted only where a gradient
            was not finite, else None.
        learning_rate: the largest of the optimizer's groups, None where it has none.
        learning_rates: that of each group; empty where it has none.
        origin: where a NaN or Inf of this step came from.
        uncleared: updates in a row, this one included, whose gradients still held those of the update before.
        emptied: updates in a row before which, after their backward pass, gradients were cleared or changed.
        misplaced_clips: updates in a row, this one included, that the loop has clipped at the wrong time only.
        clips_late: that time was after ``step()``; otherwise before ``backward()``.
        clipped_at_scale: the loss scale that was in the gradients when the loop changed them; None where it was not, or
            did not.
        ownership: who updates what; looked up at a few updates of a run, else None.
        entries: ``"grad"`` and ``"weight"`` to (P,) lists of at most 4,096 evenly spaced entries, for histograms.
    """

    step: int
    optimizer: int
    update: int
    layers: tuple[str, ...]
    depth: NDArray[np.int64]
    size: NDArray[np.int64]
    measured: NDArray[np.bool_]
    grad_norm: Floats
    nonfinite: NDArray[np.int64]
    grad_norm_total: float
    grad_norm_clipped_total: float
    loss: float | None = None
    skipped: bool = False
    overflowed: bool = False
    already_clipped: bool = False
    clipped_by_loop: bool = False
    sampled: bool = False
    figures: Mapping[str, Floats] = field(default_factory=dict)
    weight_nonfinite: NDArray[np.int64] | None = None
    learning_rate: float | None = None
    learning_rates: tuple[float, ...] = ()
    origin: Origin | None = None
    uncleared: int = 0
    emptied: int = 0
    misplaced_clips: int = 0
    clips_late: bool = False
    clipped_at_scale: float | None = None
    ownership: Ownership | None = None
    entries: Mapping[str, list[Floats | None]] = field(default_factory=dict)

    @lazy_property
    def gradients_are_finite(self) -> bool:
        """Return True if every entry of every gradient is finite."""
        return not self.nonfinite.any()

    @property
    def is_finite(self) -> bool:
        """Return True if every gradient and the loss are finite."""
        return self.gradients_are_finite and (self.loss is None or math.isfinite(self.loss))
