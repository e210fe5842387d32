"""Looks at every operation of a step → the one that made a NaN or Inf, in words.

Slow, and so only for a step that is run again: two reductions an operation, each read at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradwatch import _torch
from gradwatch.hooks.graph import operation_of, saved_by, upstream_nodes
from gradwatch.measure.report import Operation, Origin

__all__ = ["FaultyOperation", "Operations", "families_of", "loss_fault", "loss_operations", "steep_loss_operations"]

FURTHEST = 64  # nodes of a graph between the losses and the outputs that are looked at

FILLS = (  # what writes a constant, or nothing yet, makes no NaN or Inf of its own
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "resize", "full",
    "full_like", "new_full", "fill", "masked_fill", "scalar_tensor", "lift_fresh", "where", "constant_pad_nd", "set",
    "masked_scatter", "index_fill", "copy", "detach", "view", "clone", "view_as_real", "view_as_complex",
)  # fmt: skip
_STEEP = {"sqrt", "rsqrt", "log", "log2", "log10", "log1p", "div", "reciprocal", "pow", "acos", "asin", "acosh",
          "atanh", "atan2", "linalgvectornorm", "norm", "std", "var", "xlogy", "specialentr",
          "logsumexp"}  # fmt: skip
"""Nodes of a graph whose derivative has no bound: those that make a sick gradient of a finite loss."""
DOMAINS = {
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
    "_softmax": "a softmax over a row that is −Inf throughout (masked entirely)",
    "_log_softmax": "a softmax over a row that is −Inf throughout (masked entirely)",
    "asin": "asin beyond ±1",
    "acos": "acos beyond ±1",
    "atanh": "atanh at or beyond ±1",
    "acosh": "acosh below 1",
}
"""Operation → what it did to its first input, whose entries reach from ``low`` to ``high``, and ``far`` from 0."""
WITHOUT_INPUT = {
    "sqrt": "the square root of a negative number",
    "rsqrt": "1 ÷ the square root of what is not above 0",
    "reciprocal": "1 ÷ 0",
    "exp": "an exponential beyond the largest number of its format",
    "softmax": DOMAINS["_softmax"],
    "logsoftmax": DOMAINS["_log_softmax"],
}
"""The same of operations whose graph saves what they made, not what they were given."""
FAMILIES: dict[Operation, set[str]] = {
    "logarithm": {"log", "log2", "log10", "log1p", "xlogy", "specialentr"},
    "root": {"sqrt", "rsqrt", "linalgvectornorm", "linalg_vector_norm", "norm", "std", "var"},
    "division": {"div", "true_divide", "reciprocal", "pow", "float_power"},
    "softmax": {"_softmax", "_log_softmax", "softmax", "logsoftmax", "logsumexp"},
    "exponential": {"exp", "exp2", "expm1", "sinh", "cosh"},
}


@dataclass(frozen=True)
class FaultyOperation:
    """An operation that made a NaN or Inf of what had none.

    Attributes:
        module: under way.
        node: of the backward pass, ``""`` in the forward pass.
        words: what it was.
        operation: the family that it belongs to, None for one without a remedy of its own.
    """

    module: str
    node: str
    words: str
    operation: Operation | None


class Operations(_torch.DispatchMode):
    """While it is entered, notes every operation that makes a NaN or Inf.

    Args:
        module: → the name of the module under way.
    """

    def __init__(self, module: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module = module
        self._made: list[FaultyOperation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _floats((args, kwargs))
        before = [_faults(tensor) for tensor in inputs] if _torch.schema_of(func).is_mutable else None
        ranges = [_range(tensor) for tensor in inputs] if before is not None else None
        output = func(*args, **(kwargs or {}))
        self._look(func, inputs, before, ranges, output)
        return output

    def explain(self, origin: Origin) -> Origin:
        """``origin`` with the operation in its words."""
        if origin.where not in ("forward", "backward"):
            return origin
        forward = [made for made in self._made if not made.node]
        inside = [m for m in forward if m.module == origin.module or m.module.startswith(f"{origin.module}.")]
        if origin.where == "forward":
            suspects = inside or forward
        else:  # what a NaN was replaced by is finite; its derivative is not
            suspects = [made for made in self._made if made.node]
            suspects += [replace(made, words=f"{made.words}, in its forward pass") for made in inside]
        if not suspects:
            return origin
        operation = suspects[0].operation
        families = () if operation is None else (operation,)
        return replace(origin, words=f"{origin.words}: {suspects[0].words}", operations=families)

    def _look(self, func: Any, inputs: Sequence[Tensor], before: Any, ranges: Any, output: Any) -> None:
        full_name = _torch.schema_of(func).name
        name = full_name.split("::")[-1].rstrip("_") or full_name
        made = [faults for tensor in _floats(output) if (faults := _faults(tensor)) != (False, False)]
        if not made or name in FILLS:
            return
        given = [_faults(tensor) for tensor in inputs] if before is None else before
        is_nan = any(nan for nan, _ in made) and not any(nan for nan, _ in given)
        is_inf = any(inf for _, inf in made) and not any(nan or inf for nan, inf in given)
        if is_nan or is_inf:
            node = _torch.current_node()
            ranges = [_range(tensor) for tensor in inputs] if ranges is None else ranges
            dtype = _floats(output)[0].dtype
            words = _words(name, inputs, ranges, dtype, is_nan)
            title = "" if node is None else operation_of(node)
            words = f"{words}, in the derivative of {title}" if title else words
            self._made.append(FaultyOperation(self._module(), title, words, _family_of(title or name, dtype, is_nan)))


def loss_operations(mark: str, losses: Iterable[Any]) -> list[str]:
    """Names of what made ``losses``, nodes of a graph, of those nodes that bear ``mark`` in their metadata."""
    return list(dict.fromkeys(map(operation_of, upstream_nodes(losses, mark, FURTHEST))))


def steep_loss_operations(mark: str, losses: Iterable[Any]) -> list[str]:
    """Those of ``loss_operations`` whose derivative has no bound: what can make a sick gradient of a finite loss."""
    nodes = (node for node in upstream_nodes(losses, mark, FURTHEST) if operation_of(node) in _STEEP)
    return list(dict.fromkeys(operation_of(node) for node in nodes if not _is_bounded_power(node)))


def families_of(names: Iterable[str]) -> tuple[Operation, ...]:
    """The families that operations belong to, each once."""
    known = (_family_of(name) for name in names)
    return tuple(dict.fromkeys(family for family in known if family is not None))


def _is_bounded_power(node: Any) -> bool:
    """A square, say: steep at 0 are powers below 1."""
    exponent = saved_by(node, "exponent") if operation_of(node) == "pow" else None
    return isinstance(exponent, int | float) and exponent >= 1


def _family_of(name: str, dtype: torch.dtype = torch.float32, nan: bool = True) -> Operation | None:
    """The family of an operation that made NaN (``nan``) or Inf of a format."""
    known = next((family for family, names in FAMILIES.items() if name in names), None)
    if nan or (known is not None and (known, dtype) != ("exponential", torch.float16)):
        return known
    return "overflow of float16" if dtype is torch.float16 else "overflow"


def loss_fault(mark: str, loss: Any) -> FaultyOperation | None:
    """Which of those operations made a NaN or Inf of finite numbers; None where none is seen to.

    To be asked before the backward pass, which frees what the graph has saved.
    """
    return next((made for node in upstream_nodes([loss], mark, FURTHEST) if (made := _fault_of(node))), None)


def _fault_of(node: Any) -> FaultyOperation | None:
    """What an operation did to finite numbers, as far as its node has saved them."""
    title = operation_of(node)
    given, result = [saved_by(node, name) for name in ("self", "other", "exponent")], saved_by(node, "result")
    inputs = [tensor for tensor in given if isinstance(tensor, Tensor) and tensor.numel() > 0]
    if any(_faults(tensor) != (False, False) for tensor in inputs):
        return None
    function = getattr(torch, title, None)
    if title == "div" and inputs and given[1] is not None and bool((given[1] == 0).any()):
        return FaultyOperation("", title, "a division by 0", "division")
    if result is None and function is not None and given[0] is not None and title in (*DOMAINS, "pow", "mul"):
        with contextlib.suppress(TypeError):  # an operand that was not saved
            result = function(*(each for each in given if each is not None))
    if not isinstance(result, Tensor) or _faults(result) == (False, False):
        return None
    has_nan = bool(torch.isnan(result).any())
    words = WITHOUT_INPUT.get(title, "")
    if inputs:
        words = _words(title, inputs, [_range(tensor) for tensor in inputs], result.dtype, has_nan)
    return FaultyOperation("", title, words, _family_of(title, result.dtype, has_nan)) if words else None


def _words(
    name: str, inputs: Sequence[Tensor], ranges: Sequence[tuple[float, float]], dtype: torch.dtype, nan: bool
) -> str:
    low, high = ranges[0] if ranges else (math.nan, math.nan)
    if name in ("div", "true_divide") and len(inputs) > 1 and bool((inputs[1] == 0).any()):
        return "0 ÷ 0" if nan else "a division by 0"
    if name in DOMAINS:
        far = high if high >= -low else low
        return DOMAINS[name].format(low=f"{low:.3g}", high=f"{high:.3g}", far=f"{far:.3g}")
    if name in ("pow", "float_power") and (nan or low == 0):
        return f"a power of {low:.3g}"
    largest = max((abs(end) for ends in ranges for end in ends), default=math.nan)
    if math.isinf(largest):
        return f"{name} of Inf"
    if nan:
        return f"{name} of entries up to {largest:.3g}"
    number = f"{str(dtype).removeprefix('torch.')} ({torch.finfo(dtype).max:.3g})"
    done = "rounding" if name == "_to_copy" else name
    return f"{done} of entries up to {largest:.3g} goes beyond the largest {number}"


def _floats(tree: Any) -> list[Tensor]:
    leaves = (leaf for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor))
    fractions = (leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex())
    return [tensor for tensor in fractions if tensor.numel() > 0 and tensor.layout is torch.strided]


def _faults(tensor: Tensor) -> tuple[bool, bool]:
    """Whether it holds NaN, and Inf."""
    return bool(torch.isnan(tensor).any()), bool(torch.isinf(tensor).any())


def _range(tensor: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(tensor.detach().abs() if tensor.is_complex() else tensor.detach())
    return float(low), float(high)
