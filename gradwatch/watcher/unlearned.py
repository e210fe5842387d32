"""Say in one line each, once a run is over, which weights had no gradient, and which belong to no optimizer.

Neither is a finding by itself: heads that a task leaves unused, experts that no token was sent to and backbones under a
linear probe are healthy. Who did not mean it reads it here. What a finding says already is not said again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gradwatch.detect.wording import names_of
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Ownership, StepReport

__all__ = ["ReachedLayers", "notes_on"]

SAMPLES = 10  # sampled updates before a weight without a gradient is mentioned


class ReachedLayers:
    """Which layers had a gradient other than zero at any sampled update.

    Attributes:
        reached: (P,) bool.
        samples: how many updates were looked at.
    """

    def __init__(self, count: int) -> None:
        self.reached: NDArray[np.bool_] = np.zeros(count, dtype=bool)
        self.samples = 0

    def add(self, report: StepReport) -> None:
        """Take in one step; only sampled ones count, so that others cost nothing."""
        if report.sampled:
            self.samples += 1
            self.reached |= (report.grad_norm > 0) | (report.nonfinite > 0)


def notes_on(
    layers: Layers,
    held: Iterable[int],
    reached: ReachedLayers,
    ownership: Ownership | None,
    told: Collection[str] = (),
) -> Iterator[str]:
    """Yield one sentence or two for each of the two groups that is not empty.

    Args:
        layers: the table.
        held: columns that watched optimizers hold.
        reached: which of them had gradients.
        ownership: as it was looked up last; None where it never was.
        told: names of layers of which a finding says it.
    """
    yield from _without_gradients(layers, held, reached, told)
    unowned = [] if ownership is None else _untold(layers, np.flatnonzero(ownership.unowned).tolist(), told)
    if unowned:
        yield (
            f"{len(unowned)} of {len(layers)} parameters get gradients, but no optimizer holds them: "
            f"{_names(layers, unowned)}. Give them to one; or, if they are to stay as they are, call "
            "requires_grad_(False), which saves their gradients."
        )


def _without_gradients(
    layers: Layers, held: Iterable[int], reached: ReachedLayers, told: Collection[str]
) -> Iterator[str]:
    """Yield one sentence where some layers never had a gradient, or where none had in a run too short for a finding."""
    columns = [column for column in sorted(held) if layers.tensors[column].requires_grad]
    without = _untold(layers, [column for column in columns if not reached.reached[column]], told)
    samples = reached.samples
    if samples >= SAMPLES and 0 < len(without) < len(columns):
        yield (
            f"{len(without)} of {len(columns)} parameters had no gradient other than zero at any of {samples} sampled "
            f"updates: {_names(layers, without)}. They do not learn (unused, detached, or multiplied by zero)."
        )
    elif 0 < samples < SAMPLES and len(without) == len(columns) > 0:
        yield (
            f"No parameter had a gradient other than zero at any of {samples} sampled updates: the loss does not reach "
            "the model, or a function before it is flat. Nothing can learn so."
        )


def _untold(layers: Layers, columns: Iterable[int], told: Collection[str]) -> list[int]:
    return [column for column in columns if layers.names[column] not in told]


def _names(layers: Layers, columns: Iterable[int]) -> str:
    return names_of([layers.names[column] for column in columns])
