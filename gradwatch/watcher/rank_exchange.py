"""Exchange figures with the other ranks at each attempted update, so that every rank knows and decides the same.

*Sharded* parameters (``DTensor``): one vector of fixed length at each attempted update, one more at sampled steps.
*Replicated* parameters (``DistributedDataParallel``): gradients are equal everywhere already, so nothing is exchanged;
one short vector under ``on_nonfinite="skip"`` or ``"raise"``, because losses differ.

*Stages* of a pipeline (``torch.distributed.pipelining``): each rank has other layers. One short vector adds up the
totals, so that all clip by the norm of the whole, and skip or raise together.

What communicates stands outside of every guard, and a rank whose own measurements have failed takes part all the same:
it sends what torch alone can say. So no rank waits for one that has met a fault. Before each update that is exchanged
the ranks meet (``ranks/meetings.py``), so no rank waits for one that never comes either. If they do not meet, each is
alone from then on: its figures and its clipping are its own. Replicas then decide about an update by the gradients,
which are equal everywhere, and not by the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch import _torch
from gradwatch.clip import Policy
from gradwatch.hooks.guard import Guard
from gradwatch.hooks.logger import logger
from gradwatch.measure.layers import Layers
from gradwatch.measure.measurement import Measurement
from gradwatch.measure.whole import GRADIENT_ROWS, LAYER_ROWS, UPDATE_ROWS
from gradwatch.ranks.group import Group, current_group, has_process_group
from gradwatch.ranks.meetings import Meetings
from gradwatch.ranks.partial import PartialGradient
from gradwatch.ranks.reduction import Reduction, Sums, scalars_of
from gradwatch.ranks.roll_call import RollCall
from gradwatch.ranks.shards import any_is_part, is_partial, layout_of, local_part, note_flat_shards, parts_of
from gradwatch.ranks.stages import stages_of_pipeline
from gradwatch.recover.rewind import Rewind
from gradwatch.watcher import plain_acts
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.options import OnNonFinite

if TYPE_CHECKING:
    from gradwatch.watcher.optimizer_track import OptimizerTrack

__all__ = ["RankExchange"]

_FAULT, _LOSS, _LOSSES, _SICK, _LAYERS = range(5)  # the scalars that every rank sends


class RankExchange:
    """The exchange of figures between the ranks about the attempted update under way.

    Args:
        layers: the table.
        on_nonfinite: as in ``gradwatch.watch``.
        policy: how to clip.
        models: {name: module}, as watched; None for bare tensors.
        wrappers: returns every ``DistributedDataParallel`` around what is watched.
        guard: takes the faults of what does not communicate.
        recover: as in ``gradwatch.watch``.

    Attributes:
        sums: of the update under way, over all ranks; None where nothing was exchanged.
        may_clip: False where clipping would make replicas differ.
        partial: its gradients that the ranks had not added up yet, by their place among all.
    """

    def __init__(
        self,
        layers: Layers,
        on_nonfinite: OnNonFinite,
        policy: Policy | None,
        models: Mapping[str, nn.Module] | None,
        wrappers: Callable[[], Sequence[DistributedDataParallel]],
        guard: Guard,
        *,
        recover: Rewind | None = None,
    ) -> None:
        self._layers, self._on_nonfinite, self._guard = layers, on_nonfinite, guard
        self._wrappers = wrappers
        clip = "" if policy is None else policy.description
        guard.run("ranks", note_flat_shards, (models or {}).values())
        stages: int | None = 0
        if has_process_group() and not any_is_part(layers.tensors):
            stages = guard.run("ranks", stages_of_pipeline, (models or {}).values())
        self._stages = stages or 0  # of the pipeline that the model is a part of; 0 without one
        names = [f"{stages} stages"] if stages else [*layers.names, *map(layout_of, layers.tensors)]
        self._about = [on_nonfinite, clip, *names]
        self._about += [] if recover is None else [f"recover {recover.every} {recover.keep} {recover.confirm}"]
        self._group: Group | None = None
        self._roll_call: RollCall | None = None
        self._reduction: Reduction | None = None
        self._meetings: Meetings | None = None
        self._has_asked = False  # replicas, which exchange nothing, whether every rank watches
        self._clips = policy is not None
        self.may_clip = True
        self.sums: Sums | None = None
        self._is_agreed: bool | None = None  # whether the update under way is exchanged; None before that was asked
        self._is_done = False  # whether it was
        self._gradients: Sequence[Tensor | None] = ()  # of the update under way, before they were made local
        self.partial: dict[int, PartialGradient] = {}
        self._last_update = _LastUpdate(None, torch.zeros(0, device="cpu"))
        self._parts = torch.zeros(
            0, device="cpu"
        )  # (N,) of how many parts each gradient is made; 0 where this rank has none
        self.answer()

    def answer(self) -> RollCall | None:
        """Let the other ranks know that this one watches, as soon as there is a process group. It waits for nobody.

        Returns:
            The roll call if it was answered just now, else None.
        """
        group = current_group(self._group)
        if group is self._group:
            return None
        self._group, self._reduction, self._meetings = group, None, None
        self._last_update = _LastUpdate(None, torch.zeros(0, device="cpu"))
        self._roll_call = None if group is None else self._guard.run("ranks", RollCall, group, self._about)
        return self._roll_call

    def leave(self) -> None:
        """Let the other ranks know that this one exchanges nothing any more. It waits for nobody."""
        self._reduction = self._roll_call = None
        if self._meetings is not None:
            self._meetings.leave()

    def end(self) -> None:
        """Forget the update under way."""
        self.sums, self._is_agreed, self._is_done = None, None, False
        if self._gradients:
            self._gradients = ()
            self.partial.clear()

    def localise(self, attempt: Attempt) -> Attempt:
        """Return ``attempt`` with the parts of its gradients that this rank holds. Partial gradients are added up.

        A second call for the same update communicates no more.
        """
        self._gradients = attempt.gradients
        adds_up = self.is_needed(attempt.of_parts(attempt.gradients))
        parts = [
            None if each is None else self._part(place, each, adds_up) for place, each in enumerate(attempt.gradients)
        ]
        return attempt.of_parts(parts)

    def _part(self, place: int, gradient: Tensor, adds_up: bool) -> Tensor:
        if not adds_up or not is_partial(gradient):
            return local_part(gradient)
        if place not in self.partial:
            self.partial[place] = PartialGradient(gradient)
        return self.partial[place].entries

    def is_needed(self, attempt: Attempt) -> bool:
        """Return whether the ranks exchange anything about this update; the same on all of them.

        The first time that it is asked about an update it may wait for the other ranks.
        """
        if self._is_agreed is None:
            self._is_agreed = self._is_wanted(attempt) and self._are_all_here() and self._all_come(attempt)
        return self._is_agreed

    def _is_wanted(self, attempt: Attempt) -> bool:
        """Return whether the ranks would have something to tell each other about this update."""
        if attempt.is_part or self._stages:
            self._answer_and_wait()
            return True
        if self._on_nonfinite == "report" or attempt.has_scaler:
            self._ask_once()
            return False
        self._answer_and_wait()
        # within join() a rank that has run out of batches takes no part; gradients are equal on the others
        return self._group is not None and not any(map(_torch.is_joining, self._wrappers()))

    def _answer_and_wait(self) -> None:
        """Answer the roll call; where the group is new, wait for the others, which answer at their first update too."""
        if (call := self.answer()) is not None:
            self._guard.run("ranks", call.wait)

    def _ask_once(self) -> None:
        """Ask once whether every rank watches, where replicas exchange nothing: clipping on one drives them apart."""
        if not self._has_asked and has_process_group():
            if self.answer() is not None:
                return  # other ranks may answer as late as this one: ask at the next update
            self._has_asked = True
            if self.has_replicas():
                self._are_all_here()

    def has_replicas(self) -> bool:
        """Return whether the gradients are averaged over several ranks, and so are equal on them."""
        return has_process_group() and any(wrapper.process_group.size() > 1 for wrapper in self._wrappers())

    def _are_all_here(self) -> bool:
        """Return whether every rank watches; decided once, at the first step."""
        if self._reduction is None and self._roll_call is not None and self._group is not None:
            missing = self._guard.run("ranks", self._roll_call.missing)
            if missing:
                logger.warning(
                    "gradwatch: rank %s of %d does not watch this model in the same way as rank %d, so figures and "
                    "decisions are those of each rank alone. Call watch() on every rank, with the same keywords.",
                    ", ".join(map(str, missing)),
                    self._group.size,
                    self._group.rank,
                )
                self._leave_clipping_out()
            if missing == []:
                self._reduction = Reduction(self._group)
                self._meetings = Meetings(self._group, self._roll_call.key)
            else:
                self._roll_call = None
        return self._reduction is not None

    def _leave_clipping_out(self) -> None:
        """Leave it out where other replicas do not clip: they would no longer be equal."""
        if self._clips and self.has_replicas():
            self.may_clip = False
            logger.warning(
                "gradwatch: clip= is left out, because the replicas of DistributedDataParallel drift apart where not "
                "every rank clips alike."
            )

    def _all_come(self, attempt: Attempt) -> bool:
        """Return whether every rank attempts this update now. If not, each rank is alone for the rest of the run."""
        assert self._meetings is not None
        first = next(map(self._layers.column, attempt.parameters), None)
        what = "a stage" if self._stages else f"{first} of {len(attempt.parameters)}, {attempt.is_part}"
        if self._meetings.come(what):
            return True
        logger.warning(
            "gradwatch: %s, so from here on figures, clipping and decisions are those of each rank alone. Every rank "
            "must call step() equally often (also within join()), and close its watcher after the last one.",
            self._meetings.reason,
        )
        self._reduction = self._roll_call = None
        return False

    def add_up(
        self,
        track: OptimizerTrack | None,
        attempt: Attempt,
        current: Measurement | None,
        losses: Sequence[Tensor | float],
    ) -> None:
        """Exchange the figures of an update, once; this communicates.

        Args:
            track: of the optimizer; None where that is not known.
            attempt: the update, with local gradients.
            current: its figures; None where measuring has failed.
            losses: those of the update, for where it has.
        """
        if self._is_done or not self.is_needed(attempt) or self._reduction is None:
            return
        self._is_done = True
        if self._stages:
            self._add_up_stages(attempt, current, losses)
            return
        if not attempt.is_part:
            scalars = self._scalars(attempt, current, losses)
            nothing = scalars.new_zeros(0)
            self.sums = Sums(nothing, nothing, nothing, self._reduction.add_up_plainly(scalars))
            return
        rows = None if current is None else self._guard.run("rows", current.rows)
        scalars = self._scalars(attempt, None if rows is None else current, losses)
        if rows is None:
            rows = scalars.new_zeros(GRADIENT_ROWS, len(attempt.gradients))
            rows[:2] = plain_acts.squares_and_nonfinite(attempt)
        parts = list(map(parts_of, attempt.parameters, self._gradients))
        self._parts = torch.tensor(parts, device="cpu").to(scalars, non_blocking=True)
        holds = (self._parts > 0).to(scalars)
        both = torch.cat([scalars, self._last_update.to(scalars)])
        self.sums = self._reduction.add_up(rows, self._parts, holds, both)
        self._guard.run("update ratios", self._last_update.deliver, self.sums.scalars[len(scalars) :])
        self._last_update = _LastUpdate(track, self._parts / self.sums.holders.clamp(min=1))

    def _add_up_stages(self, attempt: Attempt, current: Measurement | None, losses: Sequence[Tensor | float]) -> None:
        """Exchange the totals of the stages of a pipeline, each of which has layers of its own."""
        assert self._reduction is not None
        assert self._group is not None
        totals = None if current is None else self._guard.run("rows", current.own_totals)
        scalars = self._scalars(attempt, current, losses)
        if totals is None:
            totals = plain_acts.squares_and_nonfinite(attempt).sum(dim=1).repeat(2)
        share = self._stages / self._group.size  # several ranks may have the same stage
        summed = self._reduction.add_up_plainly(torch.cat([scalars, totals.to(scalars) * share]))
        nothing = scalars.new_zeros(0)
        self.sums = Sums(nothing, summed[len(scalars) :], nothing, summed[: len(scalars)])

    def _scalars(self, attempt: Attempt, current: Measurement | None, losses: Sequence[Tensor | float]) -> Tensor:
        """Return what this rank says of the update as a whole."""
        loss = plain_acts.mean_of(losses) if current is None else current.loss_on_device
        own: list[float | Tensor] = [0.0] * 5
        own[_FAULT] = float(current is None)
        own[_LOSS], own[_LOSSES] = (0.0, 0.0) if loss is None else (loss, 1.0)
        own[_SICK] = float(not attempt.is_part and not self._stages and self._is_sick(attempt, current))
        own[_LAYERS] = float(current is not None and bool(current.plan.figures))
        return scalars_of(own, attempt.device)

    def deliver(self, current: Measurement) -> bool:
        """Give the figures of all ranks to the measurement; return False where a rank has none to give."""
        sums = self.sums
        if sums is None or (sums.scalars.is_cpu and float(sums.scalars[_FAULT])):
            return sums is None
        loss = None if current.loss_on_device is None else _read(sums.scalars[_LOSS] / sums.scalars[_LOSSES])
        if len(sums.rows):
            current.take_sums(sums, loss)
        else:
            current.take_loss(loss)
        if self._stages:
            current.take_total(sums.totals)
        return True

    def exchange_layers(self, current: Measurement) -> None:
        """Exchange the figures of single layers, where every rank has measured some; this communicates."""
        sums = self.sums
        if sums is None or not len(sums.rows) or self._reduction is None or not self._all_have_layers(current, sums):
            return
        found = self._guard.run("rows", current.layer_rows)
        nothing = sums.rows.new_zeros(LAYER_ROWS, sums.rows.shape[1])
        rows, largest = (nothing, nothing[0]) if found is None else found
        fault = scalars_of([float(found is None)], sums.rows.device)
        whole = self._reduction.add_up(rows, self._parts, (self._parts > 0).to(self._parts), fault)
        largest = self._reduction.largest(largest)
        if found is not None and not float(whole.scalars[0]):
            self._guard.run("rows", current.take_layer_sums, whole, largest)

    def _all_have_layers(self, current: Measurement, sums: Sums) -> bool:
        """Return whether all ranks are at a step with figures of single layers; read where this one is, or is sick."""
        assert self._group is not None
        if not (current.plan.figures or sums.scalars.is_cpu):
            return False
        return float(sums.scalars[_LAYERS]) == self._group.size or (sums.scalars.is_cpu and not self.is_finite())

    def is_finite(self) -> bool:
        """Return True if gradients and losses are finite on every rank. Waits for the device."""
        assert self.sums is not None
        scalars, totals = self.sums.scalars, self.sums.totals
        if float(scalars[_SICK]) or not math.isfinite(float(scalars[_LOSS])):
            return False
        return not len(totals) or math.isfinite(float(totals[0])) or float(totals[1]) == 0

    def largest(self, values: Sequence[float]) -> list[float] | None:
        """Return the largest of each number over all ranks; this communicates where ranks share a model.

        Returns:
            None where this rank shares its model with no other. An empty list where it does, and not every rank takes
            part: one does not watch, or is within ``join``, where a rank may have run out of batches.
        """
        if not self._shares_model():
            return None
        if any(map(_torch.is_joining, self._wrappers())):
            return []
        self._answer_and_wait()
        if not self._are_all_here() or self._meetings is None or not self._meetings.come("recovery"):
            return []
        assert self._reduction is not None
        sent = torch.tensor(values, dtype=torch.float64, device="cpu")
        return [float(value) for value in self._reduction.largest(sent)]

    def _shares_model(self) -> bool:
        """Return whether other ranks train the same model: replicas, shards or stages of it."""
        if not has_process_group():
            return False
        return bool(self.has_replicas() or self._stages or any_is_part(self._layers.tensors))

    def norms(self) -> Tensor | None:
        """Return (N,) the norms of the whole gradients, for a plain way to clip; None where they were not exchanged."""
        if self.sums is None or not len(self.sums.rows):
            return None
        return self.sums.rows[0].sqrt()

    def write_back(self) -> None:
        """Write what was clipped into gradients that are still sums over ranks."""
        for partial in self.partial.values():
            partial.write_back()

    def measure_clipped(self, attempt: Attempt, policy: Policy | None, current: Measurement | None) -> None:
        """Measure what is left of gradients whose entries were clamped; this communicates.

        Every rank calls it at each update that was exchanged, whether its own clipping has failed or not.
        """
        sums = self.sums
        if policy is None or not policy.clamps or sums is None or not len(sums.totals) or self._reduction is None:
            return
        squares = self._guard.run("clipped total", plain_acts.squares_and_nonfinite, attempt)
        share = self._share_of(sums)
        left = torch.full((1,), torch.nan, device="cpu") if squares is None else (squares[0] * share).sum().reshape(1)
        total = self._reduction.add_up_plainly(left.to(sums.totals)).sqrt()
        if current is not None and not current.is_skipped:
            current.take_clipped_total(total[0])

    def _share_of(self, sums: Sums) -> Tensor:
        """Return by what the gradients of this rank count in a sum over all ranks, of each or of all alike."""
        if self._stages and self._group is not None:
            return torch.tensor(self._stages / self._group.size, device="cpu")
        return (self._parts / sums.holders.clamp(min=1)).cpu()

    def _is_sick(self, attempt: Attempt, current: Measurement | None) -> bool:
        """Return whether this rank sees a gradient that is not finite. Its loss is exchanged in any case."""
        if current is None:
            return plain_acts.first_nonfinite(attempt) is not None
        return not current.gradients_are_finite


class _LastUpdate:
    """The latest update that was exchanged: how far it moved the weights goes along with the next one.

    Args:
        track: of its optimizer; None where that is not known.
        share: (N,) by what this rank's part of each parameter counts in the sum over the ranks.
    """

    def __init__(self, track: OptimizerTrack | None, share: Tensor) -> None:
        self._track, self._share = track, share

    def to(self, like: Tensor) -> Tensor:
        """Return (``UPDATE_ROWS`` · N,) in the format of ``like``; zeros where nothing was sampled."""
        rows = None if self._track is None else self._track.update_rows
        if rows is None or rows.shape[1] != len(self._share):
            return like.new_zeros(UPDATE_ROWS * len(self._share))
        return (rows.to(like) * self._share.to(like)).reshape(-1)

    def deliver(self, sums: Tensor) -> None:
        """Hand on what all ranks have together."""
        if self._track is not None:
            self._track.take_update_sums(sums.reshape(UPDATE_ROWS, -1))


def _read(value: Tensor) -> Tensor | float:
    """Return a number on the CPU, where reading costs no more than an operation; else ``value``."""
    return float(value) if value.is_cpu else value
