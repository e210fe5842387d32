"""Act as a clipping policy asks beyond scaling gradients: leave updates out, shorten them, or refuse in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.clip import IsSpike, Policy
from gradwatch.hooks.guard import UnwatchableError
from gradwatch.measure.measurement import Measurement
from gradwatch.ranks.shards import any_is_part
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.optimizer_track import OptimizerTrack

__all__ = ["keep_weights", "leaves_spike_out", "refuse_policy_that_cannot_act", "shorten_update", "take_flag_back"]

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


def leaves_spike_out(
    is_spike: IsSpike, track: OptimizerTrack, attempt: Attempt, current: Measurement, *, has_loss: bool
) -> bool:
    """Return whether the update is to be left out, because its loss or its total norm is a spike.

    A fused optimizer takes the flag on the device, as it does from a gradient scaler. Then nobody waits to read it, and
    this returns False.

    Args:
        is_spike: that of the policy.
        track: of the optimizer.
        attempt: the update.
        current: its figures.
        has_loss: whether the loss is the same on all ranks that have these gradients.
    """
    flag = is_spike(current.true_total(), current.loss_on_device if has_loss else None)
    optimizer = attempt.optimizer
    if optimizer is None or attempt.has_scaler or not _torch.unscales_itself(optimizer):
        return bool(flag)
    track.skip_flag = flag.to(attempt.device, torch.float32)
    _torch.leave_out_on_device(optimizer, track.skip_flag)
    current.mark_skipped_if(track.skip_flag)
    return False


def take_flag_back(track: OptimizerTrack, optimizer: Optimizer | None) -> None:
    """Have a fused ``optimizer`` make its next update, if it was told to leave one out."""
    if track.skip_flag is not None and optimizer is not None:
        track.skip_flag = None
        _torch.leave_out_on_device(optimizer, None)


def keep_weights(track: OptimizerTrack, attempt: Attempt) -> None:
    """Copy the weights that are about to be updated, so that the update can be shortened."""
    pairs = zip(attempt.parameters, attempt.gradients, strict=True)
    parameters = [parameter for parameter, gradient in pairs if gradient is not None]
    track.kept = parameters, [parameter.detach().clone() for parameter in parameters]


def shorten_update(track: OptimizerTrack, optimizer: Optimizer) -> None:
    """Shorten the update that ``optimizer`` has made, if its weights of before were kept.

    Raises:
        UnwatchableError: where it keeps weights of its own, which it would go back to.
    """
    if track.kept is None or track.policy is None or track.policy.limit_update_ is None:
        return
    (parameters, before), track.kept = track.kept, None
    if track.count == 1:
        _refuse_own_weights(optimizer, parameters, track.policy)
    track.policy.limit_update_(parameters, before)


def _refuse_own_weights(optimizer: Optimizer, parameters: Sequence[Tensor], policy: Policy) -> None:
    """
    Raises:
        UnwatchableError: where ``optimizer`` keeps weights of its own beside the parameters that it has just updated.
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
