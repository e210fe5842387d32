"""Say where a NaN or Inf came from: one sentence from the fields of an origin, made at the very end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from gradwatch.explain.clues import module_in_words
from gradwatch.explain.inferred import InferredOrigin, InferredPattern, Unseen
from gradwatch.explain.loss_graph import LossGraph, TakenTensor
from gradwatch.explain.observed import BadRows, ModuleTitle, ObservedOrigin, Pattern
from gradwatch.explain.operations import FaultyOperation

__all__ = ["inferred_sentence", "listed_rows", "loss_graph_text", "observed_sentence"]

_MOST_ROWS = 8  # that are listed

_MASKED_ROW = "a softmax over a row that is −Inf throughout (masked entirely)"
_BY_RANGE = {
    "log": "the logarithm of {low}",
    "log2": "the logarithm of {low}",
    "log10": "the logarithm of {low}",
    "log1p": "log1p of {low}",
    "sqrt": "the square root of {low}",
    "rsqrt": "1 ÷ the square root of {low}",
    "reciprocal": "1 ÷ 0",
    "exp": "the exponential of {high}",
    "exp2": "the exponential of {high}",
    "expm1": "the exponential of {high}",
    "sinh": "sinh of {far}",
    "cosh": "cosh of {far}",
    "_ctc_loss": "ctc_loss has no path for a target that is longer than its input",
    "_softmax": _MASKED_ROW,
    "_log_softmax": _MASKED_ROW,
    "asin": "asin beyond ±1",
    "acos": "acos beyond ±1",
    "atanh": "atanh at or beyond ±1",
    "acosh": "acosh below 1",
}
"""Operation to its fault. Its first operand reaches from ``low`` to ``high``; ``far`` is the end far from 0."""

_WITHOUT_RANGE = {
    "sqrt": "the square root of a negative number",
    "rsqrt": "1 ÷ the square root of a number that is not above 0",
    "reciprocal": "1 ÷ 0",
    "exp": "an exponential beyond the largest number of its format",
    "softmax": _MASKED_ROW,
    "logsoftmax": _MASKED_ROW,
}
"""The same where the operands are not known."""


def observed_sentence(origin: ObservedOrigin) -> str:
    """Return what the calls of the step show, without a full stop."""
    parts, operation = [_OBSERVED[origin.pattern](origin)], origin.operation
    if operation is not None:
        is_hidden = origin.where == "backward" and not operation.derivative_of
        given = _given_text(origin, operation)
        parts.append(f": {operation_text(operation)}{given}{', in its forward pass' if is_hidden else ''}")
    if origin.taken is not None:
        parts.append(f": {_target_text(origin.taken)}")
    if origin.corrupt:
        parts.append(f": its {', '.join(origin.corrupt)} already held NaN or Inf")
    if origin.loss_operations:
        parts.append(f" ({_loss_text(origin)})")
    return "".join(parts)


def inferred_sentence(origin: InferredOrigin, unseen: Unseen) -> str:
    """Return what the gradients of the step show, without a full stop.

    Args:
        origin: what was inferred.
        unseen: why no call was seen.
    """
    if unseen == "distributed":
        return f"{_of_all_ranks_text(origin)}; gradients are means over the ranks, and another rank may have made it"
    if unseen == "bare tensors":
        return _INFERRED[origin.pattern](origin)
    module = "the module that made it" if origin.pattern == "one module" else "the module"
    return f"{_INFERRED[origin.pattern](origin)}; {module} was not seen: {_UNSEEN[unseen]}"


def _given_text(origin: ObservedOrigin, operation: FaultyOperation) -> str:
    """Return which module's result an operation of one operand was given, inside another module; else nothing."""
    if origin.pattern != "forward" or operation.family not in ("exponential", "logarithm", "root"):
        return ""
    is_inside = operation.given_by not in ("", origin.module.name)
    return f", of what {module_in_words(operation.given_by)} returned" if is_inside else ""


