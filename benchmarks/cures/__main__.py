"""Run ``python -m benchmarks.cures search|measure|table``: see each module."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.cures.collection import OWN, Collection, of_others
from benchmarks.external.execute import Places


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cures", description=__doc__)
    parser.add_argument("what", choices=["search", "measure", "table"])
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="break off after about so many; go on by another run"
    )
    parser.add_argument("--half", choices=["tune", "measured", "all"], default="measured")
    parser.add_argument("--only", nargs="*", default=None, help="names of programs")
    parser.add_argument("--programs", choices=["own", "external"], default="own")
    parser.add_argument(
        "--repositories", type=Path, help="of external programs: the folder that holds OWNER/NAME of each"
    )
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "gradwatch-external")
    options = parser.parse_args()
    if options.what == "search":
        from benchmarks.cures.search import search

        search(_collection(options), options.seconds, options.half, options.only)
    elif options.what == "measure":
        from benchmarks.cures.measure import measure

        measure(_collection(options), options.seconds, options.half, options.only)
    else:
        from benchmarks.cures.table import write

        write()


def _collection(options: argparse.Namespace) -> Collection:
    if options.programs == "own":
        return OWN
    if options.repositories is None:
        raise SystemExit("expected --repositories with the folder of the cloned repositories")
    places = Places(options.repositories.resolve(), options.scratch.resolve(), Path(sys.executable).absolute())
    return of_others(places)


if __name__ == "__main__":
    main()
