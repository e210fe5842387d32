"""Train random programs bare and watched, and compare every bit of what they leave, and the memory that they take.

A program that differs is shrunk to the fewest parts that still differ, and printed. To run it again:
``python -m benchmarks.endurance.same 'what was printed'``.
"""

from __future__ import annotations

import collections
import functools
import logging
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.endurance.figure import Figure, at_least_one
from benchmarks.endurance.peak import WORKLOADS, growths
from benchmarks.endurance.processes import tried
from benchmarks.endurance.programs.program import Program, drawn, shrunk
from benchmarks.endurance.programs.training import run

PROGRAMS = 1000
LIMIT = 1.10
SHRUNK = 5  # of the programs that differ, how many are shrunk: the first are the likeliest to be of one kind


def attack(share: float, seed: int) -> Iterator[Figure]:
    """Run programs bare and watched, then a few with large activations."""
    prepare()
    count = at_least_one(share, PROGRAMS)
    seen: collections.Counter[str] = collections.Counter()
    unequal: list[int] = []
    for (number,), result, how in tried(functools.partial(compared_number, seed), [(each,) for each in range(count)]):
        said, differences = result or ([], [how])
        seen.update(said)
        if differences:
            unequal.append(number)
            report(drawn(seed, number), differences, shrinks=len(unequal) <= SHRUNK)
    what = (
        f"{count:,} random programs, bare and watched: weights, states, losses, gradients, random numbers, own state, "
        f"order of calls ({seen['has a finding']:,} with findings, {seen['observed']:,} of them with an observed "
        f"origin; {seen['differs from itself']} left out that differ bare from bare)"
    )
    yield Figure(what, "0 unequal", f"{len(unequal)} unequal", not unequal)
    yield memory_figure(share)


def prepare() -> None:
    """Make this process one that can be forked: it has loaded torch, and has no second thread."""
    torch.set_num_threads(1)
    logging.getLogger("torch._dynamo").setLevel(logging.CRITICAL)  # what it says of the user's state


def memory_figure(share: float) -> Figure:
    """Return the figure of memory."""
    some = WORKLOADS[: max(2, at_least_one(share, len(WORKLOADS)))]
    found = growths(some)
    for name, growth in found.items():
        if growth > LIMIT:
            print(f"    {name}: peak memory {growth - 1:+.1%}", flush=True)
    worst = max(found, key=lambda name: found[name])
    words = f"{found[worst] - 1:+.1%} at most ({worst})"
    return Figure(f"{len(found)} programs of large activations: peak memory", "+10 %", words, found[worst] <= LIMIT)


def compared_number(seed: int, number: int) -> tuple[list[str], list[str]]:
    """Return what ``compared`` does of the program of this number."""
    return compared(drawn(seed, number))


def compared(program: Program) -> tuple[list[str], list[str]]:
    """Return what watching ``program`` has shown, and by what it differs from a bare run."""
    bare, _ = run(program, watched=False)
    watched, said = run(program, watched=True)
    differences = [name for name in bare if bare[name] != watched[name]]
    if differences:
        again, _ = run(program, watched=False)
        if again != bare:  # some of TorchScript's graphs are optimised while they run
            return ["a program", "differs from itself"], []
    faults = [line for line in said if line and not line.startswith("found ")]
    findings = [line for line in said if line.startswith("found ")]
    shown = ["a program"] + ["has a finding"] * bool(findings)
    shown += ["observed"] * any("Observed:" in line for line in findings)
    return shown, differences + faults


def report(program: Program, differences: Sequence[str], *, shrinks: bool) -> None:
    """Print a program that differs, and the smallest part of it that does."""
    smallest = shrunk(program, differs) if shrinks else program
    print(f"    differs by {', '.join(differences)}\n    {program}\n    smallest: {smallest}", flush=True)


def differs(program: Program) -> bool:
    """Return whether ``program`` differs, in a process of its own, which may hang or die."""
    (only,) = tried(compared, [(program,)])
    return only.result is None or bool(only.result[1])


if __name__ == "__main__":
    prepare()
    for _text in sys.argv[1:]:
        print("\n".join(compared(Program.of(_text))[1]) or "equal")
