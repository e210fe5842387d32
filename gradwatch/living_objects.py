"""Search all living objects of the process for those of a class: the only room that does."""

from __future__ import annotations

import gc
from typing import TypeVar

__all__ = ["living"]

T = TypeVar("T")


def living(kind: type[T]) -> list[T]:
    """Return every living object of ``kind`` or of a subclass that the garbage collector knows.

    It takes some 10 ms for each 100,000 objects of the process, and a program may have millions: search rarely.
    """
    things = gc.get_objects()
    kinds = {each for each in set(map(type, things)) if issubclass(each, kind)}  # few, where things are many
    return [thing for thing in things if type(thing) in kinds]  # isinstance would ask proxies, and lazy modules
