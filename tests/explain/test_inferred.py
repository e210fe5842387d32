"""What the gradients of a step alone tell of where a NaN or Inf came from."""

import math

import pytest
import torch

from gradwatch.explain.inferred import InferredOrigin, infer_origin
from gradwatch.measure.layers import of_tensors

NAMES = ("a.weight", "a.bias", "b.weight", "b.bias", "d.weight")
MODULES = (("a", True), ("b", True), ("c", False), ("d", True))


def inferred(at_fault, loss=1.0, modules=MODULES):
    table = of_tensors({name: torch.ones(2, 2) for name in NAMES})
    return infer_origin(table, modules, loss, at_fault)


CASES = {
    "a loss that is not finite": ((NAMES, math.nan), InferredOrigin("forward")),
    "a loss at fault alone": (((), None), InferredOrigin("forward")),
    "no finite gradient": ((NAMES, 1.0), InferredOrigin("below the loss", "d", "d.weight")),
    "one layer in the middle": ((("b.weight",), 1.0), InferredOrigin("one layer", "b", "b.weight")),
    "a weight without its bias": (
        (("a.weight", "a.bias", "b.weight"), 1.0),
        InferredOrigin("one module", "b", "b.weight", "b.bias"),
    ),
    "from a module of its own formula on": (
        (NAMES[:4], 1.0),
        InferredOrigin("between layers", "c", "b.bias", "d.weight", suspect="c"),
    ),
    "between neighbours": ((NAMES[:2], 1.0), InferredOrigin("between layers", "a", "a.bias", "b.weight")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_boundary_of_finite_gradients_tells_the_place(name):
    (at_fault, loss), expected = CASES[name]
    assert inferred(at_fault, loss) == expected


def test_the_only_formula_of_ones_own_after_the_last_layer_is_a_suspect():
    assert inferred(NAMES, modules=(*MODULES, ("e", False))).suspect == "e"
