"""Runs programs, each in a child of this process, which has loaded the large packages once for all of them.

A line on standard input is a directory with a ``page.py`` in it. What that prints goes to ``output.txt`` beside it, and
its exit status is the answer on standard output.
"""

import os
import runpy
import signal
import sys

import lightning.pytorch  # noqa: F401
import torch  # noqa: F401

SECONDS = 600  # a page takes seconds, more on a busy machine; one that hangs is ended


def become(directory: str) -> None:
    """Run the page of a directory in this process, as ``python page.py`` does there."""
    signal.alarm(SECONDS)
    os.chdir(directory)
    with open("output.txt", "wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv, sys.path[0] = ["page.py"], directory
    runpy.run_path("page.py", run_name="__main__")


for line in sys.stdin:
    if (child := os.fork()) == 0:
        become(line.rstrip("\n"))
        break  # the child ends as any program does, with what is registered for its end
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
