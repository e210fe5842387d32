"""Find out what this rank alone has seen of a sick step, without running anything.

Where several ranks train together, gradients are averaged, so that NaN of one rank is in the gradients of all. A
forward pass by itself on one rank may wait for the others for ever (it may hold a collective), so the step is not run
again. What is at hand anyway tells the rank that made it from those that did not: what the model was given, the loss,
and the gradient that arrived at what the model returned, which is of this rank's own loss. A healthy rank has all of
them finite.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

from gradwatch.explain.call_summary import ModuleCall, TensorSummary, extremes_of, has_entries
from gradwatch.explain.observed import ModuleTitle, ObservedOrigin, input_origin
from gradwatch.explain.origin import conclusion
from gradwatch.explain.recorded_call import RecordedCall, given_tensors, was_changed
from gradwatch.measure.report import Origin

__all__ = ["own_origin"]


def own_origin(calls: Sequence[RecordedCall], loss: float | None, in_loss: Origin | None) -> Origin | None:
    """Return where a NaN or Inf came from that this rank made; None where it has seen none. Waits for the device.

    Args:
        calls: of the models since the last update, and what they were given, by reference.
        loss: of this rank in this step, if it was observed.
        in_loss: what the graph of that loss shows.
    """
    if loss is not None and math.isfinite(loss):
        return _from_gradients(calls)
    given = input_origin([_summarised(call) for call in calls if not was_changed(call)])
    if given is not None:
        return conclusion(given)
    if in_loss is not None or loss is None:
        return in_loss
    return Origin("", "forward", f"the loss of this rank is {loss}: made in its forward pass, or by the loss")


def _from_gradients(calls: Sequence[RecordedCall]) -> Origin | None:
    """Return the origin in the derivative of a finite loss, by the gradients that arrived at the models' outputs."""
    for call in reversed(calls):
        held = [gradient for arrived in call.gradients for gradient in arrived if gradient is not None]
        if any(
            not math.isfinite(float(end)) for gradient in held if has_entries(gradient) for end in extremes_of(gradient)
        ):
            return conclusion(ObservedOrigin("gradient of the loss", ModuleTitle(call.name, call.type)))
    return None


def _summarised(call: RecordedCall) -> ModuleCall:
    """Return the call as the traces of modules have it, without what it returned."""
    leaves = given_tensors(call)
    tensors = [leaf for leaf, _ in leaves if has_entries(leaf)]
    computed = {id(leaf) for leaf, is_computed in leaves if is_computed}
    given = [TensorSummary(extremes_of(tensor)) for tensor in tensors]
    return ModuleCall(
        call.name,
        call.type,
        given,
        is_outermost=True,
        batch=[weakref.ref(tensor) for tensor in tensors],
        computed=[summary for tensor, summary in zip(tensors, given, strict=True) if id(tensor) in computed],
        follows_others=bool(tensors) and leaves[0][0] is not tensors[0],
    )
