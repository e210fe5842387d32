"""Follow the calls of one function of torch for everyone who asks, through one wrapper.

The wrapper is there while anybody listens, and gone when the last listener stops. Arguments, results and exceptions
stay as they are. Others may wrap the same function in between: then ours stays inside theirs, and does nothing.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gradwatch.fork_safety import ForkSafeLock
from gradwatch.hooks.guard import Guard, observing

__all__ = ["FollowedFunction"]

Enter = Callable[[tuple[Any, ...], dict[str, Any]], Any]
Leave = Callable[[Any, Any, bool], object]


class _Listener(NamedTuple):
    """Two bound methods of one object, which this keeps nobody from letting go."""

    enter: weakref.WeakMethod[Enter]
    leave: weakref.WeakMethod[Leave] | None


class FollowedFunction:
    """A function of another library, and those who listen to its calls.

    A call within a call, on the same thread, belongs to the outer one and is not told.

    Args:
        owner: the module or class that holds the function.
        name: the function's name there.
        hides: whether the compiler is told to pass the wrapper by, for which it is loaded. Otherwise code that is
            compiled takes in the function itself, and nobody is told of its calls.

    Attributes:
        guard: takes the faults of telling, as long as one wrapper is there.
    """

    def __init__(self, owner: Any, name: str, *, hides: bool = True) -> None:
        self._owner, self._name, self._hides = owner, name, hides
        self._lock = ForkSafeLock()
        self._listeners: list[_Listener] = []
        self._wrappers: dict[Any, Any] = {}  # wrapper of ours that may still be called → what it wraps
        self._thread = threading.local()
        self.guard = Guard()

    def listen(self, enter: Enter, leave: Leave | None = None) -> Callable[[], None]:
        """Call ``leave(enter(args, kwargs), result, has_failed)`` around each call.

        Both are methods of one object, which is held weakly. Neither may raise. An object that begins to listen while
        a call begins hears that very call.

        Returns:
            A function that ends it. Calling it again does nothing.
        """
        forget = lambda _: self._drop(None)
        listener = _Listener(weakref.WeakMethod(enter, forget), None if leave is None else weakref.WeakMethod(leave))
        with self._lock:
            if getattr(self._owner, self._name) not in self._wrappers:
                self._wrap()
            self._listeners.append(listener)
        return lambda: self._drop(listener)

    def _drop(self, listener: _Listener | None) -> None:
        """Drop ``listener``, and those whose object is gone."""
        with self._lock:
            # a call that is being told goes on with the list that it has
            self._listeners = [each for each in self._listeners if each is not listener and each.enter() is not None]
            if not self._listeners:
                self._unwrap()

    def _wrap(self) -> None:
        original = getattr(self._owner, self._name)
        self.guard = Guard()
        begin, end, hides = self._begin, self._end, self._hides
        if self._hides:
            # code that is compiled calls the function outside of its graphs, and would compile these functions
            begin, end = torch.compiler.disable(begin), torch.compiler.disable(end)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not hides and torch.compiler.is_compiling():
                return original(*args, **kwargs)
            if not self._listeners or getattr(self._thread, "is_within", False):
                return original(*args, **kwargs)
            self.guard.step += 1
            tokens = begin(args, kwargs) or []
            result, has_failed = None, True
            try:
                result = original(*args, **kwargs)
                has_failed = False
                return result
            finally:
                self._thread.is_within = False
                end(tokens, result, has_failed)

        if self._hides:
            torch.compiler.disable(wrapper, recursive=False)
        self._wrappers[wrapper] = original
        setattr(self._owner, self._name, wrapper)

    def _unwrap(self) -> None:
        """Put back what ours has wrapped, unless somebody else's wrapper is around it."""
        while (current := getattr(self._owner, self._name)) in self._wrappers:
            setattr(self._owner, self._name, self._wrappers.pop(current))

    @observing("telling that a function is called")
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Leave, Any]]:
        self._thread.is_within = True
        tokens: list[tuple[Leave, Any]] = []
        for listener in self._listeners:  # one that joins meanwhile is met, too
            enter, leave = listener.enter(), None if listener.leave is None else listener.leave()
            token = None if enter is None else enter(args, kwargs)
            if leave is not None:
                tokens.append((leave, token))
        return tokens

    @observing("telling that a function has returned")
    def _end(self, tokens: list[tuple[Leave, Any]], result: Any, has_failed: bool) -> None:
        for leave, token in reversed(tokens):
            leave(token, result, has_failed)
