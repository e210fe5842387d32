"""Tell from an autograd graph what an activation function is for: a gate, or the scale of a likelihood."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gradwatch.hooks.graph import operation_of

__all__ = ["factors_of", "scales_of"]

PASSING_ON = frozenset(
    ("rsub", "unsqueeze", "squeeze", "expand", "view", "reshape", "unsafeview", "transpose", "permute", "slice")
)
"""Operations after which a gate is still a gate: 1 − x, and changes of shape."""

KEEPING_SCALES = PASSING_ON - {"rsub"} | {"add", "clone", "mul", "pow", "sqrt", "clamp", "clampmin"}
"""Operations after which a scale is still one: a floor, a constant factor, a variance in place of a deviation."""


def factors_of(nodes: Collection[Any]) -> set[Any]:
    """Return the nodes whose result x is a factor of a product, or whose 1 − x is, whatever its shape."""
    factors: set[Any] = set()
    for node in nodes:
        if operation_of(node) == "mul":
            factors.update(upstream for upstream, _ in node.next_functions if upstream is not None)
    for node in reversed(list(nodes)):
        if node in factors and operation_of(node) in PASSING_ON:
            factors.add(node.next_functions[0][0])
    return factors


def scales_of(functions: Collection[Any], nodes: Collection[Any]) -> set[Any]:
    """Return those of ``functions`` that make a scale of a likelihood, which divides and whose logarithm is taken.

    Args:
        functions: nodes.
        nodes: of the graph, in the order in which they ran.
    """
    made_by: dict[Any, set[Any]] = {node: {node} for node in functions}  # node → functions whose scale it returns
    divide: set[Any] = set()
    have_logarithm: set[Any] = set()
    for node in nodes if made_by else ():
        operation, inputs = operation_of(node), [upstream for upstream, _ in node.next_functions]
        if operation == "log":
            have_logarithm |= made_by.get(inputs[0], set())
        elif operation == "div":
            divide |= made_by.get(inputs[-1], set()) if len(inputs) > 1 else set()
        elif operation in KEEPING_SCALES and node not in made_by:
            made_by[node] = made_by.get(_only(inputs), set())
    return divide & have_logarithm


def _only(inputs: list[Any]) -> Any:
    """Return the one input that has a graph; None where several have."""
    known = [upstream for upstream in inputs if upstream is not None]
    return known[0] if len(known) == 1 else None
