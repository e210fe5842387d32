"""Refuse a clipping policy where it cannot act, in words for the user."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.clip import Policy
from gradwatch.hooks.guard import UnwatchableError
from gradwatch.ranks.shards import any_is_part
from gradwatch.watcher.attempt import Attempt

__all__ = ["refuse_own_weights", "refuse_policy_that_cannot_act"]

_ALIKE = 0.1
"""Relative distance to the weights below which what an optimizer keeps is taken for weights of its own."""


def refuse_policy_that_cannot_act(policy: Policy, attempt: Attempt, *, again: bool) -> None:
    """
    Args:
        policy: the one that was asked for.
        attempt: an update that is about to be made.
        again: its closure was evaluated once more.

    Raises:
        UnwatchableError: where the policy cannot do to this update what it is for.
    """
    if policy.needs_whole and any_is_part(attempt.parameters):
        raise UnwatchableError(
            f"gradwatch: clip={policy.description} reads whole tensors, and each rank holds parts of these. Use a "
            'number (the total norm), "auto" or by_layer_norm() instead: they clip by the norms of the whole.'
        )
    if policy.limit_update_ is None:
        return
    if attempt.optimizer is None:
        raise UnwatchableError(
            f"gradwatch: clip={policy.description} shortens an update once it is made, and without an optimizer nobody "
            "says when that is. Use a policy that clips gradients, such as clip=1.0."
        )
    if again:
        raise UnwatchableError(
            f"gradwatch: clip={policy.description} shortens an update once it is made, and this "
            f"{type(attempt.optimizer).__name__} evaluates its closure several times within one. Use a policy that "
            "clips gradients, such as clip=1.0."
        )


def refuse_own_weights(optimizer: Optimizer, parameters: Sequence[Tensor], policy: Policy) -> None:
    """
    Raises:
        UnwatchableError: where ``optimizer`` keeps weights of its own beside the parameters that it has just updated.
            What is changed in the parameters would not last.
    """
    weights = [parameter.detach() for parameter in parameters]
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    for name in {name for state in states for name in state}:
        values = [state.get(name) for state in states]
        if _are_alike(values, weights):
            raise UnwatchableError(
                f"gradwatch: clip={policy.description} shortens an update once it is made, and this "
                f"{type(optimizer).__name__} keeps weights of its own, so that the change would not last. Use a policy "
                "that clips gradients, such as clip=1.0."
            )


def _are_alike(values: Sequence[object], weights: Sequence[Tensor]) -> bool:
    """Return whether each of ``values`` is a tensor as large as its weight, and all together differ little."""
    distance = norm = 0.0
    for value, weight in zip(values, weights, strict=True):
        if not isinstance(value, Tensor) or value.shape != weight.shape:
            return False
        distance += float((value.to(weight) - weight).double().square().sum())
        norm += float(weight.double().square().sum())
    return distance < _ALIKE**2 * norm
