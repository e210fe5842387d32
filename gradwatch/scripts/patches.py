"""Has a function of someone else's tell when it is called.

Enters: its owner and name. Leaves: what puts it back. Signatures, results and exceptions stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["after", "around", "before"]

Function = Callable[..., Any]


def around(owner: Any, name: str, make: Callable[[Function], Function]) -> Callable[[], None]:
    """Puts what ``make`` makes of ``owner.name`` in its place.

    Returns:
        What puts it back.
    """
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))
    return lambda: setattr(owner, name, original)


def before(owner: Any, name: str, tell: Callable[..., object]) -> Callable[[], None]:
    """``tell(its arguments)``, then the call."""

    def make(original: Function) -> Function:
        def told(*args: Any, **kwargs: Any) -> Any:
            tell(*args, **kwargs)
            return original(*args, **kwargs)

        return told

    return around(owner, name, make)


def after(owner: Any, name: str, tell: Callable[..., object]) -> Callable[[], None]:
    """The call, then ``tell(its arguments, result=…)``."""

    def make(original: Function) -> Function:
        def told(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            tell(*args, **kwargs, result=result)
            return result

        return told

    return around(owner, name, make)
