"""The form of a sick program: the four arguments of ``gradwatch.prescribe``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True, eq=False)
class Form:
    """The arguments of ``prescribe``. No two forms are equal, since the batches of each were drawn for it."""

    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    batches: list[tuple[Any, Any]]
    loss_fn: Callable[[Any, Any], Tensor]


class Named(Protocol):
    """A sick program: a name, the kind of its fault, and whether nothing was tuned on it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str | None: ...
    @property
    def is_measured(self) -> bool: ...


@runtime_checkable
class Formed(Protocol):
    """A program that makes its form by itself."""

    def form(self, seed: int) -> Form | str:
        """Return its form under a seed, or why it has none."""
