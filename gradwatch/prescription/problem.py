"""Turn what the user gave to ``prescribe`` into a training problem that can be run again and again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch.remedies.rows import Batch, keep_rows, largest_entries

__all__ = ["ArgumentError", "ArgumentTypeError", "ArgumentValueError", "Batch", "Problem", "copy_loss"]

EVERY = 5  # one batch in so many is held out: a fifth, spread over all of them, since their order may mean something
MOST = 20  # batches held out: each trial computes the loss of all of them


class ArgumentError(Exception):
    """An argument of ``prescribe`` that makes no sense: its name, what was expected, what was found, what to do."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of the wrong type."""


class ArgumentValueError(ArgumentError, ValueError):
    """An argument of the right type whose value makes no sense."""


@dataclass(frozen=True)
class Problem:
    """A training problem.

    Attributes:
        make_model: as the user gave it; it is called anew for every trial, under that trial's seed.
        make_optimizer: parameters → optimizer.
        training: the batches to train on, in their order.
        held_out: the batches that are never trained on, without rows that hold NaN or Inf. A batch whose tensors do not
            begin with the same number of items loses no rows: it is left out as a whole. Once an untrained model was
            run, batches for which it had no finite loss are left out, too.
        loss_fn: (outputs, targets) → scalar.
        hands_out: once it is known, whether ``make_model`` returns the same model every time.
    """

    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    training: Sequence[Batch]
    held_out: list[Batch]
    loss_fn: Callable[[Any, Any], Tensor]
    hands_out: list[bool] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        make_model: Callable[[], nn.Module],
        make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        batches: Sequence[Batch | Mapping[str, Any]],
        loss_fn: Callable[[Any, Any], Tensor],
    ) -> Problem:
        """Check what the user gave, and hold out a fifth of the batches.

        Raises:
            ArgumentTypeError, ArgumentValueError: for an argument that makes no sense.
        """
        _refuse_bad_functions(make_model, make_optimizer, loss_fn)
        _refuse_bad_batches(batches)
        pairs = [_pair(number, batch) for number, batch in enumerate(batches)]
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
        return cls(make_model, make_optimizer, training, sound, loss_fn)

    def fresh_model(self) -> nn.Module:
        """Return a model that nobody else holds: a copy if ``make_model`` returns one that it returned before.

        Raises:
            ArgumentTypeError: if ``make_model`` returns no module.
        """
        model = self.make_model()
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"make_model: expected it to return an nn.Module, found {type(model).__name__}.")
        if not self.hands_out:  # asked once: does it make models, or hand out one that the user goes on to train?
            self.hands_out.append(_shares(model, self.make_model()))
        return copy.deepcopy(model) if self.hands_out[0] else model

    def fresh_optimizer(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> Optimizer:
        """Return an optimizer of ``model``.

        If it also trains the weights of the user's loss, it is given those of the copy ``loss_fn`` in their place.

        Raises:
            ArgumentTypeError: if ``make_optimizer`` raises, or returns no optimizer.
        """
        parameters = list(model.parameters())
        try:
            optimizer = self.make_optimizer(parameters)
        except Exception as error:
            raised = f"{type(error).__name__}: {str(error).rstrip('.')}."
            if parameters and isinstance(self.make_optimizer, type):
                name = self.make_optimizer.__name__
                raised += f" {name} needs more than parameters: write lambda parameters: {name}(parameters, lr=…)."
            raise ArgumentTypeError(
                f"make_optimizer: called with the model's parameters, it raised {raised}"
            ) from error
        if not isinstance(optimizer, Optimizer):
            raise ArgumentTypeError(
                f"make_optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}."
            )
        if isinstance(self.loss_fn, nn.Module) and isinstance(loss_fn, nn.Module):
            own = dict(zip(self.loss_fn.parameters(), loss_fn.parameters(), strict=True))
            for group in optimizer.param_groups:
                group["params"][:] = [own.get(parameter, parameter) for parameter in group["params"]]
        return optimizer


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


def _refuse_bad_functions(make_model: object, make_optimizer: object, loss_fn: object) -> None:
    if isinstance(make_optimizer, Optimizer):
        kind = type(make_optimizer).__name__
        raise ArgumentTypeError(
            f"make_optimizer: expected a function that makes an optimizer, found an optimizer ({kind}). "
            f"Each trial has a model of its own: write lambda parameters: {kind}(parameters, lr=…)."
        )
    named = {"make_model": make_model, "make_optimizer": make_optimizer, "loss_fn": loss_fn}
    for name, value in named.items():
        if not callable(value):
            raise ArgumentTypeError(f"{name}: expected something to call, found {type(value).__name__}.{_HINTS[name]}")
    if isinstance(make_model, nn.Module):
        raise ArgumentTypeError(
            "make_model: expected a function that makes a model, found a model. Write lambda: MyModel()."
        )


def _refuse_bad_batches(batches: object) -> None:
    if not isinstance(batches, Sequence):
        raise ArgumentTypeError(f"batches: expected a sequence, found {type(batches).__name__}. Write list(loader).")
    if len(batches) < 2:
        raise ArgumentValueError(f"batches: expected two or more, one of them to hold out, found {len(batches)}.")


def _pair(number: int, batch: Any) -> Batch:
    if isinstance(batch, Mapping) and {"inputs", "targets"} == set(batch):
        return batch["inputs"], batch["targets"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
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
