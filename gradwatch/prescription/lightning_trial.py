"""Train a ``LightningModule`` without a Trainer: by its ``training_step`` and ``configure_optimizers``.

Neither ``lightning.pytorch`` nor ``pytorch_lightning`` is imported here.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradwatch.prescription.argument_errors import ArgumentTypeError, ArgumentValueError
from gradwatch.prescription.loaded_batches import LoadedBatches, is_a
from gradwatch.prescription.logged_metrics import LoggedMetrics
from gradwatch.prescription.rate_schedule import LONGEST, Plateau, follow_schedulers_

__all__ = ["configured_optimizer", "count_updates_", "is_lightning", "prepare_", "refuse_manual_optimization"]

_TRAINER = "trainer of trial"
_MAPPING = "mapping type of trial"
_INSIDE = "is inside step of trial"
_PLATEAUS = "plateau schedulers of trial"


class LoggerOfTrial:
    """A logger that takes everything and keeps nothing, and so does its ``experiment``."""

    @property
    def experiment(self) -> LoggerOfTrial:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _log_nothing


class TrainerOfTrial:
    """The answers to what a module asks of its Trainer: a run of 300 updates on one device, which logs nothing.

    Attributes:
        global_step: the updates that were made.
        optimizers: the trial's, once it is made.
        metrics: what the module has logged in its updates.
    """

    is_global_zero = training = barebones = True
    validating = testing = predicting = evaluating = sanity_checking = False
    global_rank = local_rank = node_rank = 0
    world_size = num_devices = num_nodes = accumulate_grad_batches = 1
    progress_bar_callback = train_dataloader = val_dataloaders = gradient_clip_val = None
    precision = "32-true"
    log_every_n_steps = 50
    max_steps = estimated_stepping_batches = LONGEST

    def __init__(self, loaded: LoadedBatches) -> None:
        self.global_step = 0
        self.num_training_batches = loaded.per_epoch
        self.max_epochs = max(1, math.ceil(LONGEST / loaded.per_epoch))
        self.datamodule = loaded.data_module
        self.optimizers: list[Optimizer] = []
        self.strategy = SimpleNamespace(_lightning_optimizers=self.optimizers)  # ``module.optimizers()`` reads it
        self.logger = LoggerOfTrial()
        self.loggers = [self.logger]
        self.callbacks: list[Any] = []
        self.lr_scheduler_configs: list[Any] = []
        self.metrics = LoggedMetrics()
        self.plateaus: Sequence[Plateau] = ()
        self.callback_metrics: dict[str, Any] = {}
        self.logged_metrics: dict[str, Any] = {}

    @property
    def current_epoch(self) -> int:
        return int(self.global_step // self.num_training_batches)

    @property
    def batch_idx(self) -> int:
        """Return the number of the batch within its epoch."""
        return int(self.global_step % self.num_training_batches)

    def take(self, optimizer: Optimizer, plateaus: Sequence[Plateau]) -> None:
        """Count the updates of ``optimizer``, and let schedulers that wait for a metric see it."""
        self.optimizers[:], self.plateaus = [optimizer], plateaus
        self.metrics.begin(plateau.monitor for plateau in plateaus)
        optimizer.register_step_post_hook(self._count)

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.global_step += 1
        for plateau in self.plateaus:
            if plateau.optimizer is optimizer and self.global_step % plateau.every == 0:
                plateau.step(self.metrics)
        if self.global_step % self.num_training_batches == 0:
            self.metrics.begin_epoch()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"prescribe trains without a Trainer, so self.trainer.{name} is not there. Give make_optimizer or loss_fn, "
            "so that the method which asks for it is not called."
        )


class ByTrainingStep:
    """The class that is put before a module's own: a call from outside runs ``training_step``.

    Lightning's strategies redirect ``forward`` in the same way. Within the step ``self(x)`` calls the module's own.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self
        if module.__dict__.get(_INSIDE):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        module.__dict__[_INSIDE] = True
        try:
            return _run_step(module, *args)
        finally:
            module.__dict__[_INSIDE] = False


def is_lightning(model: object) -> bool:
    """Return whether it is a ``LightningModule``, of either package."""
    return is_a(model, "LightningModule")


