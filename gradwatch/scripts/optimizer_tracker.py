"""Follow every optimizer of a program from its construction, and watch each model that is trained.

Torch is patched between ``begin`` and ``end`` only. A forked child is left alone.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.hooks.followed_function import FollowedFunction
from gradwatch.hooks.guard import Guard, UnwatchableError, observing
from gradwatch.hooks.logger import logger
from gradwatch.hooks.losses import FoundLoss, LossFinder, follow_backward, roots_of_backward
from gradwatch.hooks.optimizers import StepHooks, parameters_of
from gradwatch.hooks.scalers import ScalerCall, follow_scaler_step, scaler_call
from gradwatch.ranks.process import is_first_rank
from gradwatch.scripts.models import caller_outside
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
        log_every: steps between two rows; None for the default, and more rows at first.

    Attributes:
        guard: takes the faults.
        summaries: one for each model that was trained, in order of their first steps.
        is_in_child: this process is a forked child.
        left_out: how many optimizers have stepped whose models are beyond ``MOST_MODELS``.
    """

    def __init__(self, log_dir: Path, clip: float | str | None, log_every: int | None = None) -> None:
        self.guard = Guard()
        self.summaries: list[SummarySink] = []
        self._log_dir, self._clip, self._log_every = log_dir, clip, log_every
        self._trained: list[WatchedModel] = []
        self._of: weakref.WeakKeyDictionary[Optimizer, WatchedModel | None] = weakref.WeakKeyDictionary()
        self._losses = LossFinder(())  # for the first update of a model that is watched from there on only
        self._names: set[str] = set()
        self._undo: list[Callable[[], None]] = []
        self._follows_steps = self._said_too_many = False
        self._unfollowed: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.is_in_child = False
        self.left_out = 0

    def begin(self) -> None:
        """Follow every optimizer that is made from now on."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._rest)
        # compiled code makes no optimizer; hiding a function from the compiler would load it
        self._undo.append(FollowedFunction(Optimizer, "__init__", hides=False).listen(self._make, self._made))

    def end(self) -> None:
        """Remove every patch and hook, and stop watching."""
        while self._undo:
            self._undo.pop()()
        for trained in self._trained:
            trained.close()

    @property
    def is_first_rank(self) -> bool:
        """True if this process writes files and prints: the only one, or the first of several."""
        return is_first_rank()

    # calls from the patched functions of torch

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Optimizer:
        optimizer: Optimizer = args[0]
        return optimizer

    @observing("new optimizers")
    def _made(self, optimizer: Optimizer, result: None, has_failed: bool) -> None:
        """Listen to the model of an optimizer that was made."""
        if not self.is_in_child and not has_failed:
            self._follow_steps()
            self._find(optimizer)

    def _follow_steps(self) -> None:
        """Follow the steps of all optimizers, their scalers and their backward passes, once.

        This waits until an optimizer is made, which loads the compiler: so does hiding a function from it.
        """
        if self._follows_steps:
            return
        self._follows_steps = True
        is_ours = lambda parameters: not self.is_in_child
        hooks = StepHooks(self._before, self._after, None, is_ours, self.guard, self._before_plainly)
        self._undo += [
            hooks.remove,
            follow_backward(self._begin_backward, self._end_backward),
            follow_scaler_step(self._begin_scaler_step, self._end_scaler_step),
        ]

    @observing("backward()")
    def _begin_backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FoundLoss | None:
        """Begin to watch what was not called as a model; a loop that begins here hears this very backward pass."""
        if self.is_in_child or _torch.in_backward():
            return None
        for trained in self._trained:
            self._watch(trained)
            trained.stop_listening()
        roots, is_loss = roots_of_backward(args, kwargs)
        return self._losses.begin(roots, is_loss=is_loss)

    @observing("backward()")
    def _end_backward(self, found: FoundLoss | None, result: object, has_failed: bool) -> None:
        if found is not None:
            self._losses.end(found, has_failed=has_failed)

    @observing("scalers")
    def _begin_scaler_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ScalerCall, int] | None:
        """Tell the loop of its scaler; return the call, and how many steps of its optimizer were seen."""
        call = scaler_call(args, kwargs)
        trained = None if call is None or self.is_in_child else self._find(call.optimizer)
        if call is None or trained is None:
            return None
        self._watch(trained)
        if trained.loop is not None:
            trained.loop.use_scaler(call.scaler, call.optimizer)
        return call, trained.steps_of.get(call.optimizer, 0)

    @observing("updates left out")
    def _end_scaler_step(self, begun: tuple[ScalerCall, int] | None, result: object, has_failed: bool) -> None:
        """Count an update that the scaler has left out."""
        if begun is None or has_failed:
            return
        (_, optimizer), seen = begun
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
            self.left_out += optimizer not in self._unfollowed
            self._unfollowed.add(optimizer)
            return
        is_late = trained.summary is None
        self._watch(trained)
        loop = trained.loop
        if not again:
            trained.count(optimizer)
            losses = self._losses.take((), id(optimizer))
            if is_late and loop is not None:
                loop.note_found_losses(losses)
        if loop is None or loop.is_closed:
            return
        try:
            loop.before_update(optimizer, loss, again=again)
        except UnwatchableError as error:
            trained.give_up(error)
        trained.note_loss(loop.steps.saw_loss)

    def _after(self, optimizer: Optimizer) -> None:
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
        where = log_dir if self.is_first_rank else None
        trained.watch(where, self._clip, has_prefix=not is_only, log_every=self._log_every)
        if trained.summary is not None:
            self.summaries.append(trained.summary)
