"""Make the tables of docs/clipping.md: regret to the oracle, and what else each way costs and saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.clipping.programs import CLEAN, FAULTS, MODELS, RATES, STEPS
from benchmarks.clipping.results import Runs, Setting
from benchmarks.clipping.train import Outcome
from benchmarks.clipping.ways import SCORED
from benchmarks.pages import write_between

PAGE = Path("docs/clipping.md")
BEST = "oracle"
DRAWS = 1000

Best = Mapping[tuple[Setting, str], str]
Pair = tuple[Setting, str]
Array = NDArray[np.float64]


def outcomes(runs: Runs, best: Best, way: str, pair: Pair) -> list[Outcome]:
    """Return the outcomes of a way in a (setting, condition); ``oracle`` is the norm chosen for it."""
    setting, condition = pair
    return runs[setting, best[pair] if way == BEST else way, condition]


def complete(runs: Runs, best: Best, ways: Sequence[str]) -> list[Pair]:
    """Return each (setting, condition) of which all ways and the oracle are known."""
    return [
        (setting, condition)
        for setting, condition in best
        if all((setting, way, condition) in runs for way in (*ways, best[setting, condition]))
    ]


def losses(runs: Runs, best: Best, way: str, pairs: Sequence[Pair]) -> Array:
    """Return (pairs, seeds) final losses; a run that diverged counts with the loss of the untrained model."""
    return np.array([[each.counted for each in outcomes(runs, best, way, pair)] for pair in pairs])


def regret(mine: Array, oracle: Array) -> Array:
    """Return (pairs,) how much larger the mean loss over seeds is than the oracle's, as a share of that."""
    return mine.mean(-1) / oracle.mean(-1) - 1