def refuse_manual_optimization(module: Any) -> None:
    """Raise an error if the module calls its optimizers itself.

    Raises:
        ArgumentValueError: then.
    """
    if not module.automatic_optimization:
        raise ArgumentValueError(
            f"make_model: expected a LightningModule that Lightning optimises, found {type(module).__name__} with "
            "automatic_optimization=False, whose training_step makes the updates itself. Give make_optimizer and "
            "loss_fn: then forward is called, and training_step is not."
        )


def prepare_(module: Any, loaded: LoadedBatches, by_step: bool) -> None:
    """Bring a new module to where a Trainer would begin to train it.

    ``setup("fit")`` and ``configure_model()`` are called; no other hook is. What ``log`` and ``log_dict`` are given is
    kept for schedulers that wait for it.

    Args:
        module: is changed in place.
        loaded: the batches as they were given.
        by_step: let a call of the module run its ``training_step``.
    """
    trainer = TrainerOfTrial(loaded)
    for part in module.modules():
        if is_lightning(part):
            part.log, part.log_dict = trainer.metrics.log, trainer.metrics.log_dict
    module.trainer = trainer
    module.__dict__ |= {_TRAINER: module.trainer, _MAPPING: loaded.mapping_type}
    module.setup("fit")
    module.configure_model()
    if by_step:
        module.__class__ = _redirected(module.__class__)


def configured_optimizer(module: Any, per_epoch: float) -> Optimizer:
    """Return the optimizer of ``configure_optimizers``, which follows its scheduler.

    Raises:
        ArgumentTypeError, ArgumentValueError: if that method raises, or does not return one optimizer.
    """
    try:
        found = module.configure_optimizers()
    except Exception as error:
        raised = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise ArgumentTypeError(f"make_model: its configure_optimizers() raised {raised}.") from error
    optimizers, schedulers = _optimizers_and_schedulers(found)
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        kinds = ", ".join(type(each).__name__ for each in optimizers) or "none"
        raise ArgumentValueError(
            f"make_model: expected configure_optimizers() to return one optimizer, found {kinds}. Give make_optimizer, "
            "a function of the parameters that makes one."
        )
    module.__dict__[_PLATEAUS] = follow_schedulers_(optimizers[0], schedulers, per_epoch)
    return optimizers[0]


def count_updates_(module: nn.Module, optimizer: Optimizer) -> None:
    """Let ``module.global_step`` and ``module.optimizers()`` follow ``optimizer``."""
    module.__dict__[_TRAINER].take(optimizer, module.__dict__.pop(_PLATEAUS, ()))


def _run_step(module: Any, batch: Any) -> Any:
    trainer, mapping_type = module.__dict__[_TRAINER], module.__dict__[_MAPPING]
    module.trainer = trainer  # a copy of a module has lost its Trainer
    if mapping_type is not None and isinstance(batch, dict):
        batch = mapping_type(batch)
    arguments = (batch, trainer.batch_idx, 0)
    with trainer.metrics.of(batch, is_update=module.training):
        loss = module.training_step(*arguments[: _arity(module.__class__)])
        trainer.metrics.note_loss(loss)
    return loss


@functools.cache
def _arity(kind: Any) -> int:
    """Return how many of (batch, batch_idx, dataloader_idx) ``training_step`` takes."""
    parameters = list(inspect.signature(kind.training_step).parameters.values())[1:]
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return 2
    return min(3, len([each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]))


@functools.cache
def _redirected(kind: type) -> type:
    return type(kind.__name__, (ByTrainingStep, kind), {"__module__": kind.__module__})


def _optimizers_and_schedulers(found: Any) -> tuple[list[Any], list[Any]]:
    """Return both of what ``configure_optimizers`` returned, in any of the forms that Lightning knows."""
    if isinstance(found, Mapping):
        return [found.get("optimizer")], _as_list(found.get("lr_scheduler"))
    if not isinstance(found, Sequence):
        return _as_list(found), []
    if len(found) == 2 and isinstance(found[0], Sequence):
        return list(found[0]), _as_list(found[1])
    optimizers, schedulers = [], []
    for each in found:
        more_optimizers, more_schedulers = _optimizers_and_schedulers(each)
        optimizers += more_optimizers
        schedulers += more_schedulers
    return optimizers, schedulers


def _as_list(found: Any) -> list[Any]:
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing: a trial has no logger."""
