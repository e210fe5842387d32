"""Programs in which one rank is sick, or does otherwise than the others, and none may wait for it.

``PROGRAMS`` has each of them by a name; ``tests.distributed.launch`` runs them.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch
from gradwatch import clip
from gradwatch.hooks.guard import UnwatchableError
from tests.distributed.settings import (
    NORM,
    STEPS,
    Job,
    batch,
    loss_of,
    net,
    plain_job,
    rank_part,
    sgd,
    shard,
    shown,
    targets,
    weights_of,
)

SICK = 3  # the step at which something happens
SICK_RANK = 1
LONG = timedelta(seconds=50)


def make_ddp() -> nn.Module:
    return DistributedDataParallel(net())


def make_fsdp2() -> nn.Module:
    return shard(net())


STRATEGIES: dict[str, Callable[[], nn.Module]] = {"DDP": make_ddp, "FSDP2": make_fsdp2}


def inner(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def is_sick(step: int) -> bool:
    return step == SICK and dist.get_rank() == SICK_RANK


# --- sicknesses that one rank alone can see


def row_of_nan(model: nn.Module, step: int) -> Tensor:
    rows = batch(step, rank_part())
    if is_sick(step):
        rows[2, 1] = math.nan
    return loss_of(model, rows, 0)


def loss_of_nan(model: nn.Module, step: int) -> Tensor:
    """The loss is NaN by a constant, so that every gradient is finite."""
    loss = loss_of(model, batch(step, rank_part()), 0)
    return loss + math.nan if is_sick(step) else loss


def entry_of_inf(model: nn.Module, step: int) -> Tensor:
    """One entry of one gradient turns Inf on one rank, after gradients were averaged."""
    return loss_of(model, batch(step, rank_part()), 0)


def weight_of_nan(model: nn.Module, step: int) -> Tensor:
    """One replica, or one shard, has a weight overwritten."""
    if is_sick(step):
        with torch.no_grad():
            weight = next(inner(model).parameters())
            getattr(weight, "_local_tensor", weight)[0, 0] = math.nan
    return loss_of(model, batch(step, rank_part()), 0)


SICKNESSES = {
    "row of NaN": row_of_nan,
    "loss of NaN": loss_of_nan,
    "entry of Inf": entry_of_inf,
    "weight of NaN": weight_of_nan,
}


def sick_run(strategy: str, sickness: str, mode: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        model = STRATEGIES[strategy]()
        optimizer = sgd(model)
        raised = None
        with gradwatch.watch(model, optimizer, on_nonfinite=mode) as watcher:
            try:
                for step in range(STEPS):
                    SICKNESSES[sickness](model, step).backward()
                    if sickness == "entry of Inf" and is_sick(step):
                        gradient = next(inner(model).parameters()).grad
                        getattr(gradient, "_local_tensor", gradient)[0, 0] = math.inf
                    optimizer.step()
                    optimizer.zero_grad()
            except gradwatch.NonFiniteError as error:
                raised = [error.layer, error.step]
        return {**shown(watcher), "raised": raised, "weights": lists(weights_of(inner(model)))}

    return run


def lists(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {name: weight.tolist() for name, weight in weights.items()}


def healthy_weights(left_out: int = STEPS, steps: int = STEPS) -> dict[str, Any]:
    """The weights of a single process on the global batch that leaves one update out."""
    model = net()
    optimizer = sgd(model)
    for step in range(steps):
        loss_of(model, batch(step), 0).backward()
        if step != left_out:
            optimizer.step()
        optimizer.zero_grad()
    return lists(weights_of(model))


# --- policies that leave updates out, or need whole tensors


def spike(strategy: str) -> dict[str, Any]:
    """The loss of one rank is far too large at one step: every rank leaves that update out, or they would differ."""
    model = STRATEGIES[strategy]()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, clip=clip.skip_spikes(window=4)) as watcher:
        for step in range(STEPS):
            loss = loss_of(model, batch(step, rank_part()), 0)
            (loss * (1e4 if is_sick(step) else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {**shown(watcher), "weights": lists(weights_of(inner(model)))}


def parts_of_tensors(strategy: str) -> dict[str, Any]:
    """A policy that reads whole tensors says so at the first step, where each rank holds parts."""
    model, said = STRATEGIES[strategy](), {}
    optimizer = sgd(model)
    for policy in (clip.adaptive(), clip.by_update(0.1)):
        with gradwatch.watch(model, optimizer, clip=policy):
            loss_of(model, batch(0, rank_part()), 0).backward()
            try:
                optimizer.step()
            except UnwatchableError as error:
                said[policy.description] = str(error)
            optimizer.zero_grad()
    return {"said": said}


# --- a gradient scaler, which leaves out by itself what is sick


def scaled(strategy: str) -> dict[str, Any]:
    """The gradient of one rank overflows at one step; sharded, it does so on that rank alone."""
    model = STRATEGIES[strategy]()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(STEPS):
            scaler.scale(loss_of(model, batch(step, rank_part()), 0)).backward()
            if step == SICK and (strategy == "DDP" or is_sick(step)):
                gradient = next(inner(model).parameters()).grad
                getattr(gradient, "_local_tensor", gradient)[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return {**shown(watcher), "weights": lists(weights_of(inner(model))), "scale": scaler.get_scale()}


# --- loops that clip by themselves


def clips_by_itself(strategy: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        model = STRATEGIES[strategy]()
        optimizer = sgd(model)
        with gradwatch.watch(model, optimizer) as watcher:
            for step in range(STEPS):
                loss_of(model, batch(step, rank_part()), 0).backward()
                nn.utils.clip_grad_norm_(model.parameters(), NORM)
                optimizer.step()
                optimizer.zero_grad()
        labels = watcher.history["already_clipped"].tolist()
        return {**shown(watcher), "already_clipped": labels, "weights": lists(weights_of(inner(model)))}

    return run


# --- ranks with different amounts of data


BATCHES = (STEPS, 3)  # of each rank


def joined_loss(model: nn.Module, step: int, rank: int) -> Tensor:
    return loss_of(model, batch(step, (rank, 2)), rank)


def uneven_inputs(clip: float | None, mode: str) -> Callable[[], dict[str, Any]]:
    """DDP's ``join``: a rank whose data has ended answers the collectives of the others, and counts as zero."""

    def run() -> dict[str, Any]:
        model = make_ddp()
        optimizer = sgd(model)
        refused = ""
        with gradwatch.watch(model, optimizer, clip=clip, on_nonfinite=mode) as watcher:
            try:
                with model.join():
                    for step in range(BATCHES[dist.get_rank()]):
                        joined_loss(model, step, dist.get_rank()).backward()
                        optimizer.step()
                        optimizer.zero_grad()
            except (RuntimeError, ValueError) as error:
                refused = str(error)
        return {**shown(watcher), "refused": refused, "weights": lists(weights_of(model.module))}

    return run


