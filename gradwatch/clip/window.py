"""Remember the latest figures of a run on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradwatch.clip.policy import State

__all__ = ["Window"]


class Window:
    """The figures of the latest steps, float64 on the device; NaN in place of a figure that was not finite.

    Args:
        size: of how many steps.
        figures: how many each step has.
        owner: the policy that remembers them, for messages.

    Attributes:
        count: steps so far.
    """

    VERSION = 1

    def __init__(self, size: int, figures: int, owner: str) -> None:
        self.count = 0
        self._shape, self._owner = (size, figures), owner
        self._rows: Tensor | None = None

    def add(self, row: Tensor) -> None:
        """Add the (figures,) of a step; the oldest step makes room."""
        rows = self.rows(row)
        rows[self.count % len(rows)] = torch.where(torch.isfinite(row), row, torch.nan)
        self.count += 1

    def rows(self, like: Tensor) -> Tensor:
        """Return (size, figures) on the device of ``like``, in no order; NaN where there is no figure."""
        if self._rows is None:
            self._rows = torch.full(self._shape, torch.nan, dtype=like.dtype, device=like.device)
        return self._rows

    def state(self) -> State:
        """Return a copy of the figures, the count of steps, and the version; for checkpoints."""
        known: State = {} if self._rows is None else {"rows": self._rows.clone()}
        return {"version": self.VERSION, "count": self.count, **known}

    def restore(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from what ``state`` returned.

        Raises:
            ValueError: where it is something else.
        """
        count, rows = state.get("count"), state.get("rows")
        fits = rows is None or (isinstance(rows, Tensor) and rows.shape == self._shape)
        if state.get("version") != self.VERSION or not isinstance(count, int) or not fits:
            raise ValueError(
                f"expected the latest {self._shape[0]} steps of clip={self._owner}, version {self.VERSION}, found "
                f"{sorted(state)} of version {state.get('version')!r}. Resume without this state: they begin anew."
            )
        self.count, self._rows = count, rows.clone() if isinstance(rows, Tensor) else None
