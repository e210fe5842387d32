"""Find the models that an optimizer's parameters belong to, and what the program calls them.

The models are the outermost modules that hold the parameters, among all modules that are alive.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from types import FrameType
from typing import Any

from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.living_objects import living
from gradwatch.measure.layers import submodules

__all__ = ["caller_outside", "model_name", "roots_of", "tensor_names"]

_ANY_MODEL = {"model", "module", "net", "network"}  # arguments of a function that trains whatever it is given


def roots_of(parameters: Sequence[Tensor]) -> tuple[list[nn.Module], list[Tensor]]:
    """Return the fewest outermost modules that hold ``parameters``, and the parameters that no module holds.

    The module that holds the most of the parameters comes first, then the module that holds the most of the rest, and
    so on. Of two that hold the same (a model, and a wrapper beside it) the older one is taken.
    """
    left = {id(parameter) for parameter in parameters}
    held = _held_by_roots(left)
    roots = []
    while left and held:
        root, mine = max(held, key=lambda pair: len(pair[1] & left))
        if not mine & left:
            break
        roots.append(root)
        left -= mine
    return roots, [parameter for parameter in parameters if id(parameter) in left]


def _held_by_roots(wanted: AbstractSet[int]) -> list[tuple[nn.Module, set[int]]]:
    """Return the outermost modules, each with the ids of those ``wanted`` parameters that it holds."""
    modules = living(nn.Module)
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in _torch.modules_set_so_far(module).values():
            parents.setdefault(id(child), []).append(module)
    held: dict[int, tuple[nn.Module, set[int]]] = {}
    for module in modules:
        mine = wanted & {id(parameter) for parameter in _torch.parameters_set_so_far(module).values()}
        for root in _outermost(module, parents) if mine else ():
            held.setdefault(id(root), (root, set()))[1].update(mine)
    return list(held.values())


def model_name(model: nn.Module, frame: FrameType) -> str:
    """Return the class of ``model``; for a class of torch, which says little, the variable around ``frame``."""
    model = next(submodules(model))[1]  # under its wrappers
    kind = type(model)
    if not kind.__module__.startswith("torch."):
        return kind.__name__
    names = list(_names_of(model, frame))
    return next((name for name in names if name not in _ANY_MODEL), names[0] if names else kind.__name__)


def tensor_names(tensors: Sequence[Tensor], frame: FrameType) -> dict[str, Tensor]:
    """Return ``tensors`` by the variables that hold them in ``frame`` or around it, else numbered."""
    named: dict[str, Tensor] = {}
    for number, tensor in enumerate(tensors):
        name = next(_names_of(tensor, frame), f"parameter_{number}")
        named[name if name not in named else f"{name}_{number}"] = tensor
    return named


def _outermost(module: nn.Module, parents: dict[int, list[nn.Module]]) -> list[nn.Module]:
    """Return the modules above ``module`` that no module holds; ``module`` itself if there is only a cycle above it."""
    found, seen, above = [], set(), [module]
    while above:
        one = above.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        holders = parents.get(id(one), [])
        above += holders
        if not holders:
            found.append(one)
    return found or [module]


def _names_of(thing: object, frame: FrameType) -> Iterator[str]:
    """Yield the names of variables, and of attributes of ``self``, that hold ``thing``, from ``frame`` outwards."""
    at: FrameType | None = frame
    while at is not None:
        variables: dict[str, Any] = dict(at.f_locals)
        own = getattr(variables.get("self"), "__dict__", {})
        yield from (name for name, value in [*variables.items(), *own.items()] if value is thing and name != "self")
        at = at.f_back


def caller_outside(*packages: str) -> FrameType:
    """Return the innermost frame of the stack that runs none of ``packages``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in packages:
        frame = frame.f_back
    return frame