def _target_text(taken: TakenTensor) -> str:
    """Return what the loss takes beside the outputs of the model that was sick already."""
    return f"the loss takes {_taken_text(taken)}: a target or weight, computed without the model"


def loss_graph_text(losses: LossGraph) -> str | None:
    """Return what made a loss NaN or Inf, where nothing is known of the model; None where its graph shows nothing."""
    if losses.fault is not None:
        return f"the graph of the loss shows {operation_text(losses.fault)}"
    if losses.taken is not None:
        return f"the graph of the loss takes {_taken_text(losses.taken)}, computed without a gradient"
    return None


def _taken_text(taken: TakenTensor) -> str:
    what = "NaN" if taken.has_nan else "Inf"
    rows = f", in row{'' if len(taken.rows) == 1 else 's'} {listed_rows(taken.rows)}" if taken.rows else ""
    if taken.is_result:
        return f"a tensor that already held {what} (what is computed of it, {taken.shape}, holds it{rows})"
    return f"a {taken.shape} tensor that already held {what}{rows}"


def operation_text(operation: FaultyOperation) -> str:
    """Return what an operation did to its operands."""
    derivative = f", in the derivative of {operation.derivative_of}" if operation.derivative_of else ""
    return f"{_fault_text(operation)}{derivative}"


def _forward_text(origin: ObservedOrigin) -> str:
    given = "Inf" if origin.was_given_inf else "finite values"
    return f"{_module_text(origin.module)} was given {given} and returned {'NaN' if origin.has_nan else 'Inf'}"


def _input_text(origin: ObservedOrigin) -> str:
    return f"what {_module_text(origin.module)} was given already held NaN or Inf{_rows_text(origin.rows)}"


def _computed_between_text(origin: ObservedOrigin) -> str:
    after = _if_known(", after {} returned finite values", origin.neighbour)
    return f"{_input_text(origin)}; it was computed outside every module{after}"


def _made_by_loss_text(origin: ObservedOrigin) -> str:
    reach = "" if origin.reach is None else f" ({origin.reach[0]:.3g} to {origin.reach[1]:.3g})"
    return f"{_module_text(origin.module)} returned finite values{reach}; the loss made of them is not"


def _backward_text(origin: ObservedOrigin) -> str:
    return f"the backward pass of {_module_text(origin.module)} was given finite gradients and returned NaN or Inf"


def _parameter_text(origin: ObservedOrigin) -> str:
    given = f"the backward pass of {_module_text(origin.module)} was given finite gradients"
    other = "it overflowed, or something else uses that parameter (a penalty in the loss)"
    return f"{given}, but that of {origin.parameter} is not finite: {other}"


def _gradient_text(origin: ObservedOrigin) -> str:
    between = _if_known(", while that of what {} returned is finite: made between the two", origin.neighbour)
    returned = f"the gradient of what {_module_text(origin.module)} returned is already NaN or Inf"
    return f"{returned}{between}, outside every module"


_OBSERVED: Mapping[Pattern, Callable[[ObservedOrigin], str]] = {
    "forward": _forward_text,
    "input": _input_text,
    "computed between": _computed_between_text,
    "loss": _made_by_loss_text,
    "backward": _backward_text,
    "parameter": _parameter_text,
    "gradient between": _gradient_text,
    "gradient of the loss": _gradient_text,
}


def _below_the_loss_text(origin: InferredOrigin) -> str:
    other = f"by {origin.suspect}" if origin.suspect is not None else "between the loss and that layer"
    return f"no gradient is finite, from the loss down to {origin.layer}: made by the loss, or {other}"


def _of_all_ranks_text(origin: InferredOrigin) -> str:
    if origin.pattern == "below the loss":
        return f"no gradient is finite, from {origin.layer} down"
    if origin.pattern == "forward":
        return "nothing that this rank has seen is NaN or Inf"
    return _INFERRED[origin.pattern](origin)


def _one_layer_text(origin: InferredOrigin) -> str:
    return f"the gradient of {origin.layer} is not finite, while those on both sides of it are"


