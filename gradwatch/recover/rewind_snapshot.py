"""One snapshot of a run: all that it goes on from, on the CPU or in a file."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.recover.random_state import RandomState, accelerators_of, random_state
from gradwatch.recover.rewind import Stateful
from gradwatch.recover.training_state import TrainingState, training_state

__all__ = ["Snapshot", "read_snapshot", "take_snapshot", "write_snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """All that a run goes on from, as it was after a step.

    Attributes:
        steps: steps that the run had made.
        training: weights, buffers and optimizers.
        random: the random state.
        state: of each further object.
        learned: what gradwatch had learned, as numbers, strings and tensors.
    """

    steps: int
    training: TrainingState
    random: RandomState
    state: Sequence[Any]
    learned: Mapping[str, Any]

    def restore_(
        self, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer], state: Sequence[Stateful]
    ) -> None:
        """Put everything back but what gradwatch had learned; the random state last, for the others may draw from it.

        Raises:
            ValueError: before anything has changed, where the model or an optimizer is another one.
        """
        self.training.restore_(models, optimizers)
        for each, saved in zip(state, self.state, strict=True):
            each.load_state_dict(copy.deepcopy(saved))  # schedulers keep what they are given
        self.random.restore()

    @property
    def is_finite(self) -> bool:
        """Return whether weights, buffers and what the optimizers keep are finite."""
        return all(map(_is_finite, _tensors_in(self.training.as_plain())))

    def as_plain(self) -> dict[str, Any]:
        """Return the snapshot as ``torch.load(weights_only=True)`` accepts it."""
        return {
            "steps": self.steps,
            **self.training.as_plain(),
            "random": self.random.as_plain(),
            "state": list(self.state),
            "learned": dict(self.learned),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot that ``as_plain`` was called on.

        Raises:
            KeyError, TypeError, ValueError: for something else.
        """
        random = RandomState.from_plain(plain["random"])
        return cls(plain["steps"], TrainingState.from_plain(plain), random, plain["state"], plain["learned"])


def take_snapshot(
    steps: int,
    models: Mapping[str, nn.Module],
    optimizers: Sequence[Optimizer],
    state: Sequence[Stateful],
    learned: Mapping[str, Any],
) -> Snapshot:
    """Copy everything to the CPU. Waits for the device.

    Args:
        steps: steps that the run has made.
        models: {name: module}.
        optimizers: all that update them.
        state: further objects.
        learned: as for ``Snapshot``.
    """
    devices = accelerators_of(parameter for model in models.values() for parameter in model.parameters())
    return Snapshot(
        steps=steps,
        training=training_state(models, optimizers),
        random=random_state(devices),
        state=[copy.deepcopy(each.state_dict()) for each in state],
        learned=learned,
    )


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a file that is whole or not there at all, whenever the process or the machine stops.

    Raises:
        OSError: where it cannot be written; no half of it is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(snapshot.as_plain(), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def read_snapshot(path: Path) -> Snapshot:
    """Return the snapshot in a file. Nothing is executed by loading it.

    Raises:
        OSError: where there is no such file.
        ValueError: where the file holds no snapshot.
    """
    try:
        plain = torch.load(path, map_location="cpu", weights_only=True)
        return Snapshot.from_plain(plain)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: expected a snapshot of gradwatch, found a file that cannot be read as one."
        ) from error


def _tensors_in(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors_in(part)]


def _is_finite(tensor: Tensor) -> bool:
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return not is_number or bool(torch.isfinite(tensor).all())
