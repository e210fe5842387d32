"""Summarise every call of every module as it happens, one reduction a tensor on the device."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwatch import _torch
from gradwatch.explain.call_summary import ModuleCall, TensorSummary, extremes_of, has_entries
from gradwatch.explain.origin import origin_of
from gradwatch.hooks.graph import MADE_BY, takers_of
from gradwatch.hooks.guard import Guard, observing
from gradwatch.hooks.module_calls import listen
from gradwatch.measure.layers import has_children
from gradwatch.measure.report import Origin

__all__ = ["Trace"]

MOST_OPERATIONS = 4096
"""Operations of one call that are searched for those that take what it was given."""

MOST_PASSES = 64
"""Forward passes of a whole model that are kept: more than most loops accumulate before one update."""


class Trace:
    """The calls of all modules since the last update, from construction to ``remove``.

    It leaves out compiled and scripted modules with all that is in them, calls without gradients, and calls that a
    checkpoint repeats.

    Args:
        models: {name: module}.
        guard: takes the faults.
        keeps_all: keep any number of calls, where somebody takes them soon.
        follows_backward: False where no backward pass will follow.

    Attributes:
        guard: as given.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        guard: Guard | None = None,
        *,
        keeps_all: bool = False,
        follows_backward: bool = True,
    ) -> None:
        self.guard = guard or Guard()
        self._follows_graph, self._follows_backward = keeps_all, follows_backward
        self._under_way: list[ModuleCall] = []
        self._arguments: dict[int, list[Tensor]] = {}  # of calls under way, by their ids
        self._summaries: dict[int, tuple[weakref.ref[Tensor], int, TensorSummary]] = {}
        self._on_leaves: list[RemovableHandle] = []
        self._undo = [stop for name, model in models.items() for stop in self._listen(name, model)]
        most = None if keeps_all else MOST_PASSES * max(1, len(self._undo))
        self._calls: deque[ModuleCall] = deque(maxlen=most)

    @observing("trace: origin")
    def origin(self, calls: Sequence[ModuleCall], loss: float | None, layers_at_fault: Sequence[str]) -> Origin | None:
        """Return where a NaN or Inf of a step with these calls came from, as ``origin_of``."""
        return origin_of(calls, loss, layers_at_fault)

    @observing("trace: taking")
    def take(self) -> list[ModuleCall]:
        """Return the calls since the last time, in the order in which they ended, and forget them."""
        calls = list(self._calls)
        self._calls.clear()
        self._under_way.clear()
        self._arguments.clear()
        self._summaries.clear()
        while self._on_leaves:
            self._on_leaves.pop().remove()
        return calls

    def module_under_way(self) -> str:
        """Return the name of the innermost module whose forward pass has begun and not ended."""
        return self._under_way[-1].module if self._under_way else ""

    def remove(self) -> None:
        """Stop listening."""
        for stop in self._undo:
            stop()
        self.take()

    def _listen(self, name: str, module: nn.Module) -> Iterator[Callable[[], None]]:
        """Listen to a module and its children, except for those that are compiled or scripted."""
        is_builtin = type(module).__module__.startswith("torch.nn.") and not has_children(module)
        enter = partial(self._enter, name, type(module).__name__, is_builtin)
        stop = listen(module, enter, self._leave, self.guard)
        if stop is not None:
            yield stop
            for part, child in module.named_children():
                yield from self._listen(f"{name}.{part}".lstrip("."), child)

    @observing("trace: calls")
    def _enter(self, name: str, kind: str, is_builtin: bool, args: Any, kwargs: Any) -> ModuleCall:
        leaves = [leaf for leaf in _torch.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tensors = [leaf for leaf in leaves if has_entries(leaf)]
        is_outermost = not self._under_way
        if is_outermost:
            self._summaries.clear()
        call = self._call(name, kind, is_builtin, tensors, is_outermost=is_outermost)
        call.follows_others = bool(tensors) and leaves[0] is not tensors[0]
        if self._follows_graph and self._follows_backward:
            self._arguments[id(call)] = tensors
        self._under_way.append(call)
        return call

    def _call(
        self, name: str, kind: str, is_builtin: bool, tensors: Sequence[Tensor], *, is_outermost: bool
    ) -> ModuleCall:
        """Return a call that begins with ``tensors``."""
        given = [self._summarise(tensor) for tensor in tensors]
        call = ModuleCall(name, kind, given, is_outermost=is_outermost, is_builtin=is_builtin)
        if is_outermost:
            call.batch = [weakref.ref(tensor) for tensor in tensors]
            call.computed = [
                summary for tensor, summary in zip(tensors, given, strict=True) if tensor.grad_fn is not None
            ]
        return call

    @observing("trace: calls")
    def _leave(self, call: ModuleCall | None, output: Any) -> None:
        if call in self._under_way:
            del self._under_way[self._under_way.index(call) :]  # calls after it raised, and never returned
            returned = _tensors(output)
            call.returned = [self._summarise(tensor) for tensor in returned]
            self._calls.append(call)
            if self._follows_graph:
                _mark(call.module, returned)
            given = self._arguments.pop(id(call), None)
            if given:
                call.handed_back = self._follow_handed_back(given, returned)

    def _follow_handed_back(
        self, given: Sequence[Tensor], returned: Sequence[Tensor]
    ) -> list[list[tuple[Tensor, Tensor]] | None]:
        """Note, for each of ``given``, the gradients that the operations up to ``returned`` hand back to it."""
        noted: list[list[tuple[Tensor, Tensor]] | None] = [None] * len(given)
        for place, tensor in enumerate(given):
            takers = takers_of(tensor, returned, MOST_OPERATIONS)
            if takers:
                seen: list[tuple[Tensor, Tensor]] = []
                noted[place] = seen
                for node, edge in takers:
                    node.register_hook(partial(self._note_handed_back, seen, edge))
        return noted

    @observing("trace: calls")
    def _note_handed_back(self, seen: list[tuple[Tensor, Tensor]], edge: int, inputs: Any, outputs: Any) -> None:
        gradient = inputs[edge] if edge < len(inputs) else None
        if isinstance(gradient, Tensor) and has_entries(gradient):
            seen.append(self._extremes_of(gradient))

    def _summarise(self, tensor: Tensor) -> TensorSummary:
        """Return the summary of ``tensor``. One module returns what the next is given, so each tensor is read once."""
        version = 0 if tensor.is_inference() else _torch.version_of(tensor)
        known, seen, summary = self._summaries.get(id(tensor), (None, 0, None))
        if summary is None or known is None or known() is not tensor or seen != version:
            summary = TensorSummary(self._extremes_of(tensor))
            self._summaries[id(tensor)] = weakref.ref(tensor), version, summary
            self._follow_gradient(tensor, summary.gradients)
        return summary

    def _extremes_of(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the extremes of ``tensor``, past the mode that examines every operation of a step that runs again."""
        if not self._follows_graph:
            return extremes_of(tensor)
        with _torch.past_dispatch_modes():
            return extremes_of(tensor)

    def _follow_gradient(self, tensor: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> None:
        if not (tensor.requires_grad and self._follows_backward):
            return

        def note(gradient: Tensor | None) -> None:
            self._note(gradients, gradient)

        handle = tensor.register_hook(note)
        if tensor.is_leaf:  # it outlives the step
            self._on_leaves.append(handle)

    @observing("trace: calls")
    def _note(self, gradients: list[tuple[Tensor, Tensor]], gradient: Tensor | None) -> None:
        if gradient is not None and has_entries(gradient):  # a function of the user's own may return none
            gradients.append(self._extremes_of(gradient))


def _mark(module: str, returned: Sequence[Tensor]) -> None:
    """Note in the graph which module made what was returned: the innermost one, which ends first."""
    for tensor in returned:
        if tensor.grad_fn is not None:
            tensor.grad_fn.metadata.setdefault(MADE_BY, module)  # type: ignore[attr-defined]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor) and has_entries(leaf)]