def _one_module_text(origin: InferredOrigin) -> str:
    gradients = f"the gradient of {origin.finite_layer} is finite and that of {origin.layer} is not"
    return f"{gradients}: what {origin.module} was given held NaN or Inf"


def _between_layers_text(origin: InferredOrigin) -> str:
    maker = "" if origin.suspect is None else f", by {origin.suspect or 'the model itself'}"
    down = f"gradients are finite from the loss down to {origin.finite_layer}, and no longer at {origin.layer}"
    return f"{down}: made between the two{maker}"


_INFERRED: Mapping[InferredPattern, Callable[[InferredOrigin], str]] = {
    "forward": lambda _: "made in the forward pass, or by the loss",
    "below the loss": _below_the_loss_text,
    "one layer": _one_layer_text,
    "one module": _one_module_text,
    "between layers": _between_layers_text,
}


_UNSEEN: Mapping[Unseen, str] = {
    "bare tensors": "there is none",
    "parts are called": "this loop calls parts of the model, and their calls are recorded from the second step on",
    "compiled": "the model is compiled; run it once without torch.compile to learn which it is",
    "opaque": "calls of compiled, scripted or sharded modules cannot be recorded; run the model without that once",
    "not recorded": "its calls were not recorded",
    "not repeatable": "the step could not be run again as it was; trace_nonfinite=True examines every call",
    "not traced": "trace_nonfinite=True examines every module",
}


def _fault_text(operation: FaultyOperation) -> str:
    name, operands = operation.name, operation.operands
    if name in ("div", "true_divide") and operands.divides_by_zero:
        return "0 ÷ 0" if operation.made_nan else "a division by 0"
    if not operands.ranges:
        return _WITHOUT_RANGE.get(name, name)
    low, high = operands.ranges[0]
    if name in _BY_RANGE:
        far = high if high >= -low else low
        return _BY_RANGE[name].format(low=f"{low:.3g}", high=f"{high:.3g}", far=f"{far:.3g}")
    if name in ("pow", "float_power") and (operation.made_nan or low == 0):
        return f"a power of {low:.3g}"
    return _size_text(operation)


def _size_text(operation: FaultyOperation) -> str:
    """Return how large the operands of an operation were, and what its result exceeds."""
    largest = max(max(abs(low), abs(high)) for low, high in operation.operands.ranges)
    if math.isinf(largest):
        return f"{operation.name} of Inf"
    if operation.made_nan:
        return f"{operation.name} of entries up to {largest:.3g}"
    done = "rounding" if operation.name == "_to_copy" else operation.name
    dtype = str(operation.dtype).removeprefix("torch.")
    limit = torch.finfo(operation.dtype).max
    return f"{done} of entries up to {largest:.3g} goes beyond the largest {dtype} ({limit:.3g})"


def _loss_text(origin: ObservedOrigin) -> str:
    made_by = f"the loss is made by {', '.join(origin.loss_operations)}"
    if not origin.unbounded:
        return made_by
    names = " and ".join(origin.unbounded)
    have = "derivative of {} has" if len(origin.unbounded) == 1 else "derivatives of {} have"
    return f"{made_by}; the {have.format(names)} no bound"


def _module_text(title: ModuleTitle) -> str:
    return f"{title.name or 'the model itself'} ({title.type})"


def _if_known(text: str, title: ModuleTitle | None) -> str:
    """Return ``text`` about a module, ``""`` where none is known."""
    return "" if title is None else text.format(_module_text(title))


def _rows_text(bad: BadRows | None) -> str:
    if bad is None:
        return ""
    return f", in {len(bad.rows)} of {bad.total} rows: {listed_rows(bad.rows)}"


def listed_rows(rows: Sequence[int]) -> str:
    """Return the numbers of the first rows: ``"0, 1, 2"``."""
    return ", ".join(map(str, rows[:_MOST_ROWS])) + (", …" if len(rows) > _MOST_ROWS else "")
