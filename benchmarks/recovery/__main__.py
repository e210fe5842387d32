"""Faults × ways × seeds: ``python -m benchmarks.recovery [--seeds 5] [--healthy 1] [--write]``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import gradwatch
from benchmarks.pages import write_between
from benchmarks.recovery.programs import IMPOSSIBLE, RECOVERABLE, healthy_run, none
from benchmarks.recovery.ways import WAYS, Outcome, is_sick, nothing

PAGE = Path("docs/recovery.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
WITHIN = 1.02
"""Times the loss of the run without a fault, up to which a run counts as recovered."""

Outcomes = dict[tuple[str, str], list[tuple[Outcome, float]]]


def measure(seeds: int) -> Outcomes:
    """Return {(fault, way): the outcome and the faultless loss of each seed}."""
    found: Outcomes = {}
    for seed in range(seeds):
        faultless = nothing(healthy_run(seed), none).loss
        for name, fault in {**RECOVERABLE, **IMPOSSIBLE}.items():
            for way, run in WAYS.items():
                found.setdefault((name, way), []).append((run(healthy_run(seed), fault), faultless))
    return found


def has_recovered(outcome: Outcome, faultless: float) -> bool:
    """Return whether a run ends within 2 % of the faultless loss."""
    return math.isfinite(outcome.loss) and outcome.loss <= WITHIN * faultless


def table(found: Outcomes, faults: Sequence[str], seeds: int) -> str:
    """Return how many runs of each fault recover, and their worst loss beside the faultless one."""
    rows = [f"| fault | {' | '.join(WAYS)} |", f"|---|{'---|' * len(WAYS)}"]
    for fault in faults:
        cells = []
        for way in WAYS:
            ends = found[fault, way]
            recovered = sum(has_recovered(*end) for end in ends)
            worst = max(
                outcome.loss / faultless if math.isfinite(outcome.loss) else math.inf for outcome, faultless in ends
            )
            gave_up = sum(outcome.gave_up for outcome, _ in ends)
            cells.append(f"gave up {gave_up} of {seeds}" if gave_up else f"{recovered} of {seeds} (× {worst:.3g})")
        rows.append(f"| {fault.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _ratio(outcome: Outcome, faultless: float) -> float:
    return outcome.loss / faultless if math.isfinite(outcome.loss) else math.inf


def rewound(limit: int, seconds: float) -> tuple[int, int, list[str]]:
    """Return how many healthy programs of the detection benchmark ran, updates left out in them, and who went back."""
    from benchmarks.detection import faulty, healthy, others  # noqa: F401  they register themselves
    from benchmarks.detection.bare import start
    from benchmarks.detection.program import PROGRAMS

    until, ran, left_out, who = time.perf_counter() + seconds, 0, 0, []
    for name, program in list(PROGRAMS.items()):
        if program.kind is not None or ran >= limit or time.perf_counter() > until:
            continue
        training = start(program, 0)
        watcher = gradwatch.watch(training.model, training.optimizers, recover=gradwatch.Rewind())
        try:
            for number in range(training.steps):
                training.step(number, watcher.observe_loss)
        except gradwatch.RecoveryError:
            who.append(name)
        actions = watcher._loop.recovery.actions
        watcher.close()
        ran, left_out = ran + 1, left_out + sum("left out" in action for action in actions)
        who += [name] if any("went back" in action for action in actions) else []
    return ran, left_out, who


def cost(pairs: int) -> tuple[float, float]:
    """Return milliseconds of a watched step without and with ``recover=``: medians of interleaved pairs."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(pairs):
        for is_on in (False, True) if pair % 2 else (True, False):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256))
            optimizer = torch.optim.AdamW(model.parameters())
            inputs = torch.randn(64, 256)
            with gradwatch.watch(model, optimizer, recover=gradwatch.Rewind() if is_on else None):
                begin = 0.0
                for step in range(210):
                    if step == 10:
                        begin = time.process_time()
                    model(inputs).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                times[is_on].append((time.process_time() - begin) / 200 * 1e3)
    middle = {is_on: sorted(values)[len(values) // 2] for is_on, values in times.items()}
    return middle[False], middle[True]


def page(found: Outcomes, seeds: int, healthy: tuple[int, int, list[str]], costs: tuple[float, float]) -> str:
    """Return the part of the page that is measured."""
    ours = [end for fault in RECOVERABLE for end in found[fault, "`recover=`"]]
    sick = sum(is_sick(outcome) for outcome, _ in ours)
    recovered = sum(has_recovered(*end) for end in ours)
    ran, left_out, who = healthy
    names = f" ({', '.join(who)})" if who else ""
    return "\n\n".join(
        [
            table(found, [*RECOVERABLE, *IMPOSSIBLE], seeds),
            f"Each cell: of {seeds} seeds, the runs that end within 2 % of the loss of the run without the fault, and "
            "the worst loss as a multiple of that. "
            f"Under `recover=` {recovered} of {len(ours)} runs with a fault that can be mended recover; "
            f"{sick} sick snapshots were restored. Of {ran} healthy programs of `benchmarks/detection` (one seed) "
            f"{len(who)} went back{names}; {left_out} of their updates were left out.",
            f"Where nothing happens, a step of a small perceptron (256–512–256, AdamW, CPU) takes {costs[0]:.2f} ms of "
            f"processor time watched, and {costs[1]:.2f} ms with `recover=Rewind()`: medians of interleaved pairs.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and with ``--write`` put the result into docs/recovery.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--healthy", type=int, default=1000, help="healthy programs at most")
    parser.add_argument("--healthy-seconds", type=float, default=3600, help="time for them at most")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    found = measure(options.seeds)
    print(table(found, [*RECOVERABLE, *IMPOSSIBLE], options.seeds), flush=True)
    costs = cost(10)
    text = page(found, options.seeds, rewound(options.healthy, options.healthy_seconds), costs)
    print(text)
    if options.write:
        write_between(PAGE, (BEGIN, END), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
