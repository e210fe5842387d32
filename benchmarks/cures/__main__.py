"""Run ``python -m benchmarks.cures search|measure|table``: see each module."""

from __future__ import annotations

import argparse


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cures", description=__doc__)
    parser.add_argument("what", choices=["search", "measure", "table"])
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="break off after about so many; go on by another run"
    )
    parser.add_argument("--half", choices=["tune", "measured", "all"], default="measured")
    parser.add_argument("--only", nargs="*", default=None, help="names of programs")
    options = parser.parse_args()
    if options.what == "search":
        from benchmarks.cures.search import search

        search(options.seconds, options.half, options.only)
    elif options.what == "measure":
        from benchmarks.cures.measure import measure

        measure(options.seconds, options.half, options.only)
    else:
        from benchmarks.cures.table import write

        write()


if __name__ == "__main__":
    main()
