"""Show on a terminal how the time is spent and what is tried; show nothing elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["bar"]


@contextmanager
def bar(seconds: float) -> Iterator[Callable[[float, str], None]]:
    """Yield a function to be called with the share that is done, from 0 to 1, and with what is tried now.

    The clock beside the bar moves all the time, however long a trial takes.

    Args:
        seconds: that there are.
    """
    state = random.getstate()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    random.setstate(state)  # rich draws from it as it is imported

    class Clock(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.elapsed or 0:.0f} of {seconds:g} s")

    console = Console(stderr=True)
    columns = Clock(), BarColumn(bar_width=24), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("training the untreated model", total=1.0)
        yield lambda share, name: progress.update(task, completed=share, description=f"trying {name}")
