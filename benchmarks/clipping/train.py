"""Train many copies of one model side by side, each with its own seed and its own way to clip.

The copies share only the forward and the backward pass, which ``torch.func.vmap`` runs for all of them at once: at
this size a step of thirty copies takes a third of what thirty steps take. Gradients, optimizers, faults and ways are
each copy's own. The runs with a fault begin as twins of the clean run at the step of the fault.

A copy whose way has not acted yet is equal to the copy of the same seed that nobody clips. It follows that one and
costs nothing but a look at the gradients, until its way acts for the first time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from benchmarks.clipping.programs import (
    CLEAN,
    FAULT,
    FAULTS,
    HELD_OUT,
    MODELS,
    STEPS,
    Data,
    Fault,
    Model,
    data,
    optimizers,
    rate_at,
)  # fmt: skip
from benchmarks.clipping.ways import WAYS, Update, Way

SIDE_BY_SIDE = 64
UNCLIPPED = "none"
RECOVERED, SMOOTHED = 1.05, 10
SPIKE, LOOK_BACK, LEAST = 7.0, 128, 20


@dataclass(eq=False)
class Copy:
    """One run among those that train side by side.

    Attributes:
        model: its weights; its forward pass is never called.
        optimizers, rate: what trains it, and the highest rate.
        way: how it clips.
        data: its batches.
        condition, fault: what happens to it.
        clean: the copy without a fault, for one with a fault.
        losses: of each step.
        acted: whether the way changed the update, for each step.
        held_out: held-out losses by the number of steps before.
        leader: the unclipped copy that this one is equal to so far.
    """

    model: nn.Module
    optimizers: list[Optimizer]
    rate: float
    way: Way
    name: str
    seed: int
    data: Data
    condition: str = CLEAN
    fault: Fault = field(default_factory=Fault)
    clean: Copy | None = None
    losses: list[float] = field(default_factory=list)
    acted: list[bool] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    leader: Copy | None = None

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())

    @property
    def is_lost(self) -> bool:
        """Return True if two losses in a row are not finite: no update can mend that."""
        return len(self.losses) > 1 and not any(map(math.isfinite, self.losses[-2:]))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch that this copy sees."""
        batch = self.data.batches[step]
        return self.fault.batch(*batch) if self.is_sick(step) else batch

    def is_sick(self, step: int) -> bool:
        """Return whether the fault is there at this step."""
        return FAULT <= step < FAULT + self.fault.lasts

    def with_fault(self, condition: str, leader: Copy | None) -> Copy:
        """Return a twin at this step, to which a fault is about to happen; it follows ``leader``."""
        parts = (self.model, self.optimizers) if leader is None else (leader.model, leader.optimizers)
        model, optimizers_ = parts if leader else copy.deepcopy(parts)
        mine = [*self.losses], [*self.acted], {**self.held_out}
        return Copy(
            model, optimizers_, self.rate, copy.deepcopy(self.way), self.name, self.seed, self.data, condition,
            FAULTS[condition], self, *mine, leader,
        )  # fmt: skip

    def receive_(self, step: int, gradients: Sequence[Tensor]) -> None:
        """Take the gradients and the rate of a step, with what the fault makes of them."""
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        rate = rate_at(step, self.rate)
        if self.is_sick(step):
            self.fault.gradients_(gradients, step)
            rate = self.fault.rate(rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def update_(self, loss: float) -> None:
        """Clip and make one update."""
        update = Update(self.parameters, self.optimizers, loss)
        is_made = self.way.clip_(update)
        self.step_(update, is_made)

    def step_(self, update: Update, is_made: bool) -> None:
        """Let the optimizers make the update, if it is to be made, and note what the way did."""
        before = [each.detach().clone() for each in self.parameters] if self.way.sees_weights else []
        for optimizer in self.optimizers if is_made else ():
            optimizer.step()
        if self.way.sees_weights:
            self.way.after_(update, before)
        self.losses.append(update.loss)
        self.acted.append(self.way.acted)

    def follow_(self, loss: float) -> None:
        """Ask the way about the leader's gradients; where it acts, become a copy of one's own."""
        leader = self.leader
        own = [each.grad for each in leader.parameters]
        for parameter in leader.parameters:
            parameter.grad = parameter.grad.clone()
        is_made = self.way.clip_(Update(leader.parameters, leader.optimizers, loss))
        if self.way.acted or not is_made:
            self.model, self.optimizers = copy.deepcopy((leader.model, leader.optimizers))
            self.parameters, self.leader = list(self.model.parameters()), None
            for mine, clipped in zip(self.parameters, leader.parameters):
                mine.grad = clipped.grad  # deepcopy leaves gradients out
            self.step_(Update(self.parameters, self.optimizers, loss), is_made)
        else:
            self.losses.append(loss)
            self.acted.append(False)
        for parameter, gradient in zip(leader.parameters, own):
            parameter.grad = gradient


@dataclass(frozen=True)
class Outcome:
    """How one run has ended.

    Attributes:
        loss: the mean held-out loss of the last stretch; Inf where it is not finite.
        start: the held-out loss of the untrained model.
        clipped: share of the steps whose update the way changed.
        spikes: share of the steps whose loss is 7 deviations above the mean of those before.
        recovery: steps from the fault to a loss like that without it; None for a clean run.
    """

    loss: float
    start: float
    clipped: float
    spikes: float
    recovery: int | None

    @property
    def diverged(self) -> bool:
        """Return whether the model is worse than untrained."""
        return not self.loss <= self.start

    @property
    def counted(self) -> float:
        """Return the loss, or that of the untrained model where the run diverged."""
        return self.start if self.diverged else self.loss


def make(model: str, optimizer: str, rate: float, way: str, seed: int) -> Copy:
    """Return an untrained copy."""
    torch.manual_seed(seed)
    net = MODELS[model].make()
    return Copy(net, optimizers(optimizer, net, rate), rate, WAYS[way](), way, seed, data(model, seed))


def train(model: str, copies: Mapping[Copy, Sequence[str]]) -> list[Copy]:
    """Train the clean copies, and a twin of each for every further condition; return all of them.

    Copies of a rate and a seed follow the one that nobody clips, where it is among them.

    Args:
        model: of all copies.
        copies: untrained copy → its conditions.
    """
    known = MODELS[model]
    unclipped = {(each.rate, each.seed): each for each in copies if each.name == UNCLIPPED}
    for one in copies:
        if one.name != UNCLIPPED and not one.way.sees_weights:
            one.leader = unclipped.get((one.rate, one.seed))
    for some in _side_by_side(copies):
        _measure(known, some, 0)
        _advance(known, some, range(FAULT))
    done = list(copies)
    for condition in {each for some in copies.values() for each in some if each != CLEAN}:
        done += _twins([one for one, conditions in copies.items() if condition in conditions], condition)
    for some in _side_by_side(done):
        _advance(known, some, range(FAULT, STEPS))
    return done


def _side_by_side(copies: Iterable[Copy]) -> Iterator[list[Copy]]:
    """Yield groups of at least 64 copies, if there are so many, in which everyone's leader is one of the group."""
    families: dict[int, list[Copy]] = {}
    for one in copies:
        families.setdefault(id(one.leader or one), []).append(one)
    some: list[Copy] = []
    for family in families.values():
        some += family
        if len(some) >= SIDE_BY_SIDE:
            yield some
            some = []
    if some:
        yield some


def _twins(copies: Sequence[Copy], condition: str) -> list[Copy]:
    """Return a twin of each copy, to which a fault is about to happen; followers follow their leader's twin."""
    leaders = {id(each): each.with_fault(condition, None) for each in copies if each.leader is None}
    return [
        leaders[id(each)] if each.leader is None else each.with_fault(condition, leaders[id(each.leader)])
        for each in copies
    ]


@torch.no_grad()
def _advance(model: Model, copies: Sequence[Copy], steps: Iterable[int]) -> None:
    for step in steps:
        living = [each for each in copies if each.leader is None and not each.is_lost]
        if not living:
            return
        followers = [each for each in copies if each.leader is not None and not each.is_lost]
        inputs, targets = (torch.stack(part) for part in zip(*(each.batch(step) for each in living)))
        losses, gradients = _gradients(model, living, inputs, targets)
        for one, loss, own in zip(living, losses, gradients):
            one.receive_(step, own)
            for follower in followers:
                if follower.leader is one:
                    follower.follow_(loss)
            one.update_(loss)
        if step + 1 in HELD_OUT:
            _measure(model, copies, step + 1)


def _gradients(
    model: Model, copies: Sequence[Copy], inputs: Tensor, targets: Tensor
) -> tuple[list[float], list[list[Tensor]]]:
    """Return the loss and the gradients of each copy."""
    stacked = _stacked(copies)
    with torch.enable_grad():
        for each in stacked.values():
            each.requires_grad_()
        losses = vmap(_loss_of(model, copies[0].model))(stacked, inputs, targets)
        gradients = torch.autograd.grad(losses.sum(), list(stacked.values()))
    own = zip(*(each.detach().contiguous().unbind() for each in gradients))
    return losses.tolist(), [list(each) for each in own]


def _measure(model: Model, copies: Sequence[Copy], steps: int) -> None:
    """Note the held-out losses."""
    own = [each for each in copies if each.leader is None]
    inputs, targets = own[0].data.held_out
    losses = vmap(_loss_of(model, own[0].model), in_dims=(0, None, None))(_stacked(own), inputs, targets)
    found = {id(one): loss for one, loss in zip(own, losses.tolist())}
    for one in copies:
        one.held_out[steps] = found[id(one.leader or one)]


def _stacked(copies: Sequence[Copy]) -> dict[str, Tensor]:
    names = [name for name, _ in copies[0].model.named_parameters()]
    rows = zip(*(each.parameters for each in copies))
    return {name: torch.stack([each.detach() for each in row]) for name, row in zip(names, rows)}


def _loss_of(model: Model, net: nn.Module):
    def loss(parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return model.loss(functional_call(net, parameters, (inputs,)), targets)

    return loss


def outcome(one: Copy) -> Outcome:
    """Return how a run has ended."""
    ends = [one.held_out.get(steps, math.inf) for steps in HELD_OUT]
    loss = fmean(ends) if all(map(math.isfinite, ends)) else math.inf
    recovery = None if one.clean is None else recovery_of(one.losses, one.clean.losses)
    return Outcome(loss, one.held_out[0], fmean(one.acted), spike_score(one.losses), recovery)


def spike_score(losses: Sequence[float]) -> float:
    """Return the share of losses that are 7 deviations above the mean of up to 128 before them (arXiv:2501.00656).

    Losses that are not finite count as spikes. With fewer than 20 before it no loss is judged.
    """
    spikes = 0
    for place in range(LEAST, len(losses)):
        earlier = [each for each in losses[max(0, place - LOOK_BACK) : place] if math.isfinite(each)]
        is_usual = losses[place] <= fmean(earlier) + SPIKE * pstdev(earlier)
        spikes += not is_usual
    return spikes / len(losses)


def recovery_of(losses: Sequence[float], clean: Sequence[float]) -> int:
    """Return how many steps after the fault the loss of ten steps is within 5 % of that without the fault.

    A run that never gets there counts with all the steps that were left.
    """
    for step in range(FAULT, len(losses) - SMOOTHED + 1):
        usual = fmean(clean[step : step + SMOOTHED])
        if fmean(losses[step : step + SMOOTHED]) <= RECOVERED * usual:
            return step - FAULT
    return STEPS - FAULT
