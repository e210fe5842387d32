"""Run ``python -m benchmarks.external bare|watched|table``: see README.md beside this file."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.external import results, table
from benchmarks.external.execute import ROOT, Outcome, Places, run_bare, run_watched
from benchmarks.external.program import External
from benchmarks.external.programs import PROGRAMS
from benchmarks.external.prove import is_proven


def main() -> None:
    """Do what the command line asks for."""
    options = _options()
    if options.what == "table":
        table.write(options.repositories)
        return
    is_bare = options.what == "bare"
    path = options.results or (results.BARE if is_bare else results.FIRST)
    done = set() if options.again else set(results.rows(path))
    chosen = [program for program in PROGRAMS if _is_chosen(program, options.only) and program.name not in done]
    if not is_bare:
        chosen = _proven(chosen)
    places = Places(options.repositories.resolve(), options.scratch.resolve(), options.python.absolute())
    places.scratch.mkdir(parents=True, exist_ok=True)
    commit = _commit()

    def execute(program: External) -> None:
        outcome = (run_bare if is_bare else run_watched)(program, places, options.limit)
        _log(places, program, outcome)
        if is_bare:
            results.append_bare(path, program.name, outcome)
        else:
            results.append_watched(path, program.name, outcome, commit)
        kinds = " ".join(sorted({finding["kind"] for finding in outcome.findings}))
        print(f"{program.name}: status {outcome.status}, {outcome.seconds} s {kinds}", flush=True)

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(execute, chosen))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.external", description=__doc__)
    parser.add_argument("what", choices=["bare", "watched", "table"])
    parser.add_argument("--repositories", type=Path, required=True, help="the folder that holds OWNER/NAME of each")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "gradwatch-external")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="has torch and what programs import")
    parser.add_argument("--results", type=Path, default=None, help="JSON lines, in place of those that are committed")
    parser.add_argument("--again", action="store_true", help="also run programs that the results hold already")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a program")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None, help="beginnings of names")
    return parser.parse_args()


def _is_chosen(program: External, only: list[str] | None) -> bool:
    runs = not program.not_run and not program.cannot_show
    return runs and (only is None or any(program.name.startswith(name) for name in only))


def _proven(programs: list[External]) -> list[External]:
    """Return the programs whose bare run shows what is claimed of them."""
    bare = results.bare_runs()
    return [program for program in programs if program.name in bare and is_proven(program, bare[program.name])]


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=False
    )  # fmt: skip
    return found.stdout.strip()


def _log(places: Places, program: External, outcome: Outcome) -> None:
    file = places.scratch / f"{program.name.replace('/', '-')}.log"
    file.write_text(outcome.output, encoding="utf-8")


if __name__ == "__main__":
    main()
