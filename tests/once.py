"""Make something that takes long once, whichever processes of pytest-xdist ask for it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def made_once(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """Return what ``make(directory)`` returns: plain values. One process makes it, while others wait.

    Args:
        temporary: pytest's own directories.
        name: of the directory that ``make`` is given, for this run of the tests.
        make: is called once. If it raises, the next process tries again, in the same directory.
    """
    own = temporary.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    directory.mkdir(exist_ok=True)
    made = directory / "made.json"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_text(json.dumps(make(directory)), encoding="utf-8")
    return json.loads(made.read_text(encoding="utf-8"))
