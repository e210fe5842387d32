"""Gather layers into the modules that hold them, where there are more layers than lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LayerGroup", "groups_of"]


@dataclass(frozen=True)
class LayerGroup:
    """Some layers.

    Attributes:
        name: of the only layer; of the module, with how many layers it has; or of the first and last of neighbours.
        places: (N,) of its layers among all.
    """

    name: str
    places: NDArray[np.int64]


def groups_of(names: Sequence[str], most: int) -> list[LayerGroup]:
    """Return at most ``most`` groups that hold all layers, in the order in which their first layers come.

    A group is a module, all of them at the deepest level of the module tree at which there are few enough. If even
    the outermost modules are too many, neighbours are put together.

    Args:
        names: of the layers, from input to output.
        most: one or more.
    """
    deepest = max((name.count(".") + 1 for name in names), default=0)
    for level in range(deepest, 0, -1):
        modules = [".".join(name.split(".")[:level]) for name in names]
        if len(set(modules)) <= most:
            grouped = _places_of(modules)
            return [LayerGroup(_named(module, names, places), places) for module, places in grouped.items()]
    stretches = np.array_split(np.arange(len(names)), most)
    return [LayerGroup(_from_to(names, places), places) for places in stretches if len(places)]


def _places_of(modules: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return the places of the layers of each module, given the module of each layer."""
    places: dict[str, list[int]] = {}
    for place, module in enumerate(modules):
        places.setdefault(module, []).append(place)
    return {module: np.array(each) for module, each in places.items()}


def _named(module: str, names: Sequence[str], places: NDArray[np.int64]) -> str:
    return names[places[0]] if len(places) == 1 else f"{module} ({len(places)} layers)"


def _from_to(names: Sequence[str], places: NDArray[np.int64]) -> str:
    first, last = names[places[0]], names[places[-1]]
    return first if len(places) == 1 else f"{first} … {last}"
