"""Know which tests take long, by measurement: ``slow_tests.txt`` beside this file, which ``make quick`` leaves out.

A line names a test function. If it ends in "but one", the first set of parameters stays among the quick tests. To
measure anew, on a machine that does nothing else::

    python -m pytest --no-cov -p no:xdist --junitxml=report.xml
    python -m tests.slow_tests report.xml
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

FILE = Path(__file__).with_suffix(".txt")
BUT_ONE = " but one"
LONG = 0.2  # seconds for all sets of parameters: what takes less is, all together, the half of a minute
FEW = 3  # as many sets of parameters or more leave one to the quick tests, unless that one alone takes long


def slow_functions() -> dict[str, bool]:
    """Return the names of slow tests, without parameters, and whether their first set of parameters is quick."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return {line.removesuffix(BUT_ONE): line.endswith(BUT_ONE) for line in lines}


def lines_of(seconds: dict[str, list[float]]) -> Iterator[str]:
    """Yield the lines of the file: ``seconds`` of each function, one for each set of parameters."""
    for name, times in sorted(seconds.items()):
        if sum(times) >= LONG:
            leaves_one = len(times) >= FEW and sum(times) / len(times) < LONG
            yield name + BUT_ONE * leaves_one


def main(report: str) -> None:
    """Write the file from what pytest has measured; tests that are marked in their own files are in it, too."""
    seconds = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        seconds[f"{file}::{case.get('name', '').partition('[')[0]}"].append(float(case.get("time", 0)))
    FILE.write_text("".join(f"{line}\n" for line in lines_of(seconds)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
