"""Programs × seeds × tools: ``python -m benchmarks.detection.run --half tune|measured|all|others [--write]``.

Every program runs three times a seed: bare (the proof), watched by gradwatch with its losses, and without; and once
more with the rivals listening. A verdict is one tool's word on one run, beside what the proof says.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.detection.table import OURS, SILENT


@dataclass(frozen=True)
class Verdict:
    """What one tool said of one run.

    Attributes:
        program, seed, kind, also, half: of the program.
        onset, layers, first_nonfinite: of its proof.
        tool: who speaks.
        alarms: (kind, layer, raised at) in order.
        is_proven: whether the label held; runs whose label does not are shown, not counted.
        steps: updates of the run.
    """

    program: str
    seed: int
    kind: str | None
    also: tuple[str, ...]
    half: str
    onset: int
    layers: tuple[str, ...]
    first_nonfinite: int | None
    tool: str
    alarms: tuple[tuple[str, str, int], ...]
    is_proven: bool
    steps: int


def judge(task: tuple[str, int, bool]) -> list[Verdict] | str:
    """Every tool's word on one program under one seed, or why there is none."""
    try:
        return _judge(*task)
    except Exception:  # one program that raises must not cost the others' verdicts
        return f"{task[0]} seed {task[1]} raised:\n{traceback.format_exc()}"


def _judge(name: str, seed: int, with_rivals: bool) -> list[Verdict]:
    import torch

    from benchmarks.detection import faulty, healthy, others  # noqa: F401  they register themselves
    from benchmarks.detection.bare import run_bare
    from benchmarks.detection.program import PROGRAMS
    from benchmarks.detection.prove import prove

    torch.set_num_threads(1)
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    program = PROGRAMS[name]
    bare = run_bare(program, seed)
    proof = prove(program, bare)
    said = {OURS: watched(program, seed, True), SILENT: watched(program, seed, False)}
    if with_rivals:
        from benchmarks.detection.rivals import run_rival

        for rival, alarms in run_rival(program, seed).items():
            said[rival] = [(alarm.kind, alarm.layer, alarm.step) for alarm in alarms]
    return [
        Verdict(
            name, seed, program.kind, program.also, program.half, proof.onset, proof.layers,
            proof.first_nonfinite, tool, tuple(alarms), proof.holds, len(bare.loss),
        )
        for tool, alarms in said.items()
    ]  # fmt: skip


def watched(program, seed: int, with_loss: bool) -> list[tuple[str, str, int]]:
    """(kind, layer, raised at) of every finding, as it is raised."""
    import gradwatch
    from benchmarks.detection.bare import start

    training = start(program, seed)
    alarms: list[tuple[str, str, int]] = []

    def hear(finding: gradwatch.Finding) -> None:
        alarms.append((finding.kind, finding.layer, finding.raised_step))

    with gradwatch.watch(training.model, training.optimizers, find_loss=with_loss, on_finding=hear) as watcher:
        for number in range(training.steps):
            training.step(number, watcher.observe_loss if with_loss else lambda loss: None)
    return alarms


def verdicts(names: Sequence[str], seeds: Sequence[int], with_rivals: bool) -> Iterator[list[Verdict] | str]:
    """What ``judge`` says of all programs named, two at a time."""
    tasks = [(name, seed, with_rivals) for name in names for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1)) as pool:
        yield from pool.imap(judge, tasks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints the tables, and with ``--write`` puts them into docs/detection.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection.run", description=__doc__)
    parser.add_argument("--half", choices=["tune", "measured", "all", "others"], default="tune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--only", nargs="*", default=None, help="names of programs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/detection.jsonl"))
    parser.add_argument("--write", action="store_true", help="write the tables into docs/detection.md")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    from benchmarks.detection import faulty, healthy, others, table  # noqa: F401  they register themselves
    from benchmarks.detection.program import PROGRAMS

    halves = ("tune", "measured") if options.half == "all" else (options.half,)
    of_halves = [name for name, program in PROGRAMS.items() if program.half in halves]
    names = of_halves if options.only is None else [name for name in PROGRAMS if name in options.only]
    begin = time.perf_counter()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    collected: list[Verdict] = []
    raised = []
    with options.out.open("w") as file:
        for said in verdicts(names, range(options.seeds), not options.no_rivals):
            if isinstance(said, str):
                raised.append(said)
                continue
            collected += said
            file.writelines(json.dumps(asdict(verdict)) + "\n" for verdict in said)
            file.flush()
    print(table.complaints(collected))
    page = table.tables(collected)
    print(page)
    print("\n".join(raised), file=sys.stderr)
    print(f"{len(names)} programs × {options.seeds} seeds in {time.perf_counter() - begin:.0f} s")
    if options.write:
        table.write(page, Path("docs/detection.md"))
    return 1 if raised else 0


if __name__ == "__main__":
    sys.exit(main())
