"""Listen to the outermost calls of many modules, at no price for the calls within them.

Each call that is listened to is one frame deeper, and Python counts frames. A model of 200 modules within each other
would not run any more if each of them were listened to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from gradwatch.hooks.guard import Guard, observing
from gradwatch.hooks.module_calls import Enter, Leave, listen

__all__ = ["Listener", "OutermostCalls"]

_HEARING = "listening to the outermost calls"


class Listener(NamedTuple):
    """A listener of one module.

    Attributes:
        module: the one to listen to.
        leave: called after it, with what ``enter`` has returned and the output.
        hears_inner: also within the call of another module.
    """

    module: nn.Module
    leave: Leave
    hears_inner: bool = False


class OutermostCalls:
    """Listeners of several modules, most of which step aside while a module around them is called.

    Args:
        listeners: at most one a module.
        enter: called before each call that is heard.
        guard: takes the faults of listening itself.
        also_without_grad: also hear calls under ``no_grad``.

    Attributes:
        guard: as given.
    """

    def __init__(
        self, listeners: Iterable[Listener], enter: Enter, guard: Guard, *, also_without_grad: bool = False
    ) -> None:
        self._listeners = {id(each.module): each for each in listeners}
        self.guard = guard
        self._enter, self._also_without_grad = enter, also_without_grad
        self._stops: dict[int, Callable[[], None]] = {}
        self._aside: list[Listener] = []
        self._under_way: int | None = None  # the module of the outermost call
        for each in self._listeners.values():
            self._listen(each)

    def __bool__(self) -> bool:
        """Return True if any module is listened to."""
        return bool(self._stops or self._aside)

    def remove(self) -> None:
        """Stop listening; twice is fine."""
        self._aside.clear()
        while self._stops:
            self._stops.popitem()[1]()

    def _listen(self, listener: Listener) -> None:
        enter = functools.partial(self._begin, listener)
        leave = functools.partial(self._end, listener)
        stop = listen(listener.module, enter, leave, self.guard, also_without_grad=True)
        if stop is not None:
            self._stops[id(listener.module)] = stop

    @observing(_HEARING)
    def _begin(self, listener: Listener, args: Any, kwargs: Any) -> tuple[bool, Any]:
        """Return whether the call is heard, and what ``enter`` returns for it."""
        if self._under_way is None:
            self._under_way = id(listener.module)
            self._step_aside(listener.module)
        is_heard = self._also_without_grad or torch.is_grad_enabled()
        return is_heard, self._enter(args, kwargs) if is_heard else None

    @observing(_HEARING)
    def _end(self, listener: Listener, token: tuple[bool, Any] | None, output: Any) -> None:
        if self._under_way == id(listener.module):
            self._under_way = None
            self._step_back()
        if token is not None and token[0]:
            listener.leave(token[1], output)

    def _step_aside(self, module: nn.Module) -> None:
        """Listen no more to what is in ``module``, except where inner calls are heard."""
        for part in module.modules():
            listener = self._listeners.get(id(part))
            if listener is None or listener.hears_inner or part is module:
                continue
            if (stop := self._stops.pop(id(part), None)) is not None:
                stop()
                self._aside.append(listener)

    def _step_back(self) -> None:
        while self._aside:
            self._listen(self._aside.pop())
