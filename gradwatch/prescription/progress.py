"""Show a progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["bar"]


@contextmanager
def bar() -> Iterator[Callable[[float], None]]:
    """Yield a function to be called with the share that is done, from 0 to 1."""
    state = random.getstate()
    from rich.console import Console
    from rich.progress import Progress

    random.setstate(state)  # rich draws from it as it is imported
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("trying remedies", total=1.0)
        yield lambda share: progress.update(task, completed=share)
