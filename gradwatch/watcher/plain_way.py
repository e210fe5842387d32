"""Act on an update without any of our measurements, where the way through them has failed.

The update is counted, exchanged with the other ranks if the ranks do that, and then skipped, refused or clipped. It
shares no function with the way that failed; ``plain_acts`` has what torch alone can do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gradwatch.clip import Policy
from gradwatch.findings import NonFiniteError
from gradwatch.measure.measurement import Measurement
from gradwatch.ranks.shards import any_is_part
from gradwatch.watcher import plain_acts
from gradwatch.watcher.attempt import Attempt
from gradwatch.watcher.optimizer_track import OptimizerTrack

if TYPE_CHECKING:  # it leads back here
    from gradwatch.watcher.steps import Steps

__all__ = ["act_plainly", "begin_plainly", "clip_plainly"]


def begin_plainly(steps: Steps, attempt: Attempt, *, again: bool = False) -> None:
    """Act on an update whose step could not be begun: count it if nobody has, then skip it, raise or clip."""
    losses = _losses_of_failed_step(steps, again=again)
    tracks, optimizer = steps.tracks, attempt.optimizer
    track = tracks.by_hand if optimizer is None else tracks.by_optimizer.get(optimizer)
    attempt = _exchange_plainly(steps, track, attempt, losses)
    act_plainly(steps, track, attempt, losses, again=again)


def _exchange_plainly(
    steps: Steps, track: OptimizerTrack | None, attempt: Attempt, losses: Sequence[Tensor | float]
) -> Attempt:
    """Take part in what the ranks exchange, if that was not done yet; return the update in parts if it is sharded."""
    try:
        if any_is_part(attempt.parameters):
            attempt = steps.exchange.localise(attempt)
        steps.exchange.add_up(track, attempt, None, losses)
    except Exception:
        steps.guard.note_fault("exchange of figures, the plain way")
    return attempt


def act_plainly(
    steps: Steps,
    track: OptimizerTrack | None,
    attempt: Attempt,
    losses: Sequence[Tensor | float],
    *,
    again: bool = False,
) -> None:
    """Skip an update, raise or clip, without any of our measurements."""
    current = None if track is None else track.current
    may_refuse = not again or steps.on_nonfinite == "raise"  # a later evaluation cannot be skipped
    if may_refuse and _must_not_update(steps, attempt, losses):
        steps.last_refused, steps.refused_because = steps.count - 1, "it was not finite"
        if current is None:
            steps.processor.skipped_steps += not again
        else:
            _note(steps, current.mark_skipped)
        if steps.on_nonfinite == "raise":
            raise _plain_error(steps, attempt)
        plain_acts.leave_out(attempt)
    elif not again and plain_acts.is_spike(attempt, _policy_of(steps, track), _losses_that_count(steps, losses)):
        if current is not None:
            _note(steps, current.mark_skipped)
        plain_acts.leave_out(attempt)
    else:
        clip_plainly(steps, track, attempt, current)


def _must_not_update(steps: Steps, attempt: Attempt, losses: Sequence[Tensor | float]) -> bool:
    """Return whether no update is to be made; by what all ranks have exchanged, where they have."""
    if steps.exchange.sums is None:
        return plain_acts.must_not_update(attempt, _losses_that_count(steps, losses), steps.on_nonfinite)
    return steps.on_nonfinite != "report" and not attempt.has_scaler and not steps.exchange.is_finite()


def _losses_that_count(steps: Steps, losses: Sequence[Tensor | float]) -> Sequence[Tensor | float]:
    """Return no losses where replicas decide each for itself: their gradients are equal, their losses are not."""
    try:
        return () if losses and steps.exchange.has_replicas() else losses
    except Exception:
        steps.guard.note_fault("looking for replicas")
        return losses


def clip_plainly(steps: Steps, track: OptimizerTrack | None, attempt: Attempt, current: Measurement | None) -> None:
    """Clip as torch does; a policy of the user's own may fail at that, too, and then nothing is clipped."""
    policy = _policy_of(steps, track)
    if policy is None:
        return
    if current is not None:
        _note(steps, current.forget_clipped_total)
    try:
        plain_acts.clip_attempt_plainly_(attempt, policy, steps.exchange.norms())
        if steps.exchange.partial:
            steps.exchange.write_back()
    except Exception as error:
        steps.warn_once(
            "unclipped",
            f"clip={policy.description} failed ({type(error).__name__}: {error}): the gradients of step "
            f"{steps.count - 1} are not clipped, and those of later steps neither where it fails again.",
        )


def _policy_of(steps: Steps, track: OptimizerTrack | None) -> Policy | None:
    """Return how to clip; None where nobody asked for that, or where it would make replicas differ."""
    policy = steps.policy if track is None else track.policy
    return policy if steps.exchange.may_clip else None


def _note(steps: Steps, note: Callable[[], None]) -> None:
    """Note a plain act in the figures of its step; the act does not depend on it."""
    try:
        note()
    except Exception:
        steps.guard.note_fault("noting a plain act")


def _plain_error(steps: Steps, attempt: Attempt) -> NonFiniteError:
    sick, step = plain_acts.first_nonfinite(attempt), steps.count - 1
    names = [name for name, tensor in zip(steps.layers.names, steps.layers.tensors, strict=True) if tensor is sick]
    where = f"the gradient of {names[0]}" if names else "a gradient or the loss"
    return NonFiniteError("".join(names), step, f"{where} is NaN or Inf at step {step}.")


def _losses_of_failed_step(steps: Steps, *, again: bool) -> Sequence[Tensor | float]:
    """Return the losses of the step that failed, which is counted from here on."""
    if again:
        steps.losses = []
        return ()
    losses, steps.undecided = steps.undecided, None
    if losses is None:  # it failed before it was counted
        losses = steps.losses or [*steps.found_losses]
        steps.losses, steps.found_losses = [], []
        steps.count += 1
        steps.guard.step += 1
    return losses
