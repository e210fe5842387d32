"""Keep results as lines of JSON, one for each model, optimizer, rate and way, so that a run goes on where it was."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.clipping.programs import CLEAN, FAULTS, RATES
from benchmarks.clipping.train import UNCLIPPED, Outcome, make, outcome, train
from benchmarks.clipping.ways import NORMS, ORACLE, SCORED

SEARCHED, RESULTS = Path("benchmarks/clipping/searched.jsonl"), Path("benchmarks/clipping/scored.jsonl")
SEARCH_SEEDS, SCORED_SEEDS = (100, 101), (0, 1, 2, 3, 4)
FAULTY = {"SGD": (1, 2), "AdamW": (1, 2), "Muon": (1,)}
"""Optimizer → places of the rates at which faults are tried, from 0. Muon takes twice as long as the others."""
ORDER = ("MLP", "RNN that copies", "LSTM", "ResNet", "character GPT")


@dataclass(frozen=True, order=True)
class Setting:
    """One model under one optimizer at one rate."""

    model: str
    optimizer: str
    rate: float

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return what happens to its runs."""
        has_faults = RATES[self.optimizer].index(self.rate) in FAULTY[self.optimizer]
        return (CLEAN, *(FAULTS if has_faults else ()))


Runs = dict[tuple[Setting, str, str], list[Outcome]]
"""(setting, way, condition) → the outcome of each seed."""


def settings() -> list[Setting]:
    """Return all settings, those that are quick first."""
    return [Setting(model, optimizer, rate) for model in ORDER for optimizer in RATES for rate in RATES[optimizer]]


def read(path: Path) -> Runs:
    """Return the results so far."""
    runs: Runs = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        setting = Setting(row["model"], row["optimizer"], row["rate"])
        for condition, found in row["conditions"].items():
            columns = zip(*found.values())
            runs[setting, row["way"], condition] = [
                Outcome(*(math.inf if each is None and name == "loss" else each for name, each in zip(found, values)))
                for values in columns
            ]
    return runs


def row_of(setting: Setting, way: str, found: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Return the line of JSON for the outcomes of each condition; a loss that is not finite is null."""
    fields = ("loss", "start", "clipped", "spikes", "recovery")
    columns = {
        condition: {name: [_short(getattr(each, name)) for each in outcomes] for name in fields}
        for condition, outcomes in found.items()
    }
    base = {"model": setting.model, "optimizer": setting.optimizer, "rate": setting.rate, "way": way}
    return {**base, "conditions": columns}


def _short(value: float | int | None) -> float | int | None:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


Work = tuple[Setting, tuple[str, ...], tuple[int, ...]]


def go_on(path: Path, wanted: Iterable[tuple[Setting, str]], seeds: Sequence[int], seconds: float) -> None:
    """Run what is not in ``path`` yet, in two processes, for about so many seconds; add each result at once."""
    known = {key[:2] for key in read(path)}
    open_ways: dict[Setting, list[str]] = {}
    for setting, way in wanted:
        if (setting, way) not in known and way not in open_ways.setdefault(setting, []):
            open_ways[setting].append(way)
    work: list[Work] = [(setting, tuple(ways), tuple(seeds)) for setting, ways in open_ways.items() if ways]
    end = time.perf_counter() + seconds
    with multiprocessing.get_context("spawn").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done, rows in enumerate(pool.imap_unordered(run, work), 1):
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            print(f"{done} of {len(work)}: {rows[0]['model']}, {rows[0]['optimizer']}, {rows[0]['rate']}", flush=True)
            if time.perf_counter() > end:
                pool.terminate()
                return


def run(work: Work) -> list[dict[str, Any]]:
    """Train all seeds of the ways of one setting, and return a line for each way."""
    setting, ways, seeds = work
    everyone = dict.fromkeys((UNCLIPPED, *ways))  # the others follow the unclipped runs as long as they can
    copies = [make(setting.model, setting.optimizer, setting.rate, way, seed) for way in everyone for seed in seeds]
    found: dict[str, dict[str, list[Outcome]]] = {}
    for one in train(setting.model, copies, setting.conditions):
        found.setdefault(one.name, {}).setdefault(one.condition, []).append(outcome(one))
    return [row_of(setting, way, found[way]) for way in ways]


def search(seconds: float) -> None:
    """Run all fixed norms on the search seeds."""
    go_on(SEARCHED, [(setting, way) for setting in settings() for way in ORACLE], SEARCH_SEEDS, seconds)


def chosen(searched: Runs) -> dict[tuple[Setting, str], str]:
    """Return {(setting, condition): the fixed norm of the lowest mean loss on the search seeds}; the larger of two."""
    best: dict[tuple[Setting, str], str] = {}
    for setting in settings():
        for condition in setting.conditions:
            losses = {
                way: fmean(each.counted for each in searched[setting, way, condition])
                for way in reversed(ORACLE)
                if (setting, way, condition) in searched
            }
            if len(losses) == len(NORMS):
                best[setting, condition] = min(losses, key=losses.__getitem__)
    return best


def score(seconds: float) -> None:
    """Run each way, and the norms that the oracle has chosen, on the scored seeds."""
    oracle = chosen(read(SEARCHED))
    wanted = [
        (setting, way)
        for setting in settings()
        for way in (*SCORED, *(oracle[setting, each] for each in setting.conditions if (setting, each) in oracle))
    ]
    go_on(RESULTS, wanted, SCORED_SEEDS, seconds)


def forget(way: str) -> None:
    """Drop the scored results of one way, which has changed."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines(keepends=True)
    RESULTS.write_text("".join(line for line in lines if json.loads(line)["way"] != way), encoding="utf-8")
