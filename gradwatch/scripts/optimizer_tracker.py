"""Follow every optimizer of a program from its construction, and watch each model that is trained.

Torch is patched between ``begin`` and ``end`` only. A forked child is left alone.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradwatch.hooks.guard import Guard, UnwatchableError, observing
from gradwatch.hooks.logger import logger
from gradwatch.hooks.optimizers import StepHooks, parameters_of
from gradwatch.scripts.losses import Losses
from gradwatch.scripts.models import caller_outside
from gradwatch.scripts.patches import after, around, before
from gradwatch.scripts.summary import SummarySink
from gradwatch.scripts.watched_model import WatchedModel

__all__ = ["OptimizerTracker"]

MOST_MODELS = 32
"""Models that are watched. A search that trains more leaves more runs than anyone opens, each with open files."""


class OptimizerTracker:
    """A tracker that watches whatever is trained between ``begin`` and ``end``.

    Watching a model begins in its first forward pass after an optimizer of it was made, so that its first step is seen
    whole. If the program does not call the model, it begins in the backward pass, or else at the update.

    Args:
        log_dir: for event files; with several models each has a directory of its name in it.
        clip: as in ``gradwatch.watch``.

    Attributes:
        guard: takes the faults.
        summaries: one for each model that was trained, in order of their first steps.
        is_in_child: this process is a forked child.
    """

    def __init__(self, log_dir: Path, clip: float | str | None) -> None:
        self.guard = Guard()
        self.summaries: list[SummarySink] = []
        self._log_dir, self._clip = log_dir, clip
        self._trained: list[WatchedModel] = []
        self._of: weakref.WeakKeyDictionary[Optimizer, WatchedModel | None] = weakref.WeakKeyDictionary()
        self._losses = Losses()
        self._names: set[str] = set()
        self._undo: list[Callable[[], None]] = []
        self._follows_steps = self._said_too_many = False
        self.is_in_child = False

    def begin(self) -> None:
        """Follow every optimizer that is made from now on."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._rest)
        self._undo += [
            after(Optimizer, "__init__", self._made),
            before(torch.autograd, "backward", self._backward),
            after(GradScaler, "scale", self._scaled),
            around(GradScaler, "step", self._follow_scaler),
        ]

    def end(self) -> None:
        """Remove every patch and hook, and stop watching."""
        while self._undo:
            self._undo.pop()()
        for trained in self._trained:
            trained.close()

    @property
    def is_first_rank(self) -> bool:
        """True if this process writes files and prints: the only one, or the first of several."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
        return os.environ.get("RANK", "0") == "0"

    # calls from the patched functions of torch

    @observing("new optimizers")
    def _made(self, /, *args: Any, **kwargs: Any) -> None:
        """Listen to the model of an optimizer that was made."""
        if not self.is_in_child:
            self._follow_steps()
            self._find(args[0])

    def _follow_steps(self) -> None:
        """Hook the steps of all optimizers, once.

        This waits until an optimizer is made, which loads the compiler: so does hiding a function from it.
        """
        if self._follows_steps:
            return
        self._follows_steps = True
        is_ours = lambda parameters: not self.is_in_child
        hooks = StepHooks(self._before, self._after, None, is_ours, self.guard, self._before_plainly)
        self._undo.append(hooks.remove)
        torch.compiler.disable(torch.autograd.backward, recursive=False)

    def _follow_scaler(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def followed(scaler: GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            seen = self._use_scaler(scaler, optimizer)
            result = step(scaler, optimizer, *args, **kwargs)
            if seen is not None:
                self._leave_out_unless_stepped(optimizer, seen)
            return result

        return followed

    @observing("backward()")
    def _backward(self, /, tensors: Any, *args: Any, **kwargs: Any) -> None:
        if self.is_in_child:
            return
        for trained in self._trained:
            self._watch(trained)
            trained.stop_listening()
        self._losses.note_backward(tensors)

    @observing("scaled losses")
    def _scaled(self, scaler: GradScaler, outputs: Any, *, result: Any) -> None:
        self._losses.note_scaled(scaler, outputs, result)

    @observing("scalers")
    def _use_scaler(self, scaler: GradScaler, optimizer: Optimizer) -> int | None:
        """Return how many steps of ``optimizer`` were seen; None if ``scaler`` leaves none out."""
        trained = self._find(optimizer)
        if trained is None or self.is_in_child or not scaler.is_enabled():
            return None
        self._watch(trained)
        if trained.loop is not None:
            trained.loop.use_scaler(scaler, sees_gradients=False)
        return trained.steps_of.get(optimizer, 0)

    @observing("updates left out")
    def _leave_out_unless_stepped(self, optimizer: Optimizer, seen: int) -> None:
        trained = self._of[optimizer]
        if trained is not None and trained.steps_of.get(optimizer, 0) == seen:
            self._before(optimizer)
            if trained.loop is not None:
                trained.loop.after_update(optimizer, is_made=False)

    def _before_plainly(self, optimizer: Optimizer, loss: object = None, *, again: bool = False) -> None:
        """Clip where following the update has failed, if its loop is known."""
        trained = self._of.get(optimizer)
        if trained is not None and trained.loop is not None and not trained.loop.is_closed:
            trained.loop.act_plainly(optimizer, loss, again=again)

    def _before(self, optimizer: Optimizer, loss: object = None, *, again: bool = False) -> None:
        self.guard.step += not again
        trained = self._find(optimizer)
        if trained is None:
            return
        self._watch(trained)
        loop = trained.loop
        if not again:
            trained.count(optimizer)
        if loop is None or loop.is_closed:
            return
        if not again:
            values = self._losses.take(optimizer)
            for value in values:
                loop.observe_loss(value)
            trained.note_loss(bool(values) or loss is not None)
            if (graph := self._losses.take_graph()) is not None:
                loop.follow_loss(graph)
        try:
            loop.before_update(optimizer, loss, again=again)
        except UnwatchableError as error:
            trained.give_up(error)

    def _after(self, optimizer: Optimizer) -> None:
        self._losses.take(optimizer)  # those of a closure's further evaluations are none of the next step's
        trained = self._of.get(optimizer)
        if trained is not None and trained.loop is not None:
            trained.loop.after_update(optimizer)

    def _rest(self) -> None:
        """Rest in a forked child: the files belong to its parent."""
        self.is_in_child = True

    # the models of the optimizers

    def _find(self, optimizer: Optimizer) -> WatchedModel | None:
        """Return the model that ``optimizer`` trains; None beyond ``MOST_MODELS``."""
        if optimizer in self._of:
            return self._of[optimizer]
        parameters = parameters_of(optimizer)
        trained = next((each for each in self._trained if each.holds(parameters)), None) or self._new(parameters)
        self._of[optimizer] = trained
        if trained is not None:
            trained.optimizers.add(optimizer)
        for each in self._trained:
            if not each.optimizers:  # only we may still hold its model
                each.close()
        self._trained = [each for each in self._trained if each.optimizers]
        return trained

    def _new(self, parameters: list[Tensor]) -> WatchedModel | None:
        if len(self._names) >= MOST_MODELS:
            if not self._said_too_many:
                self._said_too_many = True
                logger.warning("gradwatch: %d models are watched; further models of this run are not.", MOST_MODELS)
            return None
        trained = WatchedModel(parameters, caller_outside("torch", "gradwatch"), self._names)
        trained.listen(self._watch)
        self._trained.append(trained)
        return trained

    @observing("attaching")
    def _watch(self, trained: WatchedModel) -> None:
        """Begin to watch ``trained``, once."""
        if trained.summary is not None:
            return
        is_only = len(self._trained) == 1 and not self.summaries
        log_dir = self._log_dir if is_only else self._log_dir / trained.name
        trained.watch(log_dir if self.is_first_rank else None, self._clip, has_prefix=not is_only)
        if trained.summary is not None:
            self.summaries.append(trained.summary)
