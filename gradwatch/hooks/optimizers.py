"""Notice when an optimizer is about to update, and when it has updated.

``before(optimizer, loss)`` is called once the gradients are ready, ``after(optimizer)`` once the weights have changed.
Optimizers are given, or found as they step because they own a watched parameter.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from gradwatch import _torch
from gradwatch.hooks.guard import Guard, observing, otherwise

__all__ = [
    "StepHooks",
    "keep_alive",
    "learning_rates_of",
    "optimizers_inside",
    "optimizers_within",
    "parameters_of",
    "updated_by",
]


class Before(Protocol):
    """A function called once an optimizer's gradients are ready; ``again``: its closure was evaluated once more."""

    def __call__(self, optimizer: Optimizer, loss: object = None, *, again: bool = False) -> None: ...


After = Callable[[Optimizer], object]
HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None
"""A return value of torch's pre-hook: other arguments for the step, or None for those it was called with."""

_STEP = _torch.code_around_steps()


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return all that ``optimizer`` updates, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizers_inside(owner: object) -> list[Optimizer]:
    """Return the optimizers that ``owner`` holds: in its attributes, and in lists, tuples and dicts among these."""
    found: list[Optimizer] = []
    held = [value for name, value in getattr(owner, "__dict__", {}).items() if name != "state"]  # of each parameter
    with contextlib.suppress(Exception):  # a stranger's property
        held.insert(0, getattr(owner, "optimizer", None))
    for value in held:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        found += [part for part in parts if isinstance(part, Optimizer) and part is not owner]
    return list(dict.fromkeys(found))


def optimizers_within(
    optimizer: Optimizer, is_apart: Callable[[Optimizer], bool] = lambda inner: False
) -> list[Optimizer]:
    """Return the optimizers inside ``optimizer``, and inside these; those that are apart, and what they hold, not."""
    found = [optimizer]
    for each in found:  # which grows
        found += [inner for inner in optimizers_inside(each) if inner not in found and not is_apart(inner)]
    return found[1:]


def updated_by(
    optimizer: Optimizer, owns: Callable[[Sequence[Tensor]], bool], is_apart: Callable[[Optimizer], bool]
) -> tuple[list[Optimizer], list[Tensor]]:
    """Return who makes an update that ``optimizer`` begins, and all that they update.

    An optimizer inside it takes part if it adds a watched parameter: a Muon may keep an AdamW for the biases. One that
    steps copies of the weights in another precision adds none.

    Args:
        optimizer: the outermost.
        owns: returns whether any of these parameters is watched.
        is_apart: returns whether the loop steps an optimizer by itself, past the one that holds it.
    """
    makers, parameters = [optimizer], parameters_of(optimizer)
    for inner in optimizers_within(optimizer, is_apart):
        known = set(map(id, parameters))
        added = [each for each in parameters_of(inner) if id(each) not in known] if _can_be_asked(inner) else []
        if owns(added):
            makers.append(inner)
            parameters += added
    return makers, parameters


def _can_be_asked(optimizer: Optimizer) -> bool:
    """Return whether ``optimizer`` says what it holds; a stranger's may not."""
    try:
        return bool(optimizer.param_groups)
    except Exception:
        return False


def learning_rates_of(optimizer: Optimizer) -> tuple[float, ...]:
    """Return the rate of each group; none where one has none, or where one must wait for it."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    are_at_hand = [isinstance(rate, int | float) or (isinstance(rate, Tensor) and rate.is_cpu) for rate in rates]
    return tuple(float(rate) for rate in rates if rate is not None) if all(are_at_hand) else ()


def _enter_plainly(hooks: StepHooks, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
    """Act on an update that could not be followed; nested steps are taken for separate ones.

    It shares no function with the way that failed.
    """
    plainly = hooks.act_plainly
    if plainly is None:
        return None
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        plainly(optimizer, None)
        return None
    evaluations = 0

    def evaluate() -> Any:
        nonlocal evaluations
        loss = closure()
        evaluations += 1
        plainly(optimizer, loss, again=evaluations > 1)
        return loss

    if len(args) > 1:
        return (args[0], evaluate, *args[2:]), kwargs
    return args, {**kwargs, "closure": evaluate}


def keep_alive(owner: object, tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Let the first of ``tensors`` that is trained keep ``owner`` alive: no variable of the user's may hold it.

    Returns:
        A function that ends it.
    """
    for tensor in tensors:
        if tensor.requires_grad and tensor.is_leaf and not is_lazy(tensor):
            return tensor.register_hook(lambda _gradient, _owner=owner: None).remove  # the collector sees what it holds
    _kept.append(owner)  # a model that is all frozen, or lazy
    return lambda: _kept.remove(owner) if owner in _kept else None


_kept: list[object] = []


