"""A process that has imported torch and starts programs as copies of itself: ``python forks.py MODULE…``.

Importing torch and keras takes longer than most of the programs. This process imports them once. It reads one line of
JSON a program from standard input, writes the number of the copy's process, and then its exit status.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Import what the command line names, and serve."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        task = json.loads(line)
        copy = os.fork()
        if copy == 0:
            os._exit(_become(task))
        print(copy, flush=True)
        _, status = os.waitpid(copy, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(task: dict[str, Any]) -> int:
    """Run the program that ``task`` describes, in this copy, as ``python`` would; return its exit status."""
    output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, number)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background ignore it
    os.chdir(task["folder"])
    os.environ.update(task["variables"])
    status = _run(task["arguments"], task["variables"]["PYTHONPATH"].split(os.pathsep))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _run(arguments: list[str], paths: list[str]) -> int:
    is_module = arguments[0] == "-m"
    target, *rest = arguments[1:] if is_module else arguments
    sys.argv = [target, *rest]
    sys.path[:] = [os.getcwd(), *paths, *sys.path[1:]]
    try:
        importlib.import_module("sitecustomize")
        if is_module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(Path(target).absolute()), run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # as python prints it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
