"""One step out of the file of a black box, and the ways in which it can be run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.recover.plain_values import holds_everything, rebuild
from gradwatch.recover.random_state import RandomState
from gradwatch.recover.training_state import TrainingState

__all__ = ["FailedStep", "LossFunction", "Pass", "UnreplayableError", "batch_rows", "keep_rows", "step_in"]

LossFunction = Callable[[nn.Module, Any], Tensor]
"""(model, batch) → scalar loss, as in the loop."""


class UnreplayableError(Exception):
    """The reason why the step of a file cannot be run again."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a step, and where its backward pass begins.

    Attributes:
        model: the name of the model.
        args, kwargs: what the model was given.
        batch: what the loop handed over; None where it handed nothing over.
        extra: further arguments of a ``training_step``.
        random: the state of every generator before it.
        autocast: device type, whether it was on, dtype.
        output_gradients: of each tensor that the model returned; None for one that was too large to be kept.
        has_batch: whether the loop handed a batch over.
    """

    model: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: Any
    extra: tuple[Any, ...]
    random: RandomState
    autocast: tuple[str, bool, torch.dtype]
    output_gradients: Sequence[Tensor | None] = ()
    has_batch: bool = False

    @property
    def given(self) -> Any:
        """Return what a loss function is called with: the batch, or else what the model was given."""
        if self.has_batch:
            return self.batch
        if self.kwargs and not self.args:
            return dict(self.kwargs)
        return self.args[0] if len(self.args) == 1 and not self.kwargs else self.args


@dataclass(frozen=True)
class FailedStep:
    """A step of the file.

    Attributes:
        step: its number.
        record: the step as the file holds it.
        scale: the loss scale; None without one.
        figures: what was measured.
        gradients: {parameter: digest of its gradient}; empty where the step had none, or nobody could wait.
        state: weights, buffers and optimizers.
        is_exact: whether the state is that of before this very step.
        modes: {model: {module: whether it was in training mode}}.
        frozen: {model: names of the parameters that do not learn}.
        device: that the step ran on.
        notes: what makes a replay less than exact, a sentence each.
    """

    step: int
    record: Mapping[str, Any]
    scale: float | None
    figures: Mapping[str, Any]
    gradients: Mapping[str, str]
    state: TrainingState
    is_exact: bool
    modes: Mapping[str, Mapping[str, bool]]
    frozen: Mapping[str, Sequence[str]]
    device: str
    notes: Sequence[str] = field(default_factory=list)

    def passes(self, *, by_call: bool) -> list[Pass]:
        """Return the forward passes of the step, in their order.

        Args:
            by_call: one for each call of a model; else one for each batch that the loop handed over, if it did that.

        Raises:
            UnreplayableError: where the file does not hold what a model was given.
        """
        if self.record["batches"] and not by_call:
            return list(_passes_of_batches(self.record))
        return list(_passes_of_calls(self.record["calls"]))

    def prepare_(self, models: Mapping[str, nn.Module]) -> None:
        """Bring ``models`` into the state of before the step.

        Raises:
            UnreplayableError: where they are other models.
        """
        try:
            self.state.restore_(models)
        except ValueError as error:
            raise UnreplayableError(str(error)) from error
        for name, model in models.items():
            modes, frozen = self.modes.get(name, {}), set(self.frozen.get(name, ()))
            _set_modes(model, modes)
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter_name not in frozen)
                parameter.grad = None


def step_in(content: Mapping[str, Any], number: int | None = None) -> FailedStep:
    """Return a step of the file.

    Args:
        content: of the file.
        number: of the step; None takes the one that failed.

    Raises:
        UnreplayableError: where the file does not hold it, or not enough of it.
    """
    number = content["target"] if number is None else number
    found = [step for step in content["steps"] if step["step"] == number]
    if not found:
        held = ", ".join(str(step["step"]) for step in content["steps"])
        raise UnreplayableError(f"the file does not hold step {number}; it holds {held}.")
    step = found[0]
    calls = step["calls"]
    return FailedStep(
        step=number,
        record=step,
        scale=step["scale"],
        figures=step["figures"],
        gradients=step["gradients"],
        state=TrainingState.from_plain(content["state"]),
        is_exact=content["state_before"] == number,
        modes={name: model["modes"] for name, model in content["models"].items()},
        frozen={name: model["frozen"] for name, model in content["models"].items()},
        device=calls[0]["device"] if calls else "cpu",
        notes=list(_notes_on(content, step)),
    )


def _passes_of_batches(step: Mapping[str, Any]) -> Iterator[Pass]:
    calls = step["calls"]
    autocast = _autocast_of(calls[0]) if calls else ("cpu", False, torch.bfloat16)
    for kept in step["batches"]:
        random = RandomState.from_plain(kept["random"])
        if not holds_everything(kept["batch"]):
            raise UnreplayableError("the batch holds an object that no such file can hold.")
        yield Pass("", (), {}, rebuild(kept["batch"]), rebuild(kept["extra"]), random, autocast, has_batch=True)


def _passes_of_calls(calls: Sequence[Mapping[str, Any]]) -> Iterator[Pass]:
    for call in calls:
        if call["args"] is None:
            raise UnreplayableError("the file holds what identifies each batch, in place of it: BlackBox(identify=…).")
        if not holds_everything([call["args"], call["kwargs"]]):
            raise UnreplayableError("the model was given an object that no such file can hold.")
        random, gradients = RandomState.from_plain(call["random"]), call["output_gradients"]
        args, kwargs = tuple(rebuild(call["args"])), rebuild(call["kwargs"])
        yield Pass(call["model"], args, kwargs, None, (), random, _autocast_of(call), gradients)


def _autocast_of(call: Mapping[str, Any]) -> tuple[str, bool, torch.dtype]:
    saved = call["autocast"]
    return saved["device"], saved["enabled"], saved["dtype"]


def _notes_on(content: Mapping[str, Any], step: Mapping[str, Any]) -> Iterator[str]:
    number, before = step["step"], content["state_before"]
    if before != number:
        yield (
            f"the weights in the file are those of before step {before}, not {number}: nobody could wait for a copy. "
            "BlackBox(copy_state=True) copies them at each step"
        )
    if any(call["was_changed"] for call in step["calls"]):
        yield "the loop has changed the batch in place after the model was given it"


def _set_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    """Set training mode as it was; the modules around come first, for they set those inside."""
    known = dict(model.named_modules())
    for name in sorted(modes, key=lambda each: (each != "", each.count("."))):
        if name in known:
            known[name].train(modes[name])


def batch_rows(tree: Any) -> int:
    """Return how many rows a batch has: the first dimension of its first tensor that has one; 0 without any."""
    return next((len(leaf) for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim()), 0)


def keep_rows(tree: Any, rows: Tensor, size: int) -> Any:
    """Return ``tree`` with the given rows of every tensor whose first dimension is ``size``."""

    def keep(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size else leaf

    return _torch.tree_map(keep, tree)
