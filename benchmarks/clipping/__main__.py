"""Measure all ways and write the tables: ``python -m benchmarks.clipping measure|table``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.clipping import plot, results, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clipping", description=__doc__)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("--seconds", type=float, default=1e9, help="break off after about so many; go on another time")
    parser.add_argument("--again", nargs="*", default=[], help="with measure: ways whose results are dropped first")
    parser.add_argument(
        "--write", action="store_true", help="with table: put it into docs/clipping.md, and draw its picture"
    )
    options = parser.parse_args(arguments)
    if options.what == "measure":
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
