"""Attack gradwatch from outside: ``python -m benchmarks.endurance [attack ...] [--share 0.1] [--seed N] [--write]``.

Each attack prints its seed, what it did, and what gave way. The exit status is 1 if a figure does not hold. With
``--write`` the figures go into docs/reliability.md, attack by attack; only whole attacks are written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.endurance.figure import Attack, Figure
from benchmarks.pages import write_between

PAGE = Path("docs/reliability.md")
MARKERS = "<!-- endurance: begin -->", "<!-- endurance: end -->"
RESULTS = Path("benchmarks/endurance/measured.json")
ATTACKS = {
    "kill": "kills",
    "same": "same",
    "faults": "faults",
    "forks": "forks",
    "files": "files",
    "soak": "soak",
    "surroundings": "surroundings",
}
"""The module of each attack, in the order of the page. Each has a function ``attack``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attacks; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="attack", help=f"which of {', '.join(ATTACKS)}; all, if none")
    parser.add_argument("--share", type=float, default=1.0, help="share of the whole size, from 0 to 1")
    parser.add_argument("--seed", type=int, help="the seed of a run that is to be made again")
    parser.add_argument("--write", action="store_true", help=f"write the figures into {PAGE}")
    options = parser.parse_args(arguments)
    unknown = set(options.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"expected attacks out of {', '.join(ATTACKS)}, got {', '.join(sorted(unknown))}")
    if options.write and options.share != 1:
        parser.error("expected --share 1 beside --write: only whole attacks are written")
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    held = True
    for name in options.attacks or ATTACKS:
        made = attacked(name, options.share, seed)
        held &= all(figure["holds"] for figure in made["figures"])
        if options.write:
            write(name, made)
    return 0 if held else 1


def attacked(name: str, share: float, seed: int) -> dict[str, Any]:
    """Make one attack, print each figure as soon as it is known, and return them."""
    attack: Attack = importlib.import_module(f"benchmarks.endurance.{ATTACKS[name]}").attack
    print(f"{name}, seed {seed}", flush=True)
    begin, figures = time.perf_counter(), []
    for figure in attack(share, seed):
        figures.append(figure)
        print(f"  {said(figure)}", flush=True)
    return {"seed": seed, "minutes": (time.perf_counter() - begin) / 60, "figures": [asdict(each) for each in figures]}


def said(figure: Figure) -> str:
    """Return a figure as a line for the terminal."""
    return f"{'holds' if figure.holds else 'FAILS'}  {figure.what}: {figure.reached} (asked: {figure.asked})"


def write(name: str, made: Mapping[str, Any]) -> None:
    """Keep what one attack reached, and write the page anew."""
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known[name] = made
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, MARKERS, table(known))


def table(known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the Markdown table of all that was measured so far."""
    rows = ["| attack | what was done | asked | reached |", "|---|---|---|---|"]
    for name in (each for each in ATTACKS if each in known):
        for each in known[name]["figures"]:
            reached = each["reached"] if each["holds"] else f"**{each['reached']}**"
            rows.append(f"| {name} | {each['what']} | {each['asked']} | {reached} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
