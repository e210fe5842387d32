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
from benchmarks.clipping.train import UNCLIPPED, Copy, Outcome, make, outcome, train
from benchmarks.clipping.ways import NORMS, ORACLE, SCORED

SEARCHED, RESULTS = Path("benchmarks/clipping/searched.jsonl"), Path("benchmarks/clipping/scored.jsonl")
SEARCH_SEEDS, SCORED_SEEDS = (100, 101), (0, 1, 2, 3, 4)
FAULTY = {"SGD": (1,), "AdamW": (1,), "Muon": ()}
"""Optimizer → places of the rates at which faults are tried, from 0: the last one below the edge of stability."""
ORDER = ("MLP", "RNN that copies", "LSTM", "ResNet", "character GPT")
"""Models, the quick ones first."""


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


Row = dict[str, Any]
Runs = dict[tuple[Setting, str, str], list[Outcome]]
"""(setting, way, condition) → the outcome of each seed."""


def settings() -> list[Setting]:
    """Return all settings in the order in which they are measured: what is slow, Muon, comes last."""
    pairs = [(model, name) for model in ORDER for name in ("SGD", "AdamW")] + [
        (model, "Muon") for model in ORDER if "Muon" in RATES
    ]
    return [Setting(model, optimizer, rate) for model, optimizer in pairs for rate in RATES[optimizer]]


def read(path: Path) -> Runs:
    """Return the results so far."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return runs_of(json.loads(line) for line in lines)


def runs_of(rows: Iterable[Row]) -> Runs:
    """Return the outcomes that lines of JSON hold."""
    runs: Runs = {}
    for row in rows:
        setting = Setting(row["model"], row["optimizer"], row["rate"])
        for condition, found in row["conditions"].items():
            columns = zip(*found.values())
            runs[setting, row["way"], condition] = [
                Outcome(*(math.inf if each is None and name == "loss" else each for name, each in zip(found, values)))
                for values in columns
            ]
    return runs


def row_of(setting: Setting, way: str, found: Mapping[str, Sequence[Outcome]]) -> Row:
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


def measure(seconds: float) -> None:
    """Measure what is missing, in two processes, for about so many seconds; add the results of each pair at once."""
    searched, scored = read(SEARCHED), read(RESULTS)
    pairs = dict.fromkeys((each.model, each.optimizer) for each in settings())
    work = [pair for pair in pairs if _is_open(pair, searched, scored)]
    end = time.perf_counter() + seconds
    with multiprocessing.get_context("spawn").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done, (pair, *found) in enumerate(pool.imap_unordered(_pair, work), 1):
            for path, rows in zip((SEARCHED, RESULTS), found):
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            print(f"{done} of {len(work)}: {', '.join(pair)}", flush=True)
            if time.perf_counter() > end:
                pool.terminate()
                return


def _pair(pair: tuple[str, str]) -> tuple[tuple[str, str], list[Row], list[Row]]:
    """Return what is missing of one model and optimizer: the search for the oracle, and the scored runs."""
    searched, scored = read(SEARCHED), read(RESULTS)
    of_search = run(_missing(pair, searched, dict.fromkeys(settings(), ORACLE)), SEARCH_SEEDS)
    searched |= runs_of(of_search)
    return pair, of_search, run(_missing(pair, scored, _to_score(searched)), SCORED_SEEDS)


def _is_open(pair: tuple[str, str], searched: Runs, scored: Runs) -> bool:
    ways = _missing(pair, searched, dict.fromkeys(settings(), ORACLE)) or _missing(pair, scored, _to_score(searched))
    return bool(ways)


def _to_score(searched: Runs) -> dict[Setting, Sequence[str]]:
    """Return setting → all ways that are scored, and the norms that the oracle has chosen."""
    oracle = chosen(searched)
    return {
        setting: (*SCORED, *(oracle[setting, each] for each in setting.conditions if (setting, each) in oracle))
        for setting in settings()
    }


def _missing(pair: tuple[str, str], known: Runs, wanted: Mapping[Setting, Sequence[str]]) -> dict[Setting, list[str]]:
    """Return setting → ways that are not known yet, of one model and optimizer."""
    found = {
        setting: list(dict.fromkeys(way for way in ways if (setting, way, CLEAN) not in known))
        for setting, ways in wanted.items()
        if (setting.model, setting.optimizer) == pair
    }
    return {setting: ways for setting, ways in found.items() if ways}


def run(missing: Mapping[Setting, Sequence[str]], seeds: Sequence[int]) -> list[Row]:
    """Train all seeds of the ways of each setting of one model, and return a line for each way of each."""
    copies: dict[Copy, Sequence[str]] = {}
    for setting, ways in missing.items():
        for way in dict.fromkeys((UNCLIPPED, *ways)):  # others follow unclipped runs while they can
            for seed in seeds:
                one = make(setting.model, setting.optimizer, setting.rate, way, seed)
                copies[one] = setting.conditions
    found: dict[tuple[float, str], dict[str, list[Outcome]]] = {}
    for one in train(next(iter(missing)).model, copies) if missing else ():
        found.setdefault((one.rate, one.name), {}).setdefault(one.condition, []).append(outcome(one))
    return [row_of(setting, way, found[setting.rate, way]) for setting, ways in missing.items() for way in ways]


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


def forget(way: str) -> None:
    """Drop the scored results of one way, which has changed."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines(keepends=True)
    RESULTS.write_text("".join(line for line in lines if json.loads(line)["way"] != way), encoding="utf-8")
