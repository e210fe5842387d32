"""What the user gave → a training problem that can be run again and again.

Enters: ``make_model``, ``make_optimizer``, ``batches``, ``loss_fn``. Leaves: models of their own for each trial, the
batches to train on and those held out. Knows nothing of remedies.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.prescription.rows import kept, largest_entries

__all__ = ["Batch", "Problem", "apart", "called", "given", "owned"]

Batch = tuple[Any, Any]
"""(inputs, targets), each a tensor or a structure of tensors."""

EVERY = 5  # one batch in so many is held out: a fifth, spread over all of them, since order may mean something
MOST = 20  # batches held out: each trial looks at all of them


@dataclass(frozen=True)
class Problem:
    """A training problem.

    Attributes:
        make_model: as the user gave it; called anew for every trial, under that trial's seed.
        make_optimizer: parameters → optimizer.
        training: the batches to train on, in their order.
        held_out: those never trained on; without their rows that hold NaN or Inf, which tell nothing of a model, or
            without the whole batch where its tensors do not begin with the same number of items; once an untrained
            model was run, without those of which it had no finite loss.
        loss_fn: (outputs, targets) → scalar.
        hands_out: once known, whether ``make_model`` gives one and the same model every time.
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
        """Checks what the user gave, and holds out a fifth of the batches.

        Raises:
            TypeError, ValueError: naming the argument, what was expected, what was found and what to do.
        """
        if isinstance(make_optimizer, Optimizer):
            kind = type(make_optimizer).__name__
            raise TypeError(
                f"make_optimizer: expected a function that makes an optimizer, found an optimizer ({kind}). "
                f"Each trial has a model of its own: write lambda parameters: {kind}(parameters, lr=…)."
            )
        named = {"make_model": make_model, "make_optimizer": make_optimizer, "loss_fn": loss_fn}
        for name, value in named.items():
            if not callable(value):
                raise TypeError(f"{name}: expected something to call, found {type(value).__name__}.{_HINTS[name]}")
        if isinstance(make_model, nn.Module):
            raise TypeError(
                "make_model: expected a function that makes a model, found a model. Write lambda: MyModel()."
            )
        if not isinstance(batches, Sequence):
            raise TypeError(f"batches: expected a sequence, found {type(batches).__name__}. Write list(loader).")
        if len(batches) < 2:
            raise ValueError(f"batches: expected two or more, one of them to hold out, found {len(batches)}.")
        pairs = [_pair(number, batch) for number, batch in enumerate(batches)]
        every = max(EVERY, -(-len(pairs) // MOST))
        held_out = [*range(every - 1, len(pairs), every)] or [len(pairs) - 1]
        training = [pair for number, pair in enumerate(pairs) if number not in held_out]
        finite = [kept(pairs[number], largest_entries(pairs[number]).isfinite()) for number in held_out]
        sound = [pair for pair in finite if pair is not None]
        if not sound:
            raise ValueError(
                f"batches: NaN or Inf leaves nothing of those held out (numbers {_some(held_out)}), so no model could "
                "be judged. Clean the data, or give more batches."
            )
        return cls(make_model, make_optimizer, training, sound, loss_fn)

    def fresh_model(self) -> nn.Module:
        """A model that nobody else holds: a copy, where ``make_model`` gives one that it gave before.

        Raises:
            TypeError: where ``make_model`` makes no module.
        """
        model = self.make_model()
        if not isinstance(model, nn.Module):
            raise TypeError(f"make_model: expected it to return an nn.Module, found {type(model).__name__}.")
        if not self.hands_out:  # once: does it make models, or hand out one that the user goes on to train?
            self.hands_out.append(_shares(model, self.make_model()))
        return copy.deepcopy(model) if self.hands_out[0] else model

    def fresh_optimizer(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> Optimizer:
        """One that trains ``model``; if it also trains the user's loss, then ``loss_fn``, a copy of that, in its place.

        Raises:
            TypeError: where ``make_optimizer`` raises, or makes no optimizer.
        """
        parameters = list(model.parameters())
        try:
            optimizer = self.make_optimizer(parameters)
        except Exception as error:
            raised = f"{type(error).__name__}: {str(error).rstrip('.')}."
            if parameters and isinstance(self.make_optimizer, type):
                name = self.make_optimizer.__name__
                raised += f" {name} needs more than parameters: write lambda parameters: {name}(parameters, lr=…)."
            raise TypeError(f"make_optimizer: called with the model's parameters, it raised {raised}") from error
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"make_optimizer: expected a torch.optim.Optimizer, found {type(optimizer).__name__}.")
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


def called(model: nn.Module, inputs: Any) -> Any:
    """What ``model`` makes of one batch's inputs: named where they are a mapping, in order where a tuple or list.

    Where the model's ``forward`` cannot take them so, they are handed over as one argument.
    """
    way = given(model, inputs)
    return model(**inputs) if way == "**x" else model(*inputs) if way == "*x" else model(inputs)


def given(model: nn.Module, inputs: Any) -> str:
    """How ``called`` hands over inputs ``x``, as Python writes it."""
    if isinstance(inputs, Mapping) and _fits(model, (), inputs):
        return "**x"
    return "*x" if isinstance(inputs, (tuple, list)) and _fits(model, inputs, {}) else "x"


def apart(loss_fn: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A copy of a loss that is a module, whose weights and statistics may move; what cannot be copied, as it is."""
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    try:
        return copy.deepcopy(loss_fn)
    except Exception:
        return loss_fn


def owned(batch: Any) -> Any:
    """A copy of a batch, so that a model that works in place spoils nothing."""
    return _torch.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


def _pair(number: int, batch: Any) -> Batch:
    if isinstance(batch, Mapping) and {"inputs", "targets"} == set(batch):
        return batch["inputs"], batch["targets"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    found = f"a mapping of {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise TypeError(
        f'batches[{number}]: expected (inputs, targets), or {{"inputs": …, "targets": …}}, found {found}. '
        "Put whatever the loss needs into targets; it may be any structure."
    )


def _some(numbers: Sequence[int]) -> str:
    """The first three, and how many more there are."""
    more = [f"{len(numbers) - 3} more"] if len(numbers) > 3 else []
    return ", ".join([*map(str, numbers[:3]), *more])


def _fits(model: nn.Module, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **named)
    except (TypeError, ValueError):
        return False
    return True


def _shares(model: nn.Module, first: nn.Module) -> bool:
    """Whether both are one model, or hold the same weights."""
    held = {id(parameter) for parameter in first.parameters()}
    return model is first or any(id(parameter) in held for parameter in model.parameters())
