"""Turn what the user gave to ``prescribe`` into a training problem that can be run again and again."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.explain.replica import as_it_was
from gradwatch.prescription import lightning_trial
from gradwatch.prescription.argument_errors import ArgumentError, ArgumentTypeError, ArgumentValueError
from gradwatch.prescription.loaded_batches import LoadedBatches, is_a, load
from gradwatch.prescription.model_copies import ModelCopies
from gradwatch.prescription.own_loss import adam_of_trainer, own_loss
from gradwatch.remedies.rows import Batch, keep_rows, largest_entries

__all__ = ["ArgumentError", "ArgumentTypeError", "ArgumentValueError", "Batch", "Problem", "copy_loss"]

EVERY = 5  # one batch in so many is held out: a fifth, spread over all of them, since their order may mean something
MOST = 20  # batches held out: each trial computes the loss of all of them


@dataclass(frozen=True)
class Problem:
    """A training problem.

    Attributes:
        make_model: is called anew for every trial, under that trial's seed.
        make_optimizer: parameters → optimizer; None asks the ``LightningModule``.
        training: the batches to train on, in their order.
        held_out: the batches that are never trained on, without rows that hold NaN or Inf. A batch whose tensors do not
            begin with the same number of items loses no rows: it is left out as a whole. Once an untrained model was
            run, batches for which it had no finite loss are left out, too.
        loss_fn: (outputs, targets) → scalar.
        check: the line of Python that has to run for each batch.
        loaded: the batches as they were given.
        hands_out: once it is known, whether ``make_model`` returns the same model every time.
    """

    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None
    training: Sequence[Batch]
    held_out: list[Batch]
    loss_fn: Callable[[Any, Any], Tensor]
    loaded: LoadedBatches
    check: str = "loss_fn(make_model()(inputs), targets).backward()"
    hands_out: list[bool] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        make_model: Callable[[], nn.Module] | nn.Module,
        make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        batches: Iterable[Any] | None,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        until: float = math.inf,
    ) -> Problem:
        """Check what the user gave, and hold out a fifth of the batches.

        Args:
            make_model: as the user gave it, like the other arguments of that name.
            make_optimizer: None takes what the framework of the model provides.
            batches: a sequence or a loader.
            loss_fn: None lets the model compute its loss from whole batches.
            until: on ``time.perf_counter``: no more batches are loaded then.

        Raises:
            ArgumentTypeError, ArgumentValueError: for an argument that makes no sense.
        """
        _refuse_bad_functions(make_model, make_optimizer, loss_fn)
        make = ModelCopies.of(make_model) if isinstance(make_model, nn.Module) else make_model
        example = None if make_optimizer is not None and loss_fn is not None else _example(make)
        loaded = load(batches, until)
        if len(loaded.batches) < 2:
            raise ArgumentValueError(
                f"batches: expected two or more, one of them to hold out, found {len(loaded.batches)}."
            )
        training, held_out = _split(_pairs(loaded, example, loss_fn))
        return cls(
            make,
            make_optimizer or _usual_optimizer(example),
            training,
            held_out,
            loss_fn or own_loss,
            loaded,
            _check(example, loss_fn),
        )

    def fresh_model(self) -> nn.Module:
        """Return a model that nobody else holds: a copy if ``make_model`` returns one that it returned before.

        Raises:
            ArgumentTypeError: if ``make_model`` returns no module.
        """
        model = _checked(self.make_model())
        if not self.hands_out:  # asked once: does it make models, or hand out one that the user goes on to train?
            self.hands_out.append(_shares(model, self.make_model()))
        model = copy.deepcopy(model) if self.hands_out[0] else model
        if lightning_trial.is_lightning(model):
            lightning_trial.prepare_(model, self.loaded, by_step=self.loss_fn is own_loss)
            lightning_trial.count_updates_(model, self._optimizer_of(model))  # for steps before the optimizer is made
        return model

    def fresh_optimizer(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> Optimizer:
        """Return an optimizer of ``model``.

        If it also trains the weights of the user's loss, it is given those of the copy ``loss_fn`` in their place.

        Raises:
            ArgumentTypeError, ArgumentValueError: if what makes it raises, or returns no optimizer.
        """
        optimizer = self._optimizer_of(model)
        if lightning_trial.is_lightning(model):
            lightning_trial.count_updates_(model, optimizer)
        if isinstance(self.loss_fn, nn.Module) and isinstance(loss_fn, nn.Module):
            own = dict(zip(self.loss_fn.parameters(), loss_fn.parameters(), strict=True))
            for group in optimizer.param_groups:
                group["params"][:] = [own.get(parameter, parameter) for parameter in group["params"]]
        return optimizer

    def _optimizer_of(self, model: nn.Module) -> Optimizer:
        if self.make_optimizer is None:
            return lightning_trial.configured_optimizer(model, self.loaded.per_epoch)
        return _made_optimizer(self.make_optimizer, list(model.parameters()))


_HINTS = {
    "make_model": " Write lambda: MyModel().",
    "make_optimizer": " Write lambda parameters: torch.optim.SGD(parameters, lr=0.1).",
    "loss_fn": " Write a function of (outputs, targets).",
}


def copy_loss(loss_fn: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return a copy of a loss that is a module, whose weights may move, or the loss itself if it cannot be copied."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    try:
        return copy.deepcopy(loss_fn)
    except Exception:
        return loss_fn


def _made_optimizer(
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], parameters: list[nn.Parameter]
) -> Optimizer:
    try:
        optimizer = make_optimizer(parameters)
    except Exception as error:
        raised = f"{type(error).__name__}: {str(error).rstrip('.')}."
        if parameters and isinstance(make_optimizer, type):
            name = make_optimizer.__name__
            raised += f" {name} needs more than parameters: write lambda parameters: {name}(parameters, lr=…)."
        raise ArgumentTypeError(f"make_optimizer: called with the model's parameters, it raised {raised}") from error
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(f"make_optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}.")
    return optimizer


def _refuse_bad_functions(make_model: object, make_optimizer: object, loss_fn: object) -> None:
    if isinstance(make_optimizer, Optimizer):
        kind = type(make_optimizer).__name__
        raise ArgumentTypeError(
            f"make_optimizer: expected a function that makes an optimizer, found an optimizer ({kind}). "
            f"Each trial has a model of its own: write lambda parameters: {kind}(parameters, lr=…)."
        )
    if not callable(make_model):
        raise ArgumentTypeError(_not_callable("make_model", make_model))
    for name, value in {"make_optimizer": make_optimizer, "loss_fn": loss_fn}.items():
        if value is not None and not callable(value):
            is_loader = isinstance(value, Iterable)
            hint = " If these are the batches, write batches=…." if is_loader else ""
            raise ArgumentTypeError(_not_callable(name, value) + hint)


def _not_callable(name: str, value: object) -> str:
    return f"{name}: expected something to call, found {type(value).__name__}.{_HINTS[name]}"


def _example(make_model: Callable[[], nn.Module]) -> nn.Module:
    """Return a model, to see what it is; the generators are as they were."""
    with as_it_was():
        return _checked(make_model())


def _checked(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"make_model: expected it to return an nn.Module, found {type(model).__name__}.")
    return model


def _usual_optimizer(example: nn.Module | None) -> Callable[[Iterable[nn.Parameter]], Optimizer] | None:
    """Return the function that makes the optimizer which the model's framework would make; None for Lightning.

    Raises:
        ArgumentTypeError: if there is none.
    """
    if lightning_trial.is_lightning(example):
        return None
    if is_a(example, "PreTrainedModel", "PeftModel"):
        return adam_of_trainer
    raise ArgumentTypeError(
        f"make_optimizer: expected a function, found None, and {type(example).__name__} is neither a LightningModule, "
        f"which has configure_optimizers(), nor a model of transformers.{_HINTS['make_optimizer']}"
    )


def _check(example: nn.Module | None, loss_fn: object) -> str:
    if loss_fn is not None:
        return Problem.check
    if lightning_trial.is_lightning(example):
        return "make_model().training_step(batch, 0) returns a loss, and its .backward()"
    return "make_model()(**batch).loss.backward()"


def _pairs(loaded: LoadedBatches, example: nn.Module | None, loss_fn: object) -> list[Batch]:
    """Return (inputs, targets) of each batch; without a loss function all of a batch is the model's input."""
    if loss_fn is not None:
        return [_pair(number, batch) for number, batch in enumerate(loaded.batches)]
    is_lightning = lightning_trial.is_lightning(example)
    if is_lightning:
        lightning_trial.refuse_manual_optimization(example)
    parameter = None if example is None else next(example.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    batches = loaded.batches if device.type == "cpu" else [_moved(batch, device) for batch in loaded.batches]
    return [((batch,) if is_lightning else batch, ()) for batch in batches]


def _moved(batch: Any, device: torch.device) -> Any:
    return _torch.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def _split(pairs: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return the batches to train on and those held out, without their broken rows.

    Raises:
        ArgumentValueError: if nothing is left of those held out.
    """
    every = max(EVERY, -(-len(pairs) // MOST))
    held_out = [*range(every - 1, len(pairs), every)] or [len(pairs) - 1]
    training = [pair for number, pair in enumerate(pairs) if number not in held_out]
    finite = [keep_rows(pairs[number], largest_entries(pairs[number]).isfinite()) for number in held_out]
    sound = [pair for pair in finite if pair is not None]
    if not sound:
        raise ArgumentValueError(
            f"batches: NaN or Inf leaves nothing of those held out (numbers {_some(held_out)}), so no model could "
            "be judged. Clean the data, or give more batches."
        )
    return training, sound


def _pair(number: int, batch: Any) -> Batch:
    if isinstance(batch, Mapping) and {"inputs", "targets"} == set(batch):
        return batch["inputs"], batch["targets"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:  # of Hugging Face
        return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
    found = f"a mapping of {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise ArgumentTypeError(
        f'batches[{number}]: expected (inputs, targets), or {{"inputs": …, "targets": …}}, found {found}. '
        "Put whatever the loss needs into targets; it may be any structure."
    )


def _some(numbers: Sequence[int]) -> str:
    """Return the first three, and how many more there are."""
    more = [f"{len(numbers) - 3} more"] if len(numbers) > 3 else []
    return ", ".join([*map(str, numbers[:3]), *more])


def _shares(model: nn.Module, first: nn.Module) -> bool:
    """Return whether both are one model, or hold the same weights."""
    held = {id(parameter) for parameter in first.parameters()}
    return model is first or any(id(parameter) in held for parameter in model.parameters())
