"""``Rewind``: what a run may do to save itself, as the user writes it down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["COOLDOWN", "Rewind", "Stateful", "with_state"]

COOLDOWN = 10
"""Snapshots' worth of healthy steps that end a lowered rate: 500 steps by default, as far as PaLM skipped ahead."""


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved and restored: a scheduler, a scaler, a loader."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Go back to a state."""
        ...


@dataclass(frozen=True)
class Rewind:
    """How a run goes back to an earlier, healthy state of itself: ``gradwatch.watch(…, recover=Rewind())``.

    An update whose gradients or loss are not finite is left out. If that is not enough, or if gradients explode, the
    run goes back to a snapshot that has stayed healthy for ``confirm`` steps after it was taken. docs/recovery.md
    says what a snapshot holds.

    Attributes:
        every: steps between two snapshots.
        keep: snapshots that are kept, 2 or more: while the newest waits to be confirmed, an older one must be there.
        confirm: healthy steps after which a snapshot may be restored.
        skip: batches that are left out after going back, by the loader in ``state``; 0 leaves out those of the sick
            steps.
        lr_factor: the learning rates are multiplied by this after going back, for ``10 * every`` healthy steps.
        max_times: how often the run may go back before it has been healthy for ``20 * every`` steps.
        state: further objects with ``state_dict`` and ``load_state_dict``: scheduler, scaler,
            ``gradwatch.RewindableLoader``.
        path: a folder for the snapshots, as files; None keeps them in the memory of the CPU.

    Raises:
        TypeError, ValueError: for a value that makes no sense, naming it, what was found and what to do.

    References:
        Chowdhery et al., "PaLM", 2022, section 5.1: the run was restarted about 100 steps before a spike of the loss,
        and 200 to 500 batches were skipped.

    Examples:
        >>> Rewind(every=100, confirm=30).cooldown
        1000
    """

    every: int = 50
    keep: int = 3
    confirm: int = 20
    skip: int = 0
    lr_factor: float = 0.5
    max_times: int = 3
    state: Sequence[Stateful] = ()
    path: str | Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("keep", 2), ("confirm", 1), ("skip", 0), ("max_times", 1)):
            _refuse_unless_count(name, getattr(self, name), least)
        factor: object = self.lr_factor
        if not isinstance(factor, Real) or isinstance(factor, bool) or not 0 < float(factor) <= 1:
            raise ValueError(f"Rewind(lr_factor={factor!r}): expected a factor above 0, and 1 at most.")
        object.__setattr__(self, "state", _listed(self.state))
        if self.skip and not any(hasattr(each, "leave_out") for each in self.state):
            raise ValueError(
                f"Rewind(skip={self.skip}): no object in state can leave batches out. Wrap the loader: "
                "loader = gradwatch.RewindableLoader(loader), and add it to state. Without it the batches since the "
                "snapshot are not seen again, so that skip=0 is right."
            )
        path: object = self.path
        if path is not None and not isinstance(path, str | Path):
            raise TypeError(f"Rewind(path={path!r}): expected the path of a folder, or None.")

    @property
    def cooldown(self) -> int:
        """Healthy steps after which a lowered rate returns."""
        return COOLDOWN * self.every


def with_state(plan: Rewind | None, found: Sequence[object]) -> Rewind | None:
    """Return ``plan`` with those of the objects that an integration has ``found``, have a state, and are not in it."""
    if plan is None:
        return None
    known = set(map(id, plan.state))
    added = [each for each in found if isinstance(each, Stateful) and id(each) not in known]
    return replace(plan, state=(*plan.state, *added))


def _refuse_unless_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"Rewind({name}={value!r}): expected a whole number, {least} or more.")


def _listed(state: object) -> tuple[Stateful, ...]:
    """
    Raises:
        TypeError: for what is no sequence of objects with a state.
    """
    if isinstance(state, Stateful):
        raise TypeError(f"Rewind(state=…): expected a sequence, found one {type(state).__name__}. Write state=(it,).")
    if not isinstance(state, Sequence):
        raise TypeError(f"Rewind(state={state!r}): expected a sequence of objects.")
    for each in state:
        if not isinstance(each, Stateful):
            raise TypeError(
                f"Rewind(state=…): {type(each).__name__} has no state_dict and load_state_dict. A DataLoader of torch "
                "has neither: wrap it in gradwatch.RewindableLoader."
            )
    return tuple(state)
