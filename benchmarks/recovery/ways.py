"""Ways to deal with a fault: nothing, leaving updates out, PaLM's recipe by hand, clipping, and ``recover=``."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradwatch
from benchmarks.recovery.programs import FAULT, STEPS, Fault, Run

EVERY, CONFIRM = 20, 10


@dataclass(frozen=True)
class Outcome:
    """How one run has ended.

    Attributes:
        loss: on held-out data; Inf where the run stopped or diverged.
        restored: steps of the snapshots that were restored.
        gave_up: whether it raised ``RecoveryError``.
    """

    loss: float
    restored: tuple[int, ...] = ()
    gave_up: bool = False


def advance(run: Run, fault: Fault, number: int) -> float:
    """Make one step of a plain loop; return its loss."""
    loss = run.loss(*fault(run, number, *run.batch(number)))
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.scheduler.step()
    return float(loss.detach())


def nothing(run: Run, fault: Fault) -> Outcome:
    """Train, whatever comes."""
    for number in range(STEPS):
        advance(run, fault, number)
    return Outcome(run.final_loss())


def watched(**keywords: Any) -> Callable[[Run, Fault], Outcome]:
    """Return a way that watches the plain loop with these keywords."""

    def way(run: Run, fault: Fault) -> Outcome:
        with gradwatch.watch(run.model, run.optimizer, **keywords):
            return nothing(run, fault)

    return way


def recover(run: Run, fault: Fault) -> Outcome:
    """Let the run save itself."""
    plan = gradwatch.Rewind(every=EVERY, confirm=CONFIRM, state=[run.scheduler])
    watcher = gradwatch.watch(run.model, run.optimizer, recover=plan)
    try:
        with watcher:
            outcome = nothing(run, fault)
    except gradwatch.RecoveryError:
        return Outcome(math.inf, gave_up=True)
    done = {action for finding in watcher.findings for action in finding.actions}
    done.update(watcher._loop.recovery.actions)  # an update that is left out may have no finding
    restored = [int(action.split("after step ")[1].split(",")[0]) + 1 for action in done if "went back" in action]
    return Outcome(outcome.loss, tuple(sorted(restored)))


def palm(run: Run, fault: Fault) -> Outcome:
    """Go back to the last but one snapshot where the loss is not finite or ten times its median; skip what was seen."""
    kept: list[tuple[int, list[Any]]] = []
    losses: list[float] = []
    restored = []
    for number in range(STEPS):
        if number % EVERY == 0:
            parts = (run.model, run.optimizer, run.scheduler)
            kept = [*kept, (number, [copy.deepcopy(each.state_dict()) for each in parts])][-3:]
        losses.append(advance(run, fault, number))
        usual = statistics.median(losses[-50:])
        if len(kept) > 1 and (not math.isfinite(losses[-1]) or losses[-1] > 10 * usual) and len(restored) < 10:
            steps, states = kept[-2]
            for each, state in zip((run.model, run.optimizer, run.scheduler), states, strict=True):
                each.load_state_dict(copy.deepcopy(state))
            kept, losses = kept[:-1], losses[:-1]
            restored.append(steps)
    return Outcome(run.final_loss(), tuple(restored))


WAYS: Mapping[str, Callable[[Run, Fault], Outcome]] = {
    "nothing": nothing,
    "leaving updates out": watched(on_nonfinite="skip"),
    '`clip="auto"`': watched(clip="auto"),
    "PaLM's recipe by hand": palm,
    "`recover=`": recover,
}


def is_sick(outcome: Outcome) -> bool:
    """Return whether a snapshot was restored that was taken after the fault."""
    return any(steps > FAULT for steps in outcome.restored)