def uneven_reference(clip: float | None) -> dict[str, Any]:
    model = net()
    optimizer = sgd(model)
    totals = []
    for step in range(max(BATCHES)):
        active = [rank for rank, batches in enumerate(BATCHES) if step < batches]
        (sum(joined_loss(model, step, rank) for rank in active) / 2).backward()
        totals.append(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf).item())
        optimizer.step()
        optimizer.zero_grad()
    return {"grad_norm_total": totals, "weights": lists(weights_of(model))}


def empty_batches(strategy: str) -> Callable[[], dict[str, Any]]:
    """A rank goes through every step with no rows at all."""

    def run() -> dict[str, Any]:
        model = STRATEGIES[strategy]()
        optimizer = sgd(model)
        with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
            for step in range(STEPS):
                rows = batch(step)[: 0 if dist.get_rank() else None]
                summed = nn.functional.mse_loss(model(rows), targets(rows), reduction="sum")
                (summed * 2 / len(batch(step))).backward()
                optimizer.step()
                optimizer.zero_grad()
        return {**shown(watcher), "weights": lists(weights_of(inner(model)))}

    return run


# --- ranks that do otherwise than the others


@contextmanager
def lines() -> Iterator[list[str]]:
    """Gather what gradwatch logs."""
    found: list[str] = []

    class Gather(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Gather()
    logging.getLogger("gradwatch").addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger("gradwatch").removeHandler(handler)


def train_steps(job: Job, steps: range) -> None:
    for step in steps:
        job.backward(step)
        job.optimizer.step()
        job.optimizer.zero_grad()


def make_job(strategy: str) -> Job:
    model = STRATEGIES[strategy]()
    return plain_job(model, sgd(model), rank_part())


def wait_for(rank: int, note: str) -> None:
    """Wait without a collective until ``rank`` has come here."""
    store = dist.PrefixStore(f"test {note}", dist.distributed_c10d._get_default_store())
    if dist.get_rank() == rank:
        store.set("here", "1")
    else:
        store.wait(["here"], LONG)


def reads_alone(strategy: str) -> dict[str, Any]:
    """Rank 0 reads, flushes and closes, while the others are busy with something else."""
    job = make_job(strategy)
    watcher = gradwatch.watch(job.model, job.optimizer, clip=NORM)
    train_steps(job, range(STEPS))
    if dist.get_rank() == 0:
        seen = [len(watcher.findings), len(watcher.history)]
        watcher.flush()
        watcher.close()
    wait_for(0, "read")
    if dist.get_rank() != 0:
        seen = [len(watcher.findings), len(watcher.history)]
        watcher.close()
    return {"seen": seen, "weights": lists(weights_of(inner(job.model)))}


def closes_early(strategy: str) -> dict[str, Any]:
    """One rank closes its watcher after three steps, and trains on with the others."""
    job = make_job(strategy)
    watcher = gradwatch.watch(job.model, job.optimizer)
    train_steps(job, range(SICK))
    if dist.get_rank() == SICK_RANK:
        watcher.close()
    train_steps(job, range(SICK, STEPS))
    watcher.close()
    return {"weights": lists(weights_of(inner(job.model)))}


def lacks_watch(strategy: str, clip: float | None) -> Callable[[], dict[str, Any]]:
    """``watch`` is called on rank 0 alone."""

    def run() -> dict[str, Any]:
        job = make_job(strategy)
        watcher, refused = None, ""
        with lines() as logged:
            if dist.get_rank() == 0:
                try:
                    watcher = gradwatch.watch(job.model, job.optimizer, clip=clip)
                except (RuntimeError, ValueError) as error:
                    refused = str(error)
            train_steps(job, range(STEPS))
            if watcher is not None:
                watcher.close()
        return {"words": [refused, *logged], "weights": lists(weights_of(inner(job.model)))}

    return run


def leaves_a_step_out(strategy: str) -> dict[str, Any]:
    """One rank does not call ``step`` once: its optimizer waits for a batch that it likes."""
    job = make_job(strategy)
    with gradwatch.watch(job.model, job.optimizer) as watcher:
        for step in range(STEPS):
            job.backward(step)
            if not is_sick(step):
                job.optimizer.step()
            job.optimizer.zero_grad()
    return {"steps": len(watcher.history)}


def raises(strategy: str) -> dict[str, Any]:
    """One rank leaves by an exception, the other by a return."""
    job = make_job(strategy)
    caught = ""
    try:
        with gradwatch.watch(job.model, job.optimizer, clip=NORM) as watcher:
            train_steps(job, range(SICK))
            if dist.get_rank() == SICK_RANK:
                raise RuntimeError("this rank has had enough")
    except RuntimeError as error:
        caught = str(error)
    return {"caught": caught, "steps": len(watcher.history), "weights": lists(weights_of(inner(job.model)))}


remade = itertools.count()


def remake_group() -> None:
    """Join a process group again, with the same ranks."""
    rank, world, store = dist.get_rank(), dist.get_world_size(), dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    prefixed = dist.PrefixStore(f"again {next(remade)}", store)
    dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world, timeout=2 * LONG)


