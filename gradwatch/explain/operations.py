"""Find the operation that made a NaN or Inf: among all operations of a step, or in the graph of its loss.

Examining every operation costs two reductions each, read at once. It is done only when a step is run again.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradwatch import _torch
from gradwatch.explain.replica import UnrepeatableError
from gradwatch.hooks.graph import maker_of, operation_of, saved_by, upstream_nodes
from gradwatch.measure.report import Operation

__all__ = [
    "FaultyOperation",
    "Operations",
    "families_of",
    "loss_fault",
    "loss_operations",
    "unbounded_loss_operations",
]

FURTHEST = 64
"""Nodes of a graph that are examined between a loss and the outputs of the model."""

LARGE_BASE = 0.1
"""Share of the exponent of the largest number: of a base beyond it (7,000 in float32) the tenth power overflows. An Inf
made of a smaller base comes from a 0 under a negative exponent."""

FILLS = (  # these write a constant, or nothing yet: a NaN in their result is no fault of theirs
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "resize", "full",
    "full_like", "new_full", "fill", "masked_fill", "scalar_tensor", "lift_fresh", "where", "constant_pad_nd", "set",
    "masked_scatter", "index_fill", "copy", "detach", "view", "clone", "view_as_real", "view_as_complex",
)  # fmt: skip

_UNBOUNDED = {"sqrt", "rsqrt", "log", "log2", "log10", "log1p", "div", "reciprocal", "pow", "acos", "asin", "acosh",
              "atanh", "atan2", "linalgvectornorm", "norm", "std", "var", "xlogy", "specialentr",
              "logsumexp"}  # fmt: skip
"""Operations whose derivative has no bound: they can make a nonfinite gradient of a finite loss."""

NO_OVERFLOW = {"ctcloss"}
"""Operations that return Inf where there is no answer, not where a number is too large."""

_REPEATABLE = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "exp", "exp2", "expm1", "sinh", "cosh",
               "asin", "acos", "atanh", "acosh", "pow", "mul"}  # fmt: skip
"""Operations that can be computed again from what their nodes have saved."""

WITHOUT_OPERANDS = ("sqrt", "rsqrt", "reciprocal", "exp", "softmax", "logsoftmax")
"""Operations whose nodes save their result, not what they were given."""

OPERATION_FAMILIES: dict[Operation, set[str]] = {
    "logarithm": {"log", "log2", "log10", "log1p", "xlogy", "specialentr"},
    "root": {"sqrt", "rsqrt", "linalgvectornorm", "linalg_vector_norm", "norm", "std", "var"},
    "division": {"div", "true_divide", "reciprocal"},
    "power": {"pow", "float_power"},
    "arc": {"acos", "asin", "acosh", "atanh"},
    "decomposition": {
        "linalgsvd",
        "linalg_svd",
        "linalgeigh",
        "linalg_eigh",
        "linalgeig",
        "linalg_eig",
        "linalgqr",
        "linalg_qr",
        "linalginvex",
        "linalg_inv_ex",
        "linalgcholeskyex",
        "linalg_cholesky_ex",
        "linalgsolveex",
        "linalg_solve_ex",
        "linalgdet",
        "linalgslogdet",
        "linalglstsq",
    },
    "softmax": {"_softmax", "_log_softmax", "softmax", "logsoftmax", "logsumexp"},
    "exponential": {"exp", "exp2", "expm1", "sinh", "cosh"},
}


class Faults(NamedTuple):
    """The faults among some tensors: does any hold NaN, does any hold Inf."""

    nan: bool
    inf: bool


@dataclass(frozen=True)
class Operands:
    """The inputs of an operation.

    Attributes:
        faults: among its tensors.
        ranges: smallest and largest entry of each of its tensors.
        divides_by_zero: the second tensor, the divisor of a division, holds a zero.
    """

    faults: Faults
    ranges: tuple[tuple[float, float], ...]
    divides_by_zero: bool


_SICK = Operands(Faults(True, False), (), divides_by_zero=False)
_SUMMED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class FaultyOperation:
    """An operation that made NaN or Inf of operands that had none.

    Attributes:
        module: whose forward pass was under way.
        name: of the operation.
        derivative_of: the operation whose derivative was computed, ``""`` in the forward pass.
        family: that it belongs to; None for an operation without a remedy of its own.
        made_nan: it made NaN, not Inf only.
        operands: what it was given.
        dtype: of the result.
        given_by: the module whose result its first operand is made of; ``""`` where that is not known.
    """

    module: str
    name: str
    derivative_of: str
    family: Operation | None
    made_nan: bool
    operands: Operands
    dtype: torch.dtype
    given_by: str = ""


class Operations(_torch.DispatchMode):
    """A mode that notes every operation which makes a NaN or Inf.

    Args:
        module: returns the name of the module under way.

    Attributes:
        fault: the first exception of what is done here beside the operations, which may end in the code that runs them.

    Raises:
        UnrepeatableError: at an operation that would be seen outside of this process.
    """

    def __init__(self, module: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module = module
        self._found: list[FaultyOperation] = []
        self.fault: Exception | None = None

    def begin(self) -> None:
        """See every operation from now on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """See no operation any more."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self._noting_faults(self._before, func, args, kwargs)
        output = func(*args, **kwargs)
        self._noting_faults(self._examine, func, args, kwargs, before, output)
        return output

    def _noting_faults(self, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except UnrepeatableError:
            raise
        except Exception as error:
            self.fault = self.fault or error
            raise

    def _before(self, func: Any, args: Any, kwargs: Any) -> Operands | None:
        """Return the operands of an operation that is about to overwrite one of them; None for any other operation.

        Raises:
            UnrepeatableError: if another process would see what it writes.
        """
        schema = _torch.schema_of(func)
        if not schema.is_mutable:
            return None
        if _writes_into_shared_memory(schema, args, kwargs):
            raise UnrepeatableError("it writes into memory that other processes share")
        return _given(_floats((args, kwargs)))

    def suspect(self, module: str, *, in_backward: bool) -> FaultyOperation | None:
        """Return the operation that explains a NaN or Inf which ``module`` made; None where none was seen.

        In a backward pass it may be an operation of the module's forward pass, too: a NaN that was then replaced left
        finite values, but its derivative is not finite.
        """
        forward = [operation for operation in self._found if not operation.derivative_of]
        inside = [operation for operation in forward if f"{operation.module}.".startswith(f"{module}.")]
        backward = [operation for operation in self._found if operation.derivative_of]
        suspects = [*backward, *inside] if in_backward else inside or forward
        return suspects[0] if suspects else None

    def _examine(self, func: Any, args: Any, kwargs: Any, before: Operands | None, output: Any) -> None:
        name = _name_of(func)
        if name in FILLS:
            return
        outputs = _floats(output)
        if all(map(_has_finite_sum, outputs)):
            return
        inputs = _floats((args, kwargs))
        operands = before or _given(inputs)
        if operands is _SICK:
            return
        made = _faults(outputs)
        made_nan = made.nan and not operands.faults.nan
        made_inf = made.inf and not any(operands.faults)
        if not (made_nan or made_inf):
            return
        self._found.append(self._fault(name, inputs, made_nan, operands, outputs[0].dtype))

    def _fault(
        self, name: str, inputs: Sequence[Tensor], made_nan: bool, operands: Operands, dtype: torch.dtype
    ) -> FaultyOperation:
        """Return the operation that is under way as one at fault."""
        node = _torch.current_node()
        derivative_of = "" if node is None else operation_of(node)
        family = _family_of(derivative_of or name, dtype, made_nan, operands.ranges)
        given_by = maker_of(inputs[0]) if inputs and node is None else ""
        return FaultyOperation(self._module(), name, derivative_of, family, made_nan, operands, dtype, given_by)


@functools.cache
def _name_of(operation: Any) -> str:
    """Return the name of an operation without its namespace, and without the sign that it works in place."""
    name = str(
        _torch.schema_of(operation).name
    )  # the schema itself is no key: one with a list as a default has no hash
    return name.rsplit("::", maxsplit=1)[-1].rstrip("_") or name


def _writes_into_shared_memory(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation is about to write into a tensor that another process sees, too."""
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
    written = [given.get(each.name) for each in schema.arguments if each.alias_info and each.alias_info.is_write]
    dense = [leaf for leaf in _torch.tree_leaves(written) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
    return any(leaf.is_shared() for leaf in dense)


def loss_operations(mark: str, losses: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of the operations between the losses and the nodes that bear ``mark``, each once."""
    return tuple(dict.fromkeys(map(operation_of, upstream_nodes(losses, mark, FURTHEST))))


def unbounded_loss_operations(mark: str, losses: Iterable[Any]) -> tuple[str, ...]:
    """Return those of ``loss_operations`` whose derivative has no bound."""
    unbounded = []
    for node in upstream_nodes(losses, mark, FURTHEST):
        if operation_of(node) in _UNBOUNDED and not _is_bounded_power(node):
            unbounded.append(operation_of(node))
    return tuple(dict.fromkeys(unbounded))


def families_of(names: Iterable[str]) -> tuple[Operation, ...]:
    """Return the families that operations belong to, each once."""
    known = (_family_of(name) for name in names)
    return tuple(dict.fromkeys(family for family in known if family is not None))


def loss_fault(mark: str, loss: Any) -> FaultyOperation | None:
    """Return the operation of a loss that made NaN or Inf of finite numbers; None where none is seen to.

    The backward pass frees what the graph has saved, so call this before it.
    """
    nodes = upstream_nodes([loss], mark, FURTHEST)
    return next((fault for node in nodes if (fault := _fault_of(node)) is not None), None)


def _fault_of(node: Any) -> FaultyOperation | None:
    """Return what an operation did to finite numbers, as far as its node has saved them."""
    name = operation_of(node)
    saved = [saved_by(node, operand) for operand in ("self", "other", "exponent")]
    tensors = _tensors_with_entries(saved)
    if any(_faults(tensors)) or not (tensors or name in WITHOUT_OPERANDS):
        return None
    if name == "div" and _has_zero(saved[1]):
        by_zero = Operands(Faults(False, False), (), divides_by_zero=True)
        return FaultyOperation("", name, "", "division", False, by_zero, torch.float32)
    result = _result_of(node, saved)
    if result is None or not any(made := _faults([result])):
        return None
    operands = _operands(tensors)
    family = _family_of(name, result.dtype, made.nan, operands.ranges)
    return FaultyOperation("", name, "", family, made.nan, operands, result.dtype)


def _result_of(node: Any, saved: Sequence[Any]) -> Tensor | None:
    """Return what a node has saved of its result, or the result computed again from its saved operands, else None."""
    result, name = saved_by(node, "result"), operation_of(node)
    function = getattr(torch, name, None)
    if result is None and function is not None and saved[0] is not None and name in _REPEATABLE:
        with contextlib.suppress(TypeError):  # an operand was not saved
            result = function(*(operand for operand in saved if operand is not None))
    return result if isinstance(result, Tensor) else None


def _is_bounded_power(node: Any) -> bool:
    """Tell whether ``node`` is a power such as a square: only powers below 1 are steep at 0."""
    exponent = saved_by(node, "exponent") if operation_of(node) == "pow" else None
    return isinstance(exponent, int | float) and exponent >= 1


def _family_of(
    name: str, dtype: torch.dtype = torch.float32, made_nan: bool = True, ranges: Sequence[tuple[float, float]] = ()
) -> Operation | None:
    """Return the family of an operation by what it made, NaN or Inf, in which format, of operands of which ranges."""
    names = {name, name.replace("_", "")}
    known = next((family for family, members in OPERATION_FAMILIES.items() if names & members), None)
    if name.replace("_", "").removeprefix("cudnn") in NO_OVERFLOW:
        return None
    overflows = known is None or (known, dtype) == ("exponential", torch.float16)
    if made_nan or not (overflows or (known == "power" and _is_large(ranges, dtype))):
        return known
    return "overflow of float16" if dtype is torch.float16 else "overflow"


def _is_large(ranges: Sequence[tuple[float, float]], dtype: torch.dtype) -> bool:
    """Tell whether the first operand is so large that a small power of it overflows, and holds no 0 at its end."""
    if not ranges or 0.0 in ranges[0]:
        return False
    return max(map(abs, ranges[0])) > torch.finfo(dtype).max ** LARGE_BASE


def _given(tensors: Sequence[Tensor]) -> Operands:
    """Return the operands; no more than that they hold NaN where they do, since of NaN nothing else is made."""
    return _SICK if _hold_nan(tensors) else _operands(tensors)


def _operands(tensors: Sequence[Tensor]) -> Operands:
    divides_by_zero = len(tensors) > 1 and _has_zero(tensors[1])
    return Operands(_faults(tensors), tuple(_range(tensor) for tensor in tensors), divides_by_zero)


def _floats(tree: Any) -> list[Tensor]:
    """Return the dense floating-point and complex tensors of ``tree`` that have entries."""
    if isinstance(tree, Tensor):
        return [tree] if _is_examined(tree) else []
    return [leaf for leaf in _torch.tree_leaves(tree) if isinstance(leaf, Tensor) and _is_examined(leaf)]


def _is_examined(tensor: Tensor) -> bool:
    """Return whether ``tensor`` is dense, has entries, and can hold NaN."""
    is_fraction = tensor.is_floating_point() or tensor.is_complex()
    return is_fraction and tensor.layout is torch.strided and tensor.numel() > 0


def _tensors_with_entries(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.numel() > 0]


def _has_zero(operand: Any) -> bool:
    return operand is not None and bool((operand == 0).any())


def _hold_nan(tensors: Iterable[Tensor]) -> bool:
    return any(bool(torch.isnan(tensor).any()) for tensor in tensors if not _has_finite_sum(tensor))


def _faults(tensors: Iterable[Tensor]) -> Faults:
    suspects = [tensor for tensor in tensors if not _has_finite_sum(tensor)]
    return Faults(_hold_nan(suspects), any(bool(torch.isinf(tensor).any()) for tensor in suspects))


def _has_finite_sum(tensor: Tensor) -> bool:
    """Return True for a tensor of finite entries alone, unless their sum overflows; it takes a fifth of the time."""
    return tensor.dtype in _SUMMED and math.isfinite(abs(tensor.sum().item()))


def _range(tensor: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(tensor.detach().abs() if tensor.is_complex() else tensor.detach())
    return float(low), float(high)
