"""Follow values through one forward pass: from which parameters each was computed, and where its graph has ended.

The graph of a loss cannot show what it misses. A module whose output is detached, or that runs under ``no_grad``, is
not in it, although every number after it depends on that module. So the operations of a forward pass are followed
themselves, for a few single passes of a run, and only where a parameter has no gradient.

A value has *lost* a parameter if it was computed from it and no gradient can go back: the result of an operation
requires none, as under ``no_grad`` and of ``detach()`` and ``.data``. What was lost matters where it comes back to the
loss: it enters an operation with a parameter that is trained, or is added to a value that has a graph, and the sum is
what the model returns. A target, and the output of a teacher, do neither: they meet the model's output in the loss. Nor
do numbers that choose (indices, masks): integers and booleans are not followed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from gradwatch.hooks.guard import Guard, observing
from gradwatch.hooks.module_calls import anything_is_compiled, is_compiled, tensors_in
from gradwatch.hooks.outermost_calls import Listener, OutermostCalls
from gradwatch.measure.layers import Layers, submodules

__all__ = ["ValueFlow"]

ADDS = frozenset(
    ("add", "add_", "__add__", "__radd__", "__iadd__", "cat", "concat", "concatenate", "stack", "hstack", "vstack")
)
"""Operations that join values as they are. A product or a difference may be a distance: that of a student from its
teacher, which a model may return as well."""

_FOLLOWING = "following values"
_LEAVING = "leaving a followed call"  # a block of its own: it ends what has begun, also where that rests


class _Source(NamedTuple):
    """The parameters that a value was computed from, each set of columns as the bits of a number.

    Attributes:
        made_of: all of them.
        lost: those to which no gradient can go back from an earlier value.
        added: those that were lost in an earlier value, which was then added to one that has a graph.
    """

    made_of: int
    lost: int
    added: int


class _Followed(TorchFunctionMode):
    """Hands every operation of this thread, while it is entered, to a function."""

    def __init__(self, follow: Callable[[Any, Any, Any], None]) -> None:
        super().__init__()
        self._follow = follow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__setitem__":
            self._follow(func, (args, kwargs), args[0])
        elif result is not None:
            self._follow(func, (args, kwargs), result)
        return result


class ValueFlow:
    """The values of the forward passes between ``begin`` and ``take``.

    Operations are followed within the outermost calls of watched modules, while all of these are in training mode: an
    encoder in evaluation mode is frozen on purpose, and torch's attention computes otherwise there if it is followed.
    Between two calls a value is known again by its storage.

    Args:
        models: as watched.
        layers: the table.
        guard: takes the faults.

    Attributes:
        guard: as given.
    """

    def __init__(self, models: Mapping[str, nn.Module], layers: Layers, guard: Guard) -> None:
        self.guard = guard
        self._modules = [module for model in models.values() for _, module in submodules(model)]
        self._layers = layers
        self._waiting: set[int] = set()  # who has begun and not taken
        self._thread = 0
        self._mode: _Followed | None = None  # entered by the outermost call under way
        self._known = WeakIdKeyDictionary()  # tensor → _Source
        self._returned: list[tuple[Tensor, _Source]] = []  # holds storages, and no graph
        self._lost_before: dict[int, int] = {}  # column → bits lost by what entered an operation with it
        self._outputs: list[_Source] = []
        self._calls: OutermostCalls | None = None

    def begin(self, reader: int) -> None:
        """Follow the next forward passes for ``reader``, a number of its own; nothing where code is compiled."""
        if any(map(is_compiled, self._modules)) or anything_is_compiled():
            return
        self._waiting.add(reader)
        if self._calls:
            return
        self._thread = threading.get_ident()
        listeners = [Listener(module, self._leave) for module in self._modules]
        self._calls = OutermostCalls(listeners, self._enter, self.guard, also_without_grad=True)

    def take(self, reader: int, trained: Sequence[int]) -> list[int]:
        """Return the columns that were lost on the way to one of ``trained``; stop once nobody waits any more."""
        bits = sum(1 << column for column in trained)
        lost = 0
        for column in trained:
            lost |= self._lost_before.get(column, 0)
        for output in self._outputs:
            lost |= output.added if output.made_of & bits else 0
        self._waiting.discard(reader)
        if not self._waiting:
            self.remove()
        return [column for column in range(len(self._layers)) if lost >> column & 1]

    def remove(self) -> None:
        """Stop following; a call under way leaves the mode that it has entered by itself."""
        if self._calls is not None:
            self._calls.remove()
        self._calls = None
        self._waiting.clear()
        self._known = WeakIdKeyDictionary()
        self._returned, self._lost_before, self._outputs = [], {}, []

    def release(self) -> None:
        """Stop, and hold the model no longer."""
        self.remove()
        self._modules = []

    @observing(_FOLLOWING)
    def _enter(self, args: Any, kwargs: Any) -> _Followed | None:
        if self._mode is not None or threading.get_ident() != self._thread:
            return None
        if not all(module.training for module in self._modules):
            return None
        self._know_again(args, kwargs)
        self._mode = _Followed(self._follow)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self._mode

    @observing(_LEAVING)
    def _leave(self, mode: _Followed | None, output: Any) -> None:
        if mode is not None:
            self._mode = None
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._note_returned(output)

    @observing(_FOLLOWING)
    def _follow(self, func: Any, operands: Any, result: Any) -> None:
        """Note from which parameters ``result`` was computed, and what it has lost."""
        results = [tensor for tensor in tensors_in(result) if tensor.is_floating_point()]
        known = self._known_among(operands) if results else []
        if not known:
            return
        source = _united(source for _, source in known)
        if any(tensor.requires_grad for tensor in results):
            self._note_entry(known, source.lost)
            source = _with_added(func, known, source)
        else:
            source = _Source(source.made_of, source.made_of, 0)
        for tensor in results:
            self._known[tensor] = source

    def _known_among(self, operands: Any) -> list[tuple[Tensor, _Source]]:
        """Return the tensors among the operands that were computed from a parameter, or are one."""
        sources = [(tensor, self._source_of(tensor)) for tensor in tensors_in(operands)]
        return [(tensor, source) for tensor, source in sources if source is not None]

    def _note_entry(self, operands: Sequence[tuple[Tensor, _Source]], lost: int) -> None:
        """Note what was lost on the way into an operation, for each parameter among its operands."""
        for tensor, _ in operands if lost else ():
            if (column := self._layers.column(tensor)) is not None:
                self._lost_before[column] = self._lost_before.get(column, 0) | lost

    def _source_of(self, tensor: Tensor) -> _Source | None:
        column = self._layers.column(tensor)
        if column is not None:
            return _Source(1 << column, 0, 0)
        source: _Source | None = self._known.get(tensor)
        return source

    def _know_again(self, args: Any, kwargs: Any) -> None:
        """Find among what a module is given what another has returned: detached, or seen otherwise."""
        returned = {_storage_of(tensor): source for tensor, source in self._returned}
        for tensor in tensors_in((args, kwargs)) if returned else ():
            source = returned.get(_storage_of(tensor))
            if source is not None and tensor not in self._known:
                lost = source.lost if tensor.requires_grad else source.made_of
                self._known[tensor] = _Source(source.made_of, lost, source.added)

    @observing(_FOLLOWING)
    def _note_returned(self, output: Any) -> None:
        for tensor in tensors_in(output):
            source = self._known.get(tensor)
            if source is not None:
                self._returned.append((tensor.detach(), source))
                if tensor.requires_grad and tensor.numel() > 1:  # a single number is a loss, where teachers belong
                    self._outputs.append(source)


def _united(sources: Any) -> _Source:
    made_of = lost = added = 0
    for source in sources:
        made_of, lost, added = made_of | source.made_of, lost | source.lost, added | source.added
    return _Source(made_of, lost, added)


def _with_added(func: Any, operands: Sequence[tuple[Tensor, _Source]], source: _Source) -> _Source:
    """Return ``source`` of a result with a graph, with what was lost in the operands that were added to it."""
    if getattr(func, "__name__", "") not in ADDS:
        return source
    without_graph = _united(each for tensor, each in operands if not tensor.requires_grad)
    return _Source(source.made_of, source.lost, source.added | without_graph.lost)


def _storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
