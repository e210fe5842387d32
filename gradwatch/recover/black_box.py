"""The black box: what ``gradwatch.watch(black_box=…)`` is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BlackBox", "black_box_of"]


@dataclass(frozen=True)
class BlackBox:
    """Keep the last steps, and write them to a file once one fails, so that ``gradwatch replay`` can run it again.

    Batches are kept by reference. The file is written at a finding of severity ``error``, at an exception that leaves
    the loop, and by ``watcher.black_box.write()``. It holds the batches, random state, figures and weights, and no
    names of users or machines.

    Args:
        path: the file. A run that fails again writes beside it, ``NAME.step-1234.pt``, at most four files in all; ranks
            other than the first write ``NAME.rank-1.pt``.
        steps: how many steps are kept.
        identify: called with the positional arguments and the keyword arguments of each call of the model, as a tuple
            and a dict; what it returns is kept in place of them. Such a file can be shown, and not replayed.
        copy_state: copy weights, buffers and optimizers to the CPU before each step. Without it they are in the file as
            they were before the failed step if its update can wait (on the CPU, with ``on_nonfinite`` of ``"skip"`` or
            ``"raise"``), or was left out; else as they are afterwards.
        most_bytes: the size beyond which no file is written. What the optimizers keep is left out first.

    Raises:
        TypeError, ValueError: for a value that makes no sense, naming it.

    Examples:
        >>> box = gradwatch.BlackBox("failed-step.pt", steps=2)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> watcher = gradwatch.watch(model, optimizer, black_box=box)
        >>> watcher.close()
    """

    path: str | Path
    steps: int = 4
    identify: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None
    copy_state: bool = False
    most_bytes: int = 8 * 2**30

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path) or not Path(self.path).name:
            raise TypeError(f"BlackBox(path={self.path!r}): expected the path of a file.")
        for name in ("steps", "most_bytes"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"BlackBox({name}={value!r}): expected a whole number, 1 or more.")
        if self.identify is not None and not callable(self.identify):
            raise TypeError(f"BlackBox(identify={self.identify!r}): expected a function or None.")


def black_box_of(given: BlackBox | str | Path | None) -> BlackBox | None:
    """Return the black box that the keyword ``black_box`` asks for; None where it asks for none.

    Raises:
        TypeError: for a value of another type.
    """
    if given is None or isinstance(given, BlackBox):
        return given
    if isinstance(given, str | Path):
        return BlackBox(given)
    raise TypeError(f"black_box={given!r}: expected a path, gradwatch.BlackBox(…) or None.")
