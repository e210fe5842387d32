"""The sentence about an origin, from its fields."""

import pytest
import torch

from gradwatch.explain.inferred import InferredOrigin
from gradwatch.explain.observed import BadRows, ModuleTitle, ObservedOrigin
from gradwatch.explain.operations import Faults, FaultyOperation, Operands
from gradwatch.explain.sentences import inferred_sentence, observed_sentence, operation_text

LAYER, MODEL = ModuleTitle("head.1", "Log"), ModuleTitle("", "Net")


def operation(name, *ranges, derivative_of="", made_nan=True, divides_by_zero=False, dtype=torch.float32):
    operands = Operands(Faults(False, False), ranges, divides_by_zero)
    return FaultyOperation("head.1", name, derivative_of, None, made_nan, operands, dtype)


OBSERVED = {
    "head.1 (Log) was given finite values and returned NaN": ObservedOrigin("forward", LAYER),
    "head.1 (Log) was given finite values and returned Inf": ObservedOrigin("forward", LAYER, has_nan=False),
    "the model itself (Net) was given Inf and returned NaN": ObservedOrigin("forward", MODEL, was_given_inf=True),
    "what the model itself (Net) was given already held NaN or Inf": ObservedOrigin("input", MODEL),
    "what the model itself (Net) was given already held NaN or Inf, in 2 of 8 rows: 3, 5": ObservedOrigin(
        "input", MODEL, rows=BadRows((3, 5), 8)
    ),
    "what the model itself (Net) was given already held NaN or Inf, in 9 of 9 rows: 0, 1, 2, 3, 4, 5, 6, 7, …": (
        ObservedOrigin("input", MODEL, rows=BadRows(tuple(range(9)), 9))
    ),
    "what head.1 (Log) was given already held NaN or Inf; it was computed outside every module, after the model itself "
    "(Net) returned finite values": ObservedOrigin("computed between", LAYER, neighbour=MODEL),
    "the model itself (Net) returned finite values (-1 to 2.5); the loss made of them is not": ObservedOrigin(
        "loss", MODEL, reach=(-1.0, 2.5)
    ),
    "the backward pass of head.1 (Log) was given finite gradients and returned NaN or Inf": ObservedOrigin(
        "backward", LAYER
    ),
    "the backward pass of head.1 (Log) was given finite gradients, but that of head.1.weight is not finite: it "
    "overflowed, or something else uses that parameter (a penalty in the loss)": ObservedOrigin(
        "parameter", LAYER, parameter="head.1.weight"
    ),
    "the gradient of what the model itself (Net) returned is already NaN or Inf, outside every module": ObservedOrigin(
        "gradient of the loss", MODEL
    ),
    "the gradient of what head.1 (Log) returned is already NaN or Inf, while that of what the model itself (Net) "
    "returned is finite: made between the two, outside every module": ObservedOrigin(
        "gradient between", LAYER, neighbour=MODEL
    ),
    "head.1 (Log) was given finite values and returned NaN: its head.1.a, head.1.b already held NaN or Inf": (
        ObservedOrigin("forward", LAYER, corrupt=("head.1.a", "head.1.b"))
    ),
    "head.1 (Log) was given finite values and returned NaN: the logarithm of -3": ObservedOrigin(
        "forward", LAYER, operation=operation("log", (-3.0, 2.0))
    ),
    "the backward pass of head.1 (Log) was given finite gradients and returned NaN or Inf: 0 ÷ 0, in its forward "
    "pass": (
        ObservedOrigin("backward", LAYER, operation=operation("div", (0.0, 1.0), (0.0, 1.0), divides_by_zero=True))
    ),
    "the backward pass of head.1 (Log) was given finite gradients and returned NaN or Inf: a division by 0, in the "
    "derivative of sqrt": ObservedOrigin(
        "backward",
        LAYER,
        operation=operation("div", (1.0, 1.0), (0.0, 0.0), derivative_of="sqrt", made_nan=False, divides_by_zero=True),
    ),
    "the model itself (Net) returned finite values; the loss made of them is not: the exponential of 100 (the loss is "
    "made by exp, mean)": ObservedOrigin(
        "loss", MODEL, operation=operation("exp", (0.0, 100.0), made_nan=False), loss_operations=("exp", "mean")
    ),
    "the gradient of what the model itself (Net) returned is already NaN or Inf, outside every module (the loss is "
    "made by sqrt, div; the derivatives of sqrt and div have no bound)": ObservedOrigin(
        "gradient of the loss", MODEL, loss_operations=("sqrt", "div"), unbounded=("sqrt", "div")
    ),
}


@pytest.mark.parametrize("sentence", OBSERVED)
def test_what_the_calls_show_is_one_sentence(sentence):
    assert observed_sentence(OBSERVED[sentence]) == sentence


UNSEEN = "was not seen: trace_nonfinite=True examines every module"
INFERRED = {
    "made in the forward pass, or by the loss; the module": InferredOrigin("forward"),
    "no gradient is finite, from the loss down to c.weight: made by the loss, or by d; the module": InferredOrigin(
        "below the loss", "c", "c.weight", suspect="d"
    ),
    "no gradient is finite, from the loss down to c.weight: made by the loss, or between the loss and that layer; the "
    "module": InferredOrigin("below the loss", "c", "c.weight"),
    "the gradient of b.weight is not finite, while those on both sides of it are; the module": InferredOrigin(
        "one layer", "b", "b.weight"
    ),
    "the gradient of b.bias is finite and that of b.weight is not: what b was given held NaN or Inf; the module that "
    "made it": InferredOrigin("one module", "b", "b.weight", "b.bias"),
    "gradients are finite from the loss down to c.weight, and no longer at a.bias: made between the two; the module": (
        InferredOrigin("between layers", "a", "a.bias", "c.weight")
    ),
    "gradients are finite from the loss down to c.weight, and no longer at a.bias: made between the two, by the model "
    "itself; the module": InferredOrigin("between layers", "a", "a.bias", "c.weight", suspect=""),
}


@pytest.mark.parametrize("sentence", INFERRED)
def test_what_the_gradients_show_is_one_sentence_and_says_how_to_see_more(sentence):
    assert inferred_sentence(INFERRED[sentence], "not traced") == f"{sentence} {UNSEEN}"


OPERATIONS = {
    "the square root of a negative number": operation("sqrt"),
    "a power of -2": operation("pow", (-2.0, 1.0)),
    "mul of Inf": operation("mul", (-float("inf"), 1.0)),
    "sub of entries up to 3": operation("sub", (-3.0, 1.0)),
    "rounding of entries up to 7e+04 goes beyond the largest float16 (6.55e+04)": operation(
        "_to_copy", (0.0, 7e4), made_nan=False, dtype=torch.float16
    ),
    "sinh of -200": operation("sinh", (-200.0, 100.0), made_nan=False),
}


@pytest.mark.parametrize("text", OPERATIONS)
def test_an_operation_is_worded_by_what_it_was_given(text):
    assert operation_text(OPERATIONS[text]) == text
