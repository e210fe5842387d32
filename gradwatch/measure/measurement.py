"""Measure one attempted update, from the gradients on the device to the report on the host.

The walk of a step: ``Measurement`` reduces all gradients to vectors (``statistics.measure``); undoes the loop's own
clipping in the figures (``statistics.undo_change``); at sampled and logged steps takes figures of single layers
(``layer_figures``) and a sample of the weights (``samples``). Clipping uses the same vectors. Once the update is made,
``HostCopy`` brings all vectors to the host at once, and ``report`` spreads them over the columns of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from gradwatch.fork_safety import lazy_property
from gradwatch.measure import statistics
from gradwatch.measure.backward import EndMagnitudes
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.host_copy import HostCopy
from gradwatch.measure.layer_figures import (
    ENTRY_FIGURES,
    LayerValues,
    WatchedGradients,
    entry_figures,
    factors_left,
    histogram_entries,
    weight_figures,
)
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, Ownership, StepReport
from gradwatch.measure.samples import WeightSample, sample_means, sample_weights, update_ratios
from gradwatch.measure.whole import (
    gradient_rows,
    layer_figures,
    layer_rows,
    update_ratios_of,
    update_rows,
    whole_magnitudes,
)
from gradwatch.ranks.group import has_process_group
from gradwatch.ranks.reduction import Sums

__all__ = ["Measurement", "StepPlan"]

_Clip = Callable[[Sequence[Tensor], statistics.Magnitudes, Sequence[Tensor], Optimizer | None], Tensor]

_SAME_TOTAL = 1e-6
"""Relative difference of two totals of the same gradients: some loops clip by infinity, to log the norm."""


@dataclass(frozen=True)
class StepPlan:
    """The number of a step, and what to measure at it.

    Attributes:
        step, optimizer, update, sampled: as in ``StepReport``.
        figures: names of ``gradwatch.measure.report.LAYER_FIGURES`` to measure.
        entries: whether to take entries for histograms.
        has_scaler: a gradient scaler skips the update by itself where a gradient is not finite.
        already_clipped, uncleared, emptied, misplaced_clips, clips_late, learning_rates: as in ``StepReport``.
        was_changed_while_scaled: the loop changed the gradients while a loss scale was in them.
        was_changed_by_hand: the loop made the gradients without a backward pass, and changed them in place.
    """

    step: int
    optimizer: int
    update: int
    sampled: bool
    figures: frozenset[str]
    entries: bool
    has_scaler: bool = False
    already_clipped: bool = False
    uncleared: int = 0
    emptied: int = 0
    misplaced_clips: int = 0
    clips_late: bool = False
    was_changed_while_scaled: bool = False
    was_changed_by_hand: bool = False
    learning_rates: tuple[float, ...] = ()

    @property
    def learning_rate(self) -> float | None:
        """The largest of ``learning_rates``; None where there is none."""
        return max(self.learning_rates, default=None)


@dataclass(frozen=True)
class _HostFigures:
    """The contents of one copy to the host: vectors over the n gradients, and ``figures`` over the w watched ones.

    ``left`` is the total norm that the loop's own clipping has left; None where it changed nothing.
    ``skipped`` is what the device has decided. ``present`` is empty where this rank alone knows which layers have a
    gradient.
    """

    l2: Floats
    nonfinite: Floats
    total: float
    clipped_total: float
    loss: float | None
    scale: float | None
    left: float | None
    figures: Mapping[str, Floats]
    present: Floats
    skipped: bool


class Measurement:
    """One attempted update under way: norms and total when constructed, reported when the update is made.

    The methods are called in this order, the first four where they apply: ``measure_figures``, ``add_activations``,
    ``clip_`` or ``mark_skipped``, ``follow_update``, ``send``, ``report``.

    Args:
        plan: which step, and what to measure.
        layers: the table.
        columns: of n parameters that have a gradient, watched or not (all count in the total).
        gradients: n tensors.
        losses: observed for this step: 0-dim tensors or numbers.
        scale: () a loss scale that the gradients still hold; None where they hold none.
        at_end: magnitudes from the end of the backward pass, where the loop has changed the gradients since.
        scale_at_end: () a loss scale that the gradients held then.
        is_part: the gradients are those parts that this rank holds. The figures are then its own until ``take_sums``
            is given those of all ranks together; gradients that it lacks are empty.

    Attributes:
        plan, is_part: as given.
        has_mean_loss: whether the loss is the mean over all ranks, and not that of this one.
    """

    def __init__(
        self,
        plan: StepPlan,
        layers: Layers,
        columns: GradientColumns,
        gradients: Sequence[Tensor],
        losses: Sequence[Tensor | float],
        scale: Tensor | None = None,
        at_end: EndMagnitudes | None = None,
        scale_at_end: Tensor | None = None,
        *,
        is_part: bool = False,
    ) -> None:
        self.plan, self.is_part, self.has_mean_loss = plan, is_part, False
        self._layers, self._columns, self._gradients = layers, columns, gradients
        self._now = statistics.measure(gradients, scale)
        self._at_end = None if at_end is None else at_end.without(scale_at_end)
        self._positions = None if at_end is None else _positions(at_end, columns, self._now.l2.device)
        self.magnitudes = self._now if is_part else self._before_change(self._now, self._at_end)
        self.device = self.magnitudes.l2.device
        self._scale_at_change = scale_at_end if plan.was_changed_while_scaled else None
        self._loss = _mean(losses, self.device)
        self._clipped_total = self._now.total
        self._is_skipped = False
        self._skip_flag: Tensor | None = None
        self._is_sampled = plan.sampled
        self._weight_nonfinite: NDArray[np.int64] | None = None
        self._figures: dict[str, Tensor] = {}
        self._activations: dict[str, LayerValues] = {}
        self._entries: dict[str, list[Floats | None]] = {}
        self._weights_before: WeightSample | None = None
        self._layer_rows: tuple[Tensor, Tensor] | None = None
        self._present: Tensor | None = None  # (n,) whether any rank has a gradient, where this one may have none
        self._ownership: Ownership | None = None
        self._copy: HostCopy | None = None

    def measure_figures(self, earlier: Measurement | None = None) -> None:
        """Measure what the plan asks for beyond norms and total.

        Args:
            earlier: the measurement before, in a loop without an optimizer. Nobody says there when an update is made,
                so how far it moved the weights is seen one step later, and is part of this report.
        """
        plan, columns = self.plan, self._columns
        self._weight_nonfinite = self._count_corrupt_weights()
        if plan.entries:
            self._entries = self._take_histogram_entries()
        if "update_ratio" in plan.figures:
            places = columns.part_places if self.is_part else None
            gradients = columns.select(self._gradients)
            self._weights_before = sample_weights(columns.watched, gradients, columns.sample_segments, places)
        if self.is_part:
            self._layer_rows = self._measure_parts()
        elif plan.figures:
            self._figures = self._measure_layers()
        if earlier is not None and earlier._columns is columns:
            self._take_earlier(earlier)

    def _take_earlier(self, earlier: Measurement) -> None:
        """Report how far the update before moved the weights; of parts that is not known, since nobody exchanged it."""
        if not self.is_part:
            self._figures |= earlier._update_ratios()
            self._is_sampled = self._is_sampled or earlier.plan.sampled

    def rows(self) -> Tensor:
        """Return (``GRADIENT_ROWS``, n) figures of this rank's parts, to be added up over all ranks."""
        return gradient_rows(self._now, self._at_end, self._positions)

    def take_sums(self, sums: Sums, loss: Tensor | float | None) -> None:
        """Take what all ranks have together, in place of what this rank has.

        Args:
            sums: of ``rows``, over all ranks.
            loss: the mean of the losses of all ranks.
        """
        squares, nonfinite, end_squares, end_nonfinite, *_ = sums.rows
        now, at_end = self._now, self._at_end
        self._now = whole_magnitudes(squares, nonfinite, now)
        self._clipped_total = self._now.total
        if at_end is not None and self._positions is not None:
            known = (self._positions >= 0) | (end_squares > 0)
            at_end = whole_magnitudes(end_squares, end_nonfinite, now)
            self._positions = torch.arange(len(known), device=known.device).where(known, -1)
        self.magnitudes = self._before_change(self._now, at_end)
        self._present = sums.holders > 0
        self.take_loss(loss)

    def own_totals(self) -> Tensor:
        """Return (4,) float64: squares and NaN or Inf entries of all gradients here, now and as reported."""
        found = [(each.total.double().square(), each.nonfinite.sum().double()) for each in (self._now, self.magnitudes)]
        return torch.stack([number for pair in found for number in pair])

    def take_total(self, totals: Tensor) -> None:
        """Take the total norms from (4,) ``own_totals`` of all ranks, which have other layers than this one."""
        now, reported = self._now, self.magnitudes
        self._now = replace(now, total=totals[0].sqrt().to(now.total), of_whole=True)
        self.magnitudes = replace(reported, total=totals[2].sqrt().to(reported.total), of_whole=True)
        self._clipped_total = self._now.total

    def take_loss(self, loss: Tensor | float | None) -> None:
        """Take the mean of the losses of all ranks, in place of this rank's."""
        self._loss, self.has_mean_loss = loss, True

    def layer_rows(self) -> tuple[Tensor, Tensor] | None:
        """Return (``LAYER_ROWS``, n) to be added up over all ranks, and (n,) of which the largest is wanted."""
        if self._layer_rows is None:
            return None
        rows, largest = self._layer_rows
        return self._spread(rows), self._spread(largest)

    def take_layer_sums(self, sums: Sums, largest: Tensor) -> None:
        """Take the figures of single layers, from what all ranks have together."""
        positions = self._own_positions()
        figures, corrupt = layer_figures(sums.rows[:, positions], largest[positions], self.magnitudes.l2[positions])
        if self._weight_nonfinite is not None:
            self._weight_nonfinite = self._columns.place(corrupt.numpy(force=True), absent=0).astype(np.int64)
        self._figures |= {name: values for name, values in figures.items() if name in self.plan.figures}

    def update_rows(self) -> Tensor | None:
        """Return (``UPDATE_ROWS``, n) of how far the update moved this rank's parts, once; None if nobody asked."""
        before, self._weights_before = self._weights_before, None
        return None if before is None else self._spread(update_rows(before))

    @property
    def is_of_all_ranks(self) -> bool:
        """Return whether the figures are those of all ranks together."""
        return self._present is not None

    def take_update_sums(self, rows: Tensor) -> None:
        """Take (``UPDATE_ROWS``, n), how far the update moved the weights, from what all ranks have together."""
        self._figures["update_ratio"] = update_ratios_of(rows[:, self._own_positions()])

    def update_ratios(self) -> Floats:
        """Return (P,) how far the update moved the weights; NaN where that is not known. Waits for the device."""
        ratios = self._figures.get("update_ratio")
        if ratios is None:
            return np.full(len(self._layers), np.nan)
        return self._columns.place(ratios.numpy(force=True))

    @lazy_property
    def is_finite(self) -> bool:
        """Return True if every gradient entry and the loss are finite. Waits for the device."""
        if self.loss is not None and not math.isfinite(self.loss):
            return False
        return self.gradients_are_finite

    @property
    def gradients_are_finite(self) -> bool:
        """Return True if every gradient entry is finite. Waits for the device."""
        # the norm may have overflowed, of entries that did not
        return math.isfinite(float(self.magnitudes.total)) or not bool(self.magnitudes.nonfinite.any())

    @property
    def is_overflow(self) -> bool:
        """Return True if a loss scale may explain what is not finite. Waits for the device."""
        return self.plan.has_scaler and (self.loss is None or math.isfinite(self.loss))

    @property
    def loss_on_device(self) -> Tensor | float | None:
        """The loss of the step, a () tensor off the CPU."""
        return self._loss

    @lazy_property
    def loss(self) -> float | None:
        """The loss of the step. Waits for the device."""
        return None if self._loss is None else float(self._loss)

    def sick_layers(self) -> list[str]:
        """Return the names of the layers whose gradients hold NaN or Inf. Waits for the device."""
        nonfinite = self._columns.spread(self.magnitudes.nonfinite.numpy(force=True), absent=0)
        return [self._layers.names[column] for column in np.flatnonzero(nonfinite)]

    def gradient_norms(self) -> Floats:
        """Return (P,) the L2 norms of the layers' gradients; NaN where a layer has none. Waits for the device."""
        return self._columns.spread(self.magnitudes.l2.numpy(force=True))

    @property
    def watched_columns(self) -> list[int]:
        """The columns of the watched layers that have a gradient."""
        return self._columns.watched_columns

    @property
    def is_skipped(self) -> bool:
        """Return True if no update was made from this step, as far as it was decided here."""
        return self._is_skipped

    def add_activations(self, figures: Mapping[str, LayerValues]) -> None:
        """Add {name: figure} of the step's forward pass."""
        self._activations |= figures

    def clip_(self, clip_: _Clip, optimizer: Optimizer | None) -> None:
        """Clip the gradients in place by ``clip_``, as ``gradwatch.clip.Policy`` defines it."""
        magnitudes = statistics.without_overflow(self._gradients, self._now)
        self._clipped_total = clip_(self._gradients, magnitudes, self._columns.parameters, optimizer)

    def true_total(self) -> Tensor:
        """Return the () total norm before clipping, also where the squares of finite entries have overflowed."""
        return statistics.without_overflow(self._gradients, self.magnitudes).total

    def forget_clipped_total(self) -> None:
        """Report the total norm after clipping as NaN: something else clips."""
        self._clipped_total = torch.full_like(self._clipped_total, torch.nan)

    def take_clipped_total(self, total: Tensor) -> None:
        """Take the () total norm after clipping, from what all ranks have together."""
        self._clipped_total = total

    def totals(self) -> tuple[Tensor, Tensor]:
        """Return the () total norms before and after clipping, on the device."""
        return self.magnitudes.total, self._clipped_total

    def mark_skipped(self) -> None:
        """Note that no update is made from this step."""
        self._is_skipped = True

    def mark_skipped_if(self, flag: Tensor) -> None:
        """Report that no update was made from this step if the () ``flag`` on the device is 1."""
        self._skip_flag = flag

    def add_ownership(self, ownership: Ownership) -> None:
        """Add who updates what, where it was looked up for this step."""
        self._ownership = ownership

    def follow_update(self) -> None:
        """Measure how far the update, which has just been made, moved the weights."""
        self._figures |= self._update_ratios()

    def made_nonfinite(self) -> bool:
        """Return True if the update made NaN or Inf of sampled weights, as far as it was followed; on the CPU alone."""
        if self.device.type != "cpu" or "update_ratio" not in self._figures:
            return False
        norms = self._figures["weight_norm"].numpy() if "weight_norm" in self._figures else 1.0
        ratios = self._figures["update_ratio"].numpy()
        return bool(np.any(np.isinf(ratios) | (np.isnan(ratios) & (norms > 0))))  # a share of nothing is NaN, too

    def send(self) -> None:
        """Start the copy to the host, once. Without ``follow_update`` before it the update ratio is left out."""
        if self._copy is None and self.device.type != "cpu":
            self._copy = HostCopy([*self._vectors().values()], self.device)
        self._gradients = []  # held no longer than needed

    def outline(self) -> tuple[float, float | None]:
        """Return (total norm, loss) on the host. Waits for the copy."""
        if self.device.type == "cpu":
            return float(self.magnitudes.total), self.loss
        arrived = self._read()
        return arrived.total, arrived.loss

    def report(self) -> StepReport:
        """Return the step on the host. Waits for the copy."""
        arrived = self._read()
        plan, columns = self.plan, self._columns
        is_overflow = plan.has_scaler and bool(arrived.nonfinite.any())
        l2, measured = arrived.l2, columns.measured
        if self._present is not None:
            l2 = np.where(arrived.present > 0, l2, np.nan)
            measured = columns.spread(arrived.present, absent=0) > 0
        return StepReport(
            step=plan.step,
            optimizer=plan.optimizer,
            update=plan.update,
            layers=self._layers.names,
            depth=self._layers.depth,
            size=self._layers.size,
            measured=measured,
            grad_norm=columns.spread(l2),
            nonfinite=columns.spread(arrived.nonfinite, absent=0).astype(np.int64),
            grad_norm_total=arrived.total,
            grad_norm_clipped_total=arrived.clipped_total,
            loss=arrived.loss,
            skipped=self._is_skipped or is_overflow or arrived.skipped,
            overflowed=is_overflow,
            already_clipped=plan.already_clipped,
            clipped_by_loop=arrived.left is not None and arrived.left < arrived.total * (1 - _SAME_TOTAL),
            uncleared=plan.uncleared,
            emptied=plan.emptied,
            misplaced_clips=plan.misplaced_clips,
            clips_late=plan.clips_late,
            clipped_at_scale=arrived.scale,
            sampled=self._is_sampled,
            figures=self._placed(arrived.figures),
            weight_nonfinite=self._weight_nonfinite,
            learning_rate=plan.learning_rate,
            learning_rates=plan.learning_rates,
            ownership=self._ownership,
            entries=self._entries,
        )

    def _placed(self, arrived: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return {name: (P,)} the figures of single layers."""
        columns, size = self._columns, len(self._layers)
        activations = {
            name: figure.placed(arrived.get(name), columns.watched_columns, size)
            for name, figure in self._activations.items()
        }
        placed = {name: columns.place(arrived[name]) for name in self._figures}
        return placed | {name: values for name, values in activations.items() if values is not None}

    def _measure_layers(self) -> dict[str, Tensor]:
        """Return the planned figures of single layers that are known before the update, each (w,)."""
        wanted = self.plan.figures
        figures = entry_figures(self._watched_gradients(), wanted) if wanted & ENTRY_FIGURES else {}
        if "weight_mean" in wanted and self._weights_before is not None:
            figures["weight_mean"] = sample_means(self._weights_before)
        return figures | weight_figures(self._columns.watched, wanted)

    def _measure_parts(self) -> tuple[Tensor, Tensor] | None:
        """Return what this rank's parts add to the figures of single layers, see ``layer_rows``; None if unplanned."""
        if not self.plan.figures and self._weight_nonfinite is None:
            return None
        watched = self._watched_gradients()
        corrupt = None if self._weight_nonfinite is None else self._weight_nonfinite[self._columns.watched_columns]
        return layer_rows(watched.gradients, watched.factors, self._columns.watched, self._weights_before, corrupt)

    def _take_histogram_entries(self) -> dict[str, list[Floats | None]]:
        watched, place = self._watched_gradients(), self._columns.list_of
        return {
            "grad": place(histogram_entries(watched.gradients, watched.factors)),
            "weight": place(histogram_entries(self._columns.watched)),
        }

    def _watched_gradients(self) -> WatchedGradients:
        positions = self._own_positions()
        return WatchedGradients(
            self._columns.select(self._gradients),
            self.magnitudes.l2[positions],
            factors_left(self._now, self.magnitudes)[positions],
        )

    def _own_positions(self) -> Tensor:
        """Return (w,) which of the n are watched, on the device."""
        return torch.from_numpy(self._columns.positions).to(self.device, non_blocking=True)

    def _spread(self, rows: Tensor) -> Tensor:
        """Return (…, n) from (…, w), with zeros for what is not watched."""
        spread = rows.new_zeros(*rows.shape[:-1], len(self._columns.columns))
        spread[..., self._own_positions()] = rows
        return spread

    def _before_change(self, now: statistics.Magnitudes, at_end: statistics.Magnitudes | None) -> statistics.Magnitudes:
        """Return the magnitudes that the gradients had before the loop changed them; ``now`` where it did not."""
        if at_end is None or self._positions is None:
            return now
        return statistics.undo_change(now, at_end, self._positions, only_of_all=has_process_group())

    def _count_corrupt_weights(self) -> NDArray[np.int64] | None:
        """Return (P,) NaN and Inf entries of the weights; None where every gradient is finite, and off the CPU."""
        magnitudes = self.magnitudes
        if self.device.type != "cpu" or math.isfinite(float(magnitudes.total)) or not magnitudes.nonfinite.any():
            return None
        counts = statistics.count_nonfinite(self._columns.watched).numpy()
        return self._columns.place(counts, absent=0).astype(np.int64)

    def _update_ratios(self) -> dict[str, Tensor]:
        """Return the update ratio of this step, once, if it was planned."""
        before, self._weights_before = self._weights_before, None
        return {} if before is None else {"update_ratio": update_ratios(before)}

    def _vectors(self) -> dict[str, Tensor]:
        """Return everything to copy to the host."""
        vectors = {"l2": self.magnitudes.l2}
        if isinstance(self._loss, Tensor):
            vectors["loss"] = self._loss
        vectors |= {
            "nonfinite": self.magnitudes.nonfinite,
            "total": self.magnitudes.total,
            "clipped_total": self._clipped_total,
        }
        if self._scale_at_change is not None:
            vectors["scale"] = self._scale_at_change
        if self._at_end is not None:
            vectors["left"] = self._now.total
        if self._skip_flag is not None:
            vectors["skipped"] = self._skip_flag
        if self._present is not None:
            vectors["present"] = self._present
        of_activations = {name: each.values for name, each in self._activations.items()}
        return (
            vectors
            | self._figures
            | {name: values for name, values in of_activations.items() if isinstance(values, Tensor)}
        )

    def _read(self) -> _HostFigures:
        self.send()
        copy = HostCopy([*self._vectors().values()], self.device) if self._copy is None else self._copy
        values = dict(zip(self._vectors(), copy.read(), strict=True))
        return _HostFigures(
            l2=values["l2"],
            nonfinite=values["nonfinite"],
            total=float(values["total"][0]),
            clipped_total=float(values["clipped_total"][0]),
            loss=float(values["loss"][0]) if "loss" in values else self.loss,
            scale=float(values["scale"][0]) if "scale" in values else None,
            left=float(values["left"][0]) if "left" in values else None,
            figures={name: values[name] for name in (*self._figures, *self._activations) if name in values},
            present=values.get("present", np.zeros(0)),
            skipped=bool(values.get("skipped", np.zeros(1))[0]),
        )


def _positions(at_end: EndMagnitudes, columns: GradientColumns, device: torch.device) -> Tensor:
    """Return (n,) the place of each gradient among those at the end of the backward pass, −1 where it is missing."""
    return torch.from_numpy(at_end.positions(columns.columns)).to(device, non_blocking=True)


def _mean(losses: Sequence[Tensor | float], device: torch.device) -> Tensor | float | None:
    """Return the mean loss: a number on the CPU, where reading it costs no more than an operation; else () there."""
    if not losses:
        return None
    if device.type == "cpu":
        return sum(map(float, losses)) / len(losses)
    known = [loss if isinstance(loss, Tensor) else torch.tensor(loss, device="cpu") for loss in losses]
    parts = [loss.detach().to(device, non_blocking=True).reshape(()) for loss in known]
    if len(parts) == 1:
        return parts[0]
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([part.to(wide) for part in parts]).mean()