def group_destroyed(strategy: str) -> dict[str, Any]:
    """The group is gone before the watcher is read and closed."""
    job = make_job(strategy)
    watcher = gradwatch.watch(job.model, job.optimizer, clip=NORM)
    train_steps(job, range(STEPS))
    weights = lists(weights_of(inner(job.model)))
    remake_group()
    before = shown(watcher)
    watcher.flush()
    watcher.close()
    return {**before, "weights": weights}


def group_remade(strategy: str) -> dict[str, Any]:
    """A second run in a second group, while the first run's watcher is still open."""
    first = make_job(strategy)
    forgotten = gradwatch.watch(first.model, first.optimizer)
    train_steps(first, range(2))
    remake_group()
    job = make_job(strategy)
    with gradwatch.watch(job.model, job.optimizer, clip=NORM) as watcher:
        train_steps(job, range(STEPS))
    forgotten.close()
    return {**shown(watcher), "weights": lists(weights_of(inner(job.model)))}


def watched_before_the_group() -> dict[str, Any]:
    """``watch`` comes first, then the process group, then DDP."""
    rank, world, store = dist.get_rank(), dist.get_world_size(), dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
        prefixed = dist.PrefixStore("later", store)
        dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=world, timeout=2 * LONG)
        train_steps(plain_job(DistributedDataParallel(model), optimizer, rank_part()), range(STEPS))
    return {**shown(watcher), "weights": lists(weights_of(model))}


