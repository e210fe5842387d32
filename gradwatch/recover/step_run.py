"""Run the forward and backward passes of a failed step on a model that was brought into its state."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwatch import _torch
from gradwatch.measure import statistics
from gradwatch.recover.failed_step import FailedStep, LossFunction, Pass, UnreplayableError

__all__ = ["Computed", "Outcome", "Setting", "compute", "gradients_of", "moved", "run"]


@dataclass(frozen=True)
class Setting:
    """How a step is run, as far as that differs from how it was run first.

    Attributes:
        autocast: False turns it off.
    """

    autocast: bool = True


_AS_IT_WAS = Setting()


@dataclass(frozen=True)
class Computed:
    """The result of a forward pass.

    Attributes:
        loss: () where there is one.
        outputs: the tensors with a gradient that the model returned.
        gradients: where the backward pass begins without a loss; None for an output that had no gradient.
    """

    loss: Tensor | None
    outputs: list[Tensor]
    gradients: list[Tensor | None]


@dataclass(frozen=True)
class Outcome:
    """The result of one run of the step.

    Attributes:
        loss: the mean over its passes; None where nothing computes one.
        total: L2 norm of all gradients, the loss scale divided out.
        norms: {parameter: the same}.
        nonfinite: {parameter: how many entries are NaN or Inf}.
        outputs_are_finite: whether what the model returned was.
        error: the class of an exception that it has raised.
        has_gradients: whether there was anything for a backward pass to begin at.
    """

    loss: float | None
    total: float
    norms: Mapping[str, float]
    nonfinite: Mapping[str, int]
    outputs_are_finite: bool
    error: str | None = None
    has_gradients: bool = True

    @property
    def is_finite(self) -> bool:
        """Return whether loss, outputs and gradients are."""
        has_loss = self.loss is not None
        return (not has_loss or math.isfinite(self.loss or 0.0)) and self.outputs_are_finite and not self.nonfinite


def run(
    models: Mapping[str, nn.Module],
    step: FailedStep,
    passes: list[Pass],
    loss_fn: LossFunction | None,
    setting: Setting = _AS_IT_WAS,
) -> Outcome:
    """Run ``passes`` of ``step``, forward and backward; gradients are left in ``models``, times the loss scale.

    Args:
        models: in the state of before the step, see ``FailedStep.prepare_``.
        step: the one that failed.
        passes: its passes, or changed ones.
        loss_fn: the user's; None takes the loss from ``training_step`` or from what the model returns, or begins the
            backward pass with the gradients that arrived at the outputs.
        setting: what differs.

    Raises:
        UnreplayableError: where a model is missing.
    """
    losses: list[float] = []
    is_finite, has_gradients = True, False
    try:
        for each in passes:
            done = compute(models, each, loss_fn, setting)
            is_finite = is_finite and all(bool(output.isfinite().all()) for output in done.outputs)
            if done.loss is not None:
                losses.append(float(done.loss.detach()))
            has_gradients = _backward(done, step.scale) or has_gradients
    except UnreplayableError:
        raise
    except Exception as error:  # of the user's own code, which is what is being looked into
        return Outcome(None, math.nan, {}, {}, is_finite, type(error).__name__, has_gradients=False)
    loss = sum(losses) / len(losses) if losses else None
    return _outcome(models, step, loss, is_finite, has_gradients=has_gradients)


def compute(models: Mapping[str, nn.Module], each: Pass, loss_fn: LossFunction | None, setting: Setting) -> Computed:
    """Run one forward pass, from its random state.

    Raises:
        UnreplayableError: where its model is missing.
    """
    if each.model not in models and not each.has_batch:
        raise UnreplayableError(f"the step called the model {each.model!r}, and there is none of this name.")
    model = models[each.model] if each.model in models else next(iter(models.values()))
    device, is_on, dtype = each.autocast
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.extend(_differentiable(output)))
    each.random.restore()
    try:
        with torch.autocast(device, dtype, enabled=is_on and setting.autocast), torch.enable_grad():
            loss, output = _call(model, each, loss_fn)
    finally:
        handle.remove()
    outputs = seen if output is None else _differentiable(output)
    gradients = list(each.output_gradients) if loss is None else []
    return Computed(loss, outputs, gradients)


def _call(model: nn.Module, each: Pass, loss_fn: LossFunction | None) -> tuple[Tensor | None, Any]:
    """Return the loss, if anything computes one, and what the model returned, if it was called here."""
    if loss_fn is not None:
        return _scalar(loss_fn(model, each.given)), None
    if each.has_batch and hasattr(model, "training_step"):
        step: Any = model.training_step
        extra = each.extra[: max(0, len(inspect.signature(step).parameters) - 1)]
        return _scalar(step(each.batch, *extra)), None
    output = model(*each.args, **each.kwargs)
    return _loss_in(output), output


def _scalar(result: Any) -> Tensor:
    """Return the loss in what a loss function or a ``training_step`` has returned.

    Raises:
        UnreplayableError: where there is none.
    """
    loss = _loss_in(result)
    if loss is None:
        raise UnreplayableError(f"the loss function returned {type(result).__name__}; expected a scalar tensor.")
    return loss


def _loss_in(output: Any) -> Tensor | None:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad else None


def _differentiable(output: Any) -> list[Tensor]:
    return [leaf for leaf in _torch.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def _backward(done: Computed, scale: float | None) -> bool:
    """Run a backward pass, if there is anything to begin at; return whether there is."""
    if done.loss is not None:
        (done.loss if scale is None else done.loss * scale).backward()
        return True
    pairs = [
        (output, gradient.to(output.device, output.dtype))
        for output, gradient in zip(done.outputs, done.gradients, strict=False)
        if gradient is not None
    ]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    return bool(pairs)


def _outcome(
    models: Mapping[str, nn.Module], step: FailedStep, loss: float | None, is_finite: bool, *, has_gradients: bool
) -> Outcome:
    named = dict(gradients_of(models))
    if not named:
        return Outcome(loss, 0.0, {}, {}, is_finite, has_gradients=False)
    scale = None if step.scale is None else torch.tensor(step.scale, device=next(iter(named.values())).device)
    found = statistics.measure(list(named.values()), scale)
    return Outcome(
        loss=loss,
        total=float(found.total),
        norms=dict(zip(named, map(float, found.l2.tolist()), strict=True)),
        nonfinite={name: int(count) for name, count in zip(named, found.nonfinite.tolist(), strict=True) if count},
        outputs_are_finite=is_finite,
        has_gradients=has_gradients,
    )


def gradients_of(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield (full name, gradient) of every parameter that has one."""
    for root, model in models.items():
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                yield f"{root}.{name}".lstrip("."), parameter.grad


def moved(each: Pass, device: torch.device, dtype: torch.dtype | None = None) -> Pass:
    """Return a pass with its tensors on ``device``, and those of floating point as ``dtype``."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype)

    kind, is_on, lower = each.autocast
    autocast = (device.type if is_on and kind != device.type else kind, is_on, lower)
    args, kwargs, batch = _torch.tree_map(move, (each.args, dict(each.kwargs), each.batch))
    return Pass(
        each.model,
        args,
        kwargs,
        batch,
        each.extra,
        each.random,
        autocast,
        [None if gradient is None else move(gradient) for gradient in each.output_gradients],
        each.has_batch,
    )