class StepHooks:
    """Hooks around ``optimizer.step``; of nested optimizers (SAM) the outermost counts.

    So does the outermost step of one optimizer whose ``step`` calls its parent class's. Optimizers that a given one
    holds are hooked with it, for loops that step these past it (``SAM.second_step``); one that has its very groups
    counts as the given one. A step that raised fires no post-hook: which of those that began still run is read from
    the Python stack, and only where another began.

    ``step(closure)`` fires torch's pre-hook before the backward pass, so the closure is wrapped and ``before`` follows
    each of its evaluations with the loss it returned; without a closure ``before`` gets None.

    Args:
        before: called with the optimizer and the closure's loss once the gradients are ready; None: nobody asks.
        after: called with the optimizer once it has updated.
        optimizers: those to watch; None for every one that ``owns`` says yes to.
        owns: returns whether any of an optimizer's parameters is watched.
        guard: takes the faults of what follows steps.
        act_plainly: called in place of ``before`` where following a step has failed; None where nothing acts.

    Attributes:
        guard, act_plainly: as given.
    """

    def __init__(
        self,
        before: Before | None,
        after: After,
        optimizers: Sequence[Optimizer] | None,
        owns: Callable[[Sequence[Tensor]], bool],
        guard: Guard | None = None,
        act_plainly: Before | None = None,
    ) -> None:
        self.guard, self.act_plainly = guard or Guard(), act_plainly
        self._before, self._after, self._owns = before, after, owns
        self._running: list[Optimizer] = []
        self._holders: dict[Optimizer, Optimizer] = {}  # optimizer inside another → that one
        self._handles: list[RemovableHandle] = []
        enter, leave = self._enter, self._leave
        if optimizers is None:
            known = weakref.ref(self)  # the process outlives the model
            enter, leave = _calling(known, "_enter"), _calling(known, "_leave")
        # a compiled optimizer.step would trace them, and compile anew for each count that they change
        enter, leave = torch.compiler.disable(enter), torch.compiler.disable(leave)
        if optimizers is None:
            self._handles += [register_optimizer_step_pre_hook(enter), register_optimizer_step_post_hook(leave)]
            weakref.finalize(self, _remove_all, self._handles).atexit = False
            return
        self._holders = {inner: outer for outer in optimizers for inner in optimizers_inside(outer)}
        for optimizer in _with_hooks_of_their_own([*optimizers, *self._holders]):
            self._handles.append(optimizer.register_step_pre_hook(enter))
            self._handles.append(optimizer.register_step_post_hook(leave))

    def remove(self) -> None:
        """Take every hook off again; twice is fine."""
        _remove_all(self._handles)

    @otherwise("noticing an update", _enter_plainly)
    def _enter(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        if not _can_be_asked(optimizer) or not self._owns(parameters_of(optimizer)):
            return None
        if self._running:
            self._running = self._still_running(sys._getframe())
        self._running.append(optimizer)
        if len(self._running) > 1 or self._before is None:
            return None
        optimizer = self._counted_as(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):  # a stranger's optimizer may take something else: its loss, a number
            self._before(optimizer, None)
            return None
        wrapped = self._followed(optimizer, closure)
        if len(args) > 1:  # args begin with the optimizer itself
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    @observing("noticing the end of an update")
    def _leave(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        if optimizer not in self._running:
            return
        self._running = self._still_running(sys._getframe()) if len(self._running) > 1 else []
        if not self._running:
            self._after(self._counted_as(optimizer))

    def _counted_as(self, optimizer: Optimizer) -> Optimizer:
        """Return the given optimizer that holds this one and has its very groups; this one where there is none."""
        outer = self._holders.get(optimizer)
        if outer is None or list(map(id, outer.param_groups)) != list(map(id, optimizer.param_groups)):
            return optimizer
        return outer

    def _still_running(self, hook: FrameType) -> list[Optimizer]:
        """Return those whose step is on the stack around the one that called ``hook``."""
        on_stack: list[Optimizer] = []
        frame: FrameType | None = hook
        while frame is not None:
            if frame.f_code is _STEP:
                on_stack.append(frame.f_locals["self"])
            frame = frame.f_back
        return [optimizer for optimizer in self._running if optimizer in on_stack[1:]]

    def _followed(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            loss = closure()
            evaluations += 1
            if self._before is not None:
                self._before(optimizer, loss, again=evaluations > 1)
            return loss

        return evaluate


def _with_hooks_of_their_own(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Return those that can be hooked, of those that share their hooks (Fabric's wrapper does) the first."""
    by_hooks: dict[int, Optimizer] = {}
    for optimizer in optimizers:
        if (hooks := _torch.step_hooks_of(optimizer)) is not None:
            by_hooks.setdefault(id(hooks), optimizer)
    return list(by_hooks.values())


def _calling(known: weakref.ref[StepHooks], name: str) -> Callable[..., Any]:
    """Return a hook that calls this method as long as its object lives."""

    def call(*args: Any) -> Any:
        hooks = known()
        return None if hooks is None else getattr(hooks, name)(*args)

    return call


def _remove_all(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()
