"""One attempted update, on its way from the device to the host.

Enters: an optimizer's parameters with their gradients. Leaves: a ``StepReport``, once the copy has arrived and the
update is made. Knows nothing of detectors, sinks or cadences: what to measure is asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradwatch.measure import statistics
from gradwatch.measure.backward import AtEnd
from gradwatch.measure.columns import GradientColumns
from gradwatch.measure.host_copy import HostCopy
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Floats, Origin, StepReport
from gradwatch.measure.samples import SAMPLED_ENTRIES, evenly_spaced, relative_change, sample

__all__ = ["Measurement", "StepPlan"]

FindOrigin = Callable[[float | None, list[str]], Origin | None]
"""(loss, names of the layers whose gradients hold NaN or Inf) → where it came from."""

HISTOGRAM_ENTRIES = 4096
_ENTRY_FIGURES = ("grad_max", "grad_mean", "grad_std", "grad_zero_fraction")


@dataclass(frozen=True)
class StepPlan:
    """Which step this is, and what is asked of it.

    Attributes:
        step, optimizer, update, sampled: as in ``StepReport``.
        figures: names of ``gradwatch.measure.report.FIGURES`` to measure.
        entries: whether to take entries for histograms.
        has_scaler: a gradient scaler skips the update by itself where a gradient is not finite.
        already_clipped, learning_rate: as in ``StepReport``.
    """

    step: int
    optimizer: int
    update: int
    sampled: bool
    figures: frozenset[str]
    entries: bool
    has_scaler: bool = False
    already_clipped: bool = False
    learning_rate: float | None = None


class Measurement:
    """Measures on construction; ``clip_`` and ``follow_update`` as the step goes on; ``report`` at its end.

    Args:
        plan: which step, and what to measure.
        layers: the table.
        columns: of n parameters that have a gradient, watched or not (all count in the total).
        gradients: n tensors.
        losses: what was observed for this step: 0-dim tensors or numbers.
        scale: () a loss scale that the gradients still hold; None where they hold none.
        at_end: what they were where the backward pass ended, if the loop changed them since (it clips by itself).
        scale_at_end: () a loss scale that they held there.
        earlier: the measurement before, where nobody says when the update is made (a loop without an optimizer): how
            far its update moved the weights is seen now, and told in this report.
    """

    def __init__(
        self,
        plan: StepPlan,
        layers: Layers,
        columns: GradientColumns,
        gradients: Sequence[Tensor],
        losses: Sequence[Tensor | float],
        scale: Tensor | None = None,
        earlier: Measurement | None = None,
        at_end: AtEnd | None = None,
        scale_at_end: Tensor | None = None,
    ) -> None:
        self.plan = plan
        self._layers, self._columns, self._gradients = layers, columns, gradients
        self.magnitudes = self._now = statistics.measure(gradients, scale)
        if at_end is not None:
            positions = torch.from_numpy(at_end.positions(columns.columns)).to(self._now.l2.device)
            self.magnitudes = statistics.undo_change(self._now, at_end.without(scale_at_end), positions)
        self.device = self.magnitudes.l2.device
        self._loss = _mean(losses, self.device)
        self._clipped_total = self._now.total
        self._skipped = False
        self._sampled = plan.sampled
        self._figures = self._measure_figures() if plan.figures else {}
        self._entries = self._take_entries() if plan.entries else {}
        self._weight_nonfinite = self._count_corrupt_weights()
        self._before = sample(columns.watched) if "update_ratio" in plan.figures else None
        self._sparse = [] if self._before is None else self._sparse_beyond_the_sample()
        self._copy: HostCopy | None = None
        self._finders: list[FindOrigin] = []
        self._origin: Origin | None = None
        if earlier is not None and earlier._columns is columns:
            self._add_change_of(earlier)
            self._sampled = self._sampled or earlier.plan.sampled  # its ratio comes with this report

    @cached_property
    def is_finite(self) -> bool:
        """Whether every gradient entry and the loss are finite. Waits for the device."""
        if self.loss is not None and not math.isfinite(self.loss):
            return False
        # the norm may have overflowed, of entries that did not
        return math.isfinite(float(self.magnitudes.total)) or not bool(self.magnitudes.nonfinite.any())

    @property
    def is_overflow(self) -> bool:
        """Whether what is not finite may be the loss scale's doing. Waits for the device."""
        return self.plan.has_scaler and (self.loss is None or math.isfinite(self.loss))

    @cached_property
    def loss(self) -> float | None:
        """The loss of the step. Waits for the device."""
        return None if self._loss is None else float(self._loss)

    def trace_back(self, find: FindOrigin, *, now: bool) -> None:
        """Has ``find`` say where a NaN or Inf came from: now, or once the figures are on the host."""
        if not now:
            self._finders.append(find)
        elif self._origin is None:
            self._origin = find(self.loss, self._sick_layers(self.magnitudes.nonfinite.numpy(force=True)))

    def add_activations(self, figures: Mapping[str, tuple[list[int], Tensor]]) -> None:
        """Takes {figure: (n columns, their (n,) values)} of the step's forward pass."""
        columns = self._columns.columns[self._columns.positions]
        place = {column: at for at, column in enumerate(columns.tolist())}
        for name, (of, values) in figures.items():
            known = [at for at, column in enumerate(of) if column in place]
            if known:
                row = torch.full((len(place),), torch.nan, device=self.device)
                places = torch.tensor([place[of[at]] for at in known], device=self.device)
                values = values if len(known) == len(of) else values[known]
                self._figures[name] = row.index_copy_(0, places, values.to(self.device, row.dtype))

    def clip_(self, clip_: Callable[[Sequence[Tensor], statistics.Magnitudes], Tensor]) -> None:
        """Clips the gradients in place by ``clip_``, as ``gradwatch.clip.Policy`` has it."""
        self._clipped_total = clip_(self._gradients, self._now)

    def totals(self) -> tuple[Tensor, Tensor]:
        """() total norms before and after clipping, on the device."""
        return self.magnitudes.total, self._clipped_total

    def mark_skipped(self) -> None:
        """No update is made from this step."""
        self._skipped = True

    def follow_update(self) -> None:
        """The update is made: how far did it move the weights?"""
        self._add_change_of(self)

    def send(self) -> None:
        """Starts the copy to the host, once; the update ratio stays out where the update was not seen."""
        if self._copy is None and self.device.type != "cpu":
            self._copy = self._begin_copy()
        self._gradients = []  # held no longer than needed

    def outline(self) -> tuple[float, float | None]:
        """(total norm, loss) on the host; waits for the copy."""
        if self.device.type == "cpu":
            return float(self.magnitudes.total), self.loss
        self.send()
        assert self._copy is not None
        _, _, total, _, *rest = self._copy.read()
        return float(total[0]), float(rest[0][0]) if isinstance(self._loss, Tensor) else self._loss

    def report(self) -> StepReport:
        """The step on the host; waits for the copy."""
        self.send()
        copy = self._begin_copy() if self._copy is None else self._copy
        plan, columns = self.plan, self._columns
        l2, nonfinite, total, clipped_total, *rest = copy.read()
        loss = float(rest.pop(0)[0]) if isinstance(self._loss, Tensor) else self._loss
        has_nonfinite = bool(nonfinite.any())
        overflowed = plan.has_scaler and has_nonfinite
        is_sick = has_nonfinite or (loss is not None and not math.isfinite(loss))
        return StepReport(
            step=plan.step,
            optimizer=plan.optimizer,
            update=plan.update,
            layers=self._layers.names,
            depth=self._layers.depth,
            size=self._layers.size,
            measured=columns.measured,
            grad_norm=columns.spread(l2),
            nonfinite=columns.spread(nonfinite, absent=0).astype(np.int64),
            grad_norm_total=float(total[0]),
            grad_norm_clipped_total=float(clipped_total[0]),
            loss=loss,
            skipped=self._skipped or overflowed,
            overflowed=overflowed,
            already_clipped=plan.already_clipped,
            sampled=self._sampled,
            figures={name: columns.place(values) for name, values in zip(self._figures, rest, strict=True)},
            weight_nonfinite=self._weight_nonfinite,
            learning_rate=plan.learning_rate,
            origin=self._find_origin(nonfinite, loss) if is_sick else None,
            entries=self._entries,
        )

    def _begin_copy(self) -> HostCopy:
        vectors = [self.magnitudes.l2, self.magnitudes.nonfinite, self.magnitudes.total, self._clipped_total]
        vectors += [self._loss] if isinstance(self._loss, Tensor) else []
        return HostCopy([*vectors, *self._figures.values()], self.device)

    def _find_origin(self, nonfinite: Floats, loss: float | None) -> Origin | None:
        found = (find(loss, self._sick_layers(nonfinite)) for find in self._finders)
        return self._origin or next((origin for origin in found if origin is not None), None)

    def _sick_layers(self, nonfinite: Floats) -> list[str]:
        return [self._layers.names[column] for column in np.flatnonzero(self._columns.spread(nonfinite, absent=0))]

    def _sparse_beyond_the_sample(self) -> list[int]:
        gradients = self._columns.select(self._gradients)
        return [i for i, g in enumerate(gradients) if g.layout is torch.sparse_coo and g.numel() > SAMPLED_ENTRIES]

    def _add_change_of(self, measurement: Measurement) -> None:
        if measurement._before is not None:
            weights = self._columns.watched
            change = relative_change(measurement._before, sample(weights), weights)
            for position in measurement._sparse:
                change[position] = torch.nan  # the rows sampled may not be those that were met
            self._figures["update_ratio"] = change
            measurement._before = None

    @cached_property
    def _factor(self) -> Tensor:
        """(n,) what each gradient's entries are too large by: a loss scale, or less than 1 once the loop clipped."""
        now, scale = self._now.l2, self._now.scale
        change = (
            torch.where(now > 0, now / self.magnitudes.l2, 1.0) if now is not self.magnitudes.l2 else now.new_ones(())
        )
        return (change if scale is None else change * scale).expand(now.shape)

    def _measure_figures(self) -> dict[str, Tensor]:
        wanted, figures, weights = self.plan.figures, {}, self._columns.watched
        if wanted.intersection(_ENTRY_FIGURES):
            watched = torch.from_numpy(self._columns.positions).to(self.device)
            factor = self._factor[watched]
            norms, with_spread = self.magnitudes.l2[watched] * factor, not wanted.isdisjoint(("grad_mean", "grad_std"))
            entries = statistics.entries(self._columns.select(self._gradients), norms, with_spread=with_spread)
            figures["grad_max"], figures["grad_mean"] = entries.largest / factor, entries.mean / factor
            figures["grad_std"], figures["grad_zero_fraction"] = entries.std / factor, entries.zero_fraction
        if wanted.intersection(("weight_norm", "weight_std")):
            figures["weight_norm"] = statistics.norms(weights)
        if "weight_std" in wanted:
            figures["weight_std"] = statistics.entries(weights, figures["weight_norm"]).std
        return {name: values for name, values in figures.items() if name in wanted}

    def _take_entries(self) -> dict[str, list[Floats | None]]:
        samples = evenly_spaced(self._columns.select(self._gradients), HISTOGRAM_ENTRIES)
        factors = self._factor[torch.from_numpy(self._columns.positions).to(self.device)].unbind()
        gradients = [part.float() / factor for part, factor in zip(samples, factors, strict=True)]
        weights = [part.float() for part in evenly_spaced(self._columns.watched, HISTOGRAM_ENTRIES)]
        return {
            kind: self._columns.list_of([part.cpu().numpy().copy() for part in parts])
            for kind, parts in (("grad", gradients), ("weight", weights))
        }

    def _count_corrupt_weights(self) -> NDArray[np.int64] | None:
        magnitudes = self.magnitudes
        if self.device.type != "cpu" or math.isfinite(float(magnitudes.total)) or not magnitudes.nonfinite.any():
            return None
        counts = statistics.count_nonfinite(self._columns.watched).numpy()
        return self._columns.place(counts, absent=0).astype(np.int64)


def _mean(losses: Sequence[Tensor | float], device: torch.device) -> Tensor | float | None:
    if not losses:
        return None
    if device.type == "cpu":  # a number at once: nothing waits there, and each operation costs as much as a look
        return sum(map(float, losses)) / len(losses)
    wide = torch.float32 if device.type == "mps" else torch.float64
    parts = [torch.as_tensor(loss).detach().to(device, wide, non_blocking=True).reshape(()) for loss in losses]
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean()
