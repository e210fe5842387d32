"""Take an update from the loop without any of our hooks and tables, where the way through them has failed.

What is asked for is then done by ``plain_way``, which shares no function with the way that failed either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.plain_way import begin_plainly

if TYPE_CHECKING:  # it leads back here
    from gradwatch.watcher.watched_loop import WatchedLoop

__all__ = ["before_update_plainly", "observe_loss_plainly", "take_in_plainly"]


def before_update_plainly(
    loop: WatchedLoop, optimizer: Optimizer, loss: object = None, *, again: bool = False, scale: Tensor | None = None
) -> None:
    """Act on an update whose preparation failed. It shares no function with the way that failed."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    watched = set(map(id, loop.layers.tensors))
    if not any(id(parameter) in watched for parameter in parameters):
        return
    if not again:
        _keep_loss_plainly(loop, loss)
    has_scaler = _has_scaler_plainly(loop, optimizer)
    if not has_scaler:
        _add_those_inside_plainly(loop, optimizer, parameters, watched)
    scale = getattr(optimizer, "grad_scale", None) if scale is None else scale
    gradients = [parameter.grad for parameter in parameters]
    begin_plainly(loop.steps, Attempt(optimizer, parameters, gradients, scale, has_scaler), again=again)


def _add_those_inside_plainly(
    loop: WatchedLoop, optimizer: Optimizer, parameters: list[Tensor], watched: set[int]
) -> None:
    """Add to ``parameters`` those of the optimizers inside ``optimizer``, where one of them is watched."""
    for inner in _optimizers_within_plainly(optimizer):
        track = loop.steps.tracks.by_optimizer.get(inner)
        groups = getattr(inner, "param_groups", ()) if track is None or track.count == 0 else ()
        known = set(map(id, parameters))
        added = [each for group in groups for each in group["params"] if id(each) not in known]
        if any(id(each) in watched for each in added):
            parameters += added


def _optimizers_within_plainly(optimizer: Optimizer) -> list[Optimizer]:
    found = [optimizer]
    for each in found:  # which grows
        for value in vars(each).values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            found += [part for part in parts if isinstance(part, Optimizer) and part not in found]
    return found[1:]


def _keep_loss_plainly(loop: WatchedLoop, loss: object) -> None:
    """Keep the loss that a closure returned, if it is a single number and no loss was observed."""
    if isinstance(loss, Tensor | float) and not loop.steps.losses:
        loop.steps.losses = [loss] if isinstance(loss, float) or loss.numel() == 1 else []


def _has_scaler_plainly(loop: WatchedLoop, optimizer: Optimizer) -> bool:
    scaler = loop.scalers.get(optimizer, loop.scaler)
    return hasattr(optimizer, "found_inf") or (scaler is not None and scaler.is_enabled())


def observe_loss_plainly(loop: WatchedLoop, loss: Tensor | float) -> None:
    loop.steps.losses.append(loss.detach() if isinstance(loss, Tensor) else loss)


def take_in_plainly(loop: WatchedLoop, gradients: Mapping[int, Tensor]) -> None:
    parameters = [loop.layers.tensors[column] for column in gradients]
    begin_plainly(loop.steps, Attempt(None, parameters, list(gradients.values())))
