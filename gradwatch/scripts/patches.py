"""Patch a function of another library so that it reports its calls.

Signatures, results and exceptions stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["after", "around", "before"]

Function = Callable[..., Any]


def around(owner: Any, name: str, make: Callable[[Function], Function]) -> Callable[[], None]:
    """Replace the function ``owner.name`` by ``make`` of it.

    Returns:
        A function that puts the original back.
    """
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))
    return lambda: setattr(owner, name, original)


def before(owner: Any, name: str, tell: Callable[..., object]) -> Callable[[], None]:
    """Have ``tell`` called with the arguments before each call, see ``around``."""

    def make(original: Function) -> Function:
        def patched(*args: Any, **kwargs: Any) -> Any:
            tell(*args, **kwargs)
            return original(*args, **kwargs)

        return patched

    return around(owner, name, make)


def after(owner: Any, name: str, tell: Callable[..., object]) -> Callable[[], None]:
    """Have ``tell`` called with the arguments and ``result=`` after each call, see ``around``."""

    def make(original: Function) -> Function:
        def patched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            tell(*args, **kwargs, result=result)
            return result

        return patched

    return around(owner, name, make)