def ranks_on_their_own() -> dict[str, Any]:
    """Each rank trains a network of its own on data of its own, and one of them longer: no gradient is shared."""
    model = net()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
        train_steps(plain_job(model, optimizer, rank_part()), range(BATCHES[dist.get_rank()]))
    return {**shown(watcher), "weights": lists(weights_of(model))}


def groups_on_their_own() -> dict[str, Any]:
    """Each rank trains with DDP in a group of its own, as searches for settings do, and one of them longer."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    model = DistributedDataParallel(net(), process_group=groups[dist.get_rank()])
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
        train_steps(plain_job(model, optimizer, rank_part()), range(BATCHES[dist.get_rank()]))
    return {**shown(watcher), "weights": lists(weights_of(model.module))}


def one_rank_trains() -> dict[str, Any]:
    """Rank 0 trains in a group of its own, and the other rank has no model at all."""
    group = dist.new_group([0])
    if dist.get_rank() != 0:
        wait_for(0, "trained")
        return {}
    model = DistributedDataParallel(net(), process_group=group)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
        train_steps(plain_job(model, optimizer, (0, 1)), range(STEPS))
    wait_for(0, "trained")
    return {**shown(watcher), "weights": lists(weights_of(model.module))}


def own_reference(part: tuple[int, int], steps: int) -> dict[str, Any]:
    """A single process that clips by torch, on one part of the batch."""
    model = net()
    optimizer = sgd(model)
    totals = []
    for step in range(steps):
        loss_of(model, batch(step, part), 0).backward()
        totals.append(nn.utils.clip_grad_norm_(model.parameters(), NORM).item())
        optimizer.step()
        optimizer.zero_grad()
    return {"grad_norm_total": totals, "weights": lists(weights_of(model))}


def timed(program: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        begin = time.monotonic()
        return {**program(), "seconds": time.monotonic() - begin}

    return run


def of_strategy(program: Callable[[str], dict[str, Any]], strategy: str) -> Callable[[], dict[str, Any]]:
    return lambda: program(strategy)


MODES = ("report", "skip", "raise")
SICK_RUNS = [
    (strategy, sickness, mode)
    for strategy, sickness, mode in itertools.product(STRATEGIES, SICKNESSES, MODES)
    if (strategy, sickness) != ("DDP", "entry of Inf") or mode == "skip"
]
ODD_RANKS = {
    "reads alone": reads_alone,
    "closes early": closes_early,
    "leaves a step out": leaves_a_step_out,
    "raises": raises,
    "group destroyed": group_destroyed,
    "group remade": group_remade,
}
PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    **{" | ".join(names): timed(sick_run(*names)) for names in SICK_RUNS},
    **{f"clips by itself | {s}": timed(clips_by_itself(s)) for s in STRATEGIES},
    **{f"scaled | {s}": timed(of_strategy(scaled, s)) for s in STRATEGIES},
    **{f"spike | {s}": timed(of_strategy(spike, s)) for s in STRATEGIES},
    **{f"parts of tensors | {s}": timed(of_strategy(parts_of_tensors, s)) for s in STRATEGIES},
    **{f"empty batches | {s}": timed(empty_batches(s)) for s in STRATEGIES},
    **{
        f"{name} | {s}": timed(of_strategy(program, s))
        for name, program in ODD_RANKS.items()
        for s in STRATEGIES
        if s == "DDP" or name not in ("closes early", "leaves a step out")
    },
    **{f"lacks watch | {s}": timed(lacks_watch(s, None)) for s in STRATEGIES},
    **{f"lacks watch, clips | {s}": timed(lacks_watch(s, NORM)) for s in STRATEGIES},
    "join": timed(uneven_inputs(None, "report")),
    "join, clips": timed(uneven_inputs(NORM, "report")),
    "join, skips": timed(uneven_inputs(None, "skip")),
    "watched before the group": timed(watched_before_the_group),
    "ranks on their own": timed(ranks_on_their_own),
    "groups on their own": timed(groups_on_their_own),
    "one rank trains": timed(one_rank_trains),
}
