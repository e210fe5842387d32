"""Measure all ways, write the tables, time the policies: ``python -m benchmarks.clipping measure|table|cost``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.clipping import cost, plot, results, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clipping", description=__doc__)
    parser.add_argument("what", choices=["measure", "table", "cost"])
    parser.add_argument("--seconds", type=float, default=1e9, help="break off after about so many; go on another time")
    parser.add_argument("--again", nargs="*", default=[], help="with measure: ways whose results are dropped first")
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/clipping.md; with table also draw its picture"
    )
    parser.add_argument("--rounds", type=int, default=120, help="with cost: steps of each way")
    options = parser.parse_args(arguments)
    if options.what == "cost":
        text = cost.table(options.rounds)
        print(text)
        if options.write:
            table.write(text, "cost")
    elif options.what == "measure":
        for way in options.again:
            results.forget(way)
        results.measure(options.seconds)
    else:
        text = table.page(results.read(results.RESULTS), results.chosen(results.read(results.SEARCHED)))
        print(text)
        if options.write:
            table.write(text)
            plot.draw(results.read(results.RESULTS), results.chosen(results.read(results.SEARCHED)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