def interval(figure: Callable[[Array, Array], float], pairs: int, seeds: int) -> tuple[float, float]:
    """Return the 95 % interval of a figure: pairs are drawn again, and in each of them its seeds.

    Args:
        figure: (places of pairs, (pairs, seeds) places of seeds) → the figure of that draw.
        pairs: how many there are.
        seeds: how many each has.
    """
    generator = np.random.default_rng(0)
    drawn = [
        figure(generator.integers(pairs, size=pairs), generator.integers(seeds, size=(pairs, seeds)))
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_regret(runs: Runs, best: Best, way: str, pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Return the mean regret of a way over pairs, and its interval."""
    mine, oracle = (losses(runs, best, each, pairs) for each in (way, BEST))

    def drawn(rows: Array, seeds: Array) -> float:
        return float(
            regret(np.take_along_axis(mine[rows], seeds, 1), np.take_along_axis(oracle[rows], seeds, 1)).mean()
        )

    return float(regret(mine, oracle).mean()), *interval(drawn, *mine.shape)


def share(runs: Runs, best: Best, way: str, pairs: Sequence[Pair], of: Callable[[Outcome], float]) -> tuple[float, ...]:
    """Return the mean of a figure of outcomes over pairs and seeds, and its interval."""
    values = np.array([[of(each) for each in outcomes(runs, best, way, pair)] for pair in pairs], dtype=float)

    def drawn(rows: Array, seeds: Array) -> float:
        return float(np.take_along_axis(values[rows], seeds, 1).mean())

    return float(values.mean()), *interval(drawn, *values.shape)


def sensitivity(runs: Runs, best: Best, way: str, pairs: Sequence[Pair]) -> tuple[float, ...]:
    """Return how much the loss over all rates is above that of the best rate (Wortsman et al. 2023, arXiv:2309.14322).

    Of clean runs: the mean over rates of loss / loss of the oracle's best rate − 1, over models and optimizers.
    """
    groups = [
        [(Setting(model, optimizer, rate), CLEAN) for rate in rates]
        for model in MODELS
        for optimizer, rates in RATES.items()
    ]
    whole = [group for group in groups if all(pair in pairs for pair in group)]
    mine, oracle = (np.array([losses(runs, best, each, group) for group in whole]) for each in (way, BEST))

    def figure(rows: Array, seeds: Array) -> float:
        places = seeds[:, None, :]
        means, bests = (np.take_along_axis(each[rows], places, 2).mean(-1) for each in (mine, oracle))
        return float((means / bests.min(1, keepdims=True) - 1).mean())

    groups_, _, seeds_ = mine.shape
    everything = np.broadcast_to(np.arange(seeds_), (groups_, seeds_))
    return figure(np.arange(groups_), everything), *interval(figure, groups_, seeds_)


def healthy(runs: Runs, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the clean pairs of which no run diverges without clipping."""
    return [
        (setting, condition)
        for setting, condition in pairs
        if condition == CLEAN and not any(each.diverged for each in runs[setting, "none", CLEAN])
    ]


def hurt(runs: Runs, best: Best, way: str, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the healthy pairs in which a way is worse than no clipping by more than the seeds differ.

    That is: in the mean over seeds by more than the standard deviation of the loss over seeds without clipping.
    """
    found = []
    for pair in healthy(runs, pairs):
        mine, free = (losses(runs, best, each, [pair])[0] for each in (way, "none"))
        if mine.mean() - free.mean() > free.std(ddof=1):
            found.append(pair)
    return found


def page(runs: Runs, best: Best, ways: Sequence[str] = SCORED) -> str:
    """Return the part of the page that is measured."""
    pairs = complete(runs, best, ways)
    seeds = len(runs[pairs[0][0], "none", pairs[0][1]])
    total = sum(len(each) for each in runs.values())
    covered = {f"{setting.model} under {setting.optimizer}": None for setting, _ in pairs}
    is_whole = len(covered) == len(MODELS) * len(RATES)
    so_far = "" if is_whole else f" Measured so far: {', '.join(covered)}."
    return "\n\n".join(
        [
            f"{len(pairs)} settings, each with {seeds} seeds that the oracle has not seen; {total} runs of {STEPS} "
            f"updates. In brackets: 95 % intervals, by drawing settings and seeds anew.{so_far}",
            _summary(runs, best, ways, pairs),
            _by_condition(runs, best, ways, pairs),
            _others(runs, best, ways, pairs),
        ]
    )


def _summary(runs: Runs, best: Best, ways: Sequence[str], pairs: Sequence[Pair]) -> str:
    rows = ["| way | mean regret | worst setting | healthy settings made worse | diverged |", "|---|---|---|---|---|"]
    kept = len(healthy(runs, pairs))
    for way in (BEST, *ways):
        worst = regret(losses(runs, best, way, pairs), losses(runs, best, BEST, pairs)).max()
        cells = [
            way, _percent(*mean_regret(runs, best, way, pairs)), f"{worst:.0%}".replace("%", " %"),
            f"{len(hurt(runs, best, way, pairs))} of {kept}",
            _percent(*share(runs, best, way, pairs, lambda each: each.diverged)),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _by_condition(runs: Runs, best: Best, ways: Sequence[str], pairs: Sequence[Pair]) -> str:
    known = [name for name in (CLEAN, *FAULTS) if any(pair[1] == name for pair in pairs)]
    rows = [f"| mean regret | {' | '.join(known)} |", f"|---|{'---|' * len(known)}"]
    for way in ways:
        cells = []
        for name in known:
            some = [pair for pair in pairs if pair[1] == name]
            mean = regret(*(losses(runs, best, each, some) for each in (way, BEST))).mean()
            cells.append(f"{mean:.1%}".replace("%", " %"))
        rows.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _others(runs: Runs, best: Best, ways: Sequence[str], pairs: Sequence[Pair]) -> str:
    faulty = [pair for pair in pairs if pair[1] != CLEAN]
    well = healthy(runs, pairs)
    rows = [
        "| way | sensitivity to the rate | healthy steps clipped | spike score | steps to recover |",
        "|---|---|---|---|---|",
    ]
    for way in (BEST, *ways):
        recovery = share(runs, best, way, faulty, lambda each: float(each.recovery or 0))
        cells = [
            way, _percent(*sensitivity(runs, best, way, pairs)),
            _percent(*share(runs, best, way, well, lambda each: each.clipped)),
            _percent(*share(runs, best, way, pairs, lambda each: each.spikes), digits=2),
            f"{recovery[0]:.1f} [{recovery[1]:.1f}, {recovery[2]:.1f}]",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _percent(value: float, low: float, high: float, digits: int = 1) -> str:
    return f"{value:.{digits}%} [{low:.{digits}%}, {high:.{digits}%}]".replace("%", " %")


def write(text: str, name: str = "measured") -> None:
    """Put the text between the markers of that name in the page."""
    write_between(PAGE, (f"<!-- {name}: begin -->", f"<!-- {name}: end -->"), text)
